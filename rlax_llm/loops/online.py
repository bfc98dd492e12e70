"""Preferences of completions that are drawn on the way, as a pure ``(init, step)`` pair.

One body serves them all: scores make pairs of a prompt's completions, which ``preference_loop`` learns from, or they
become what each of its own is worth beside a rival's, which ``group_loop`` does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions, Groups, Metrics, PairedCompletions, Params
from rlax_llm.generation.engine import for_sampling, generate_at_once
from rlax_llm.generation.mixture import Two, generate_mixed
from rlax_llm.generation.request import Request
from rlax_llm.loops.group import ONCE, GroupLearning, group_loop, means_where, uninformative_share, where_taught
from rlax_llm.loops.language import Collector, Prompts, ScoreFunction, dated
from rlax_llm.loops.minibatches import Passes, epochs
from rlax_llm.loops.parts import fixed_log_probs
from rlax_llm.loops.policy import Loop, TrainState, reference_log_probs
from rlax_llm.loops.preference import preference_loop
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import LogProbs
from rlax_llm.policy.rivals import OnlineGroups
from rlax_llm.policy.weightings import sequence_sum
from rlax_llm.preference.marks import reads_reference, reads_ties
from rlax_llm.preference.ordering import OnlinePairs, Pairs

Online = OnlinePairs | OnlineGroups


def _split(groups: Groups, rivals: int) -> tuple[jax.Array, jax.Array]:
    """Scores of the own completions ``[P, G]`` and of the rivals ``[P, H]``."""
    shape = checks.shape("online_loop", "scores", groups.scores)
    if len(shape) != 2 or shape[0] * shape[1] != groups.completions.tokens.shape[0] or shape[1] <= rivals:
        raise ValueError(
            f"online_loop: scores has shape {shape}, wanted [P, G + {rivals}] of the "
            f"{groups.completions.tokens.shape[0]} rows of completions, a prompt's own before its rivals'."
        )
    own = shape[1] - rivals
    return groups.scores[:, :own], groups.scores[:, own:]


@check_arguments
def paired(online: OnlinePairs, groups: Groups, rivals: int = 0) -> tuple[PairedCompletions, jax.Array]:
    """The pairs that scores make of completions, and which of them each row is.

    A pair without a preference has no chosen token: it is padding. Where the likelihood term reads ties (XPO's), two of
    the same score keep their tokens and are not ``preferred``.

    Args:
        online: its ``pairing``, and what its preference reads.
        groups: completions and scores ``[P, G + H]``, a prompt's own before its rivals'.
        rivals: H.

    Returns:
        ``PairedCompletions`` of ``P · K`` pairs, and ``[P · (G + H)]``: 1 on rows that are chosen, −1 on rejected ones,
        0 on the others.

    Raises:
        ValueError: for scores that do not fit the rows.
    """
    own, others = _split(groups, rivals)
    found: Pairs = jax.vmap(online.pairing)(own, others)
    size = groups.scores.shape[1]
    first = size * jnp.arange(own.shape[0])[:, None]
    chosen, rejected = ((first + places).reshape(-1) for places in (found.chosen, found.rejected))
    there, rows = found.there.reshape(-1), jnp.stack([chosen, rejected], 1).reshape(-1)
    ties = reads_ties(online.preference.likely)
    read = _scored(groups.scores, rows) if ties else there
    completions = _taken(groups.completions, rows, jnp.repeat(read, 2))
    known = None if groups.ref_log_probs is None else groups.ref_log_probs[rows]
    explored = (found.chosen >= own.shape[1]).reshape(-1) if rivals else None
    signs = _signs(groups.scores.size, chosen, rejected, there)
    return PairedCompletions(completions, None, known, explored, there if ties else None), signs


def _signs(rows: int, chosen: jax.Array, rejected: jax.Array, there: jax.Array) -> jax.Array:
    """1 for each row that is chosen, −1 for each that is rejected."""
    return jnp.zeros(rows).at[chosen].add(there).at[rejected].add(-1.0 * there)


def _scored(scores: jax.Array, rows: jax.Array) -> jax.Array:
    """The pairs of which both have a score."""
    return ~jnp.isnan(scores.reshape(-1)[rows]).reshape(-1, 2).any(-1)


def _taken(completions: Completions, rows: jax.Array, there: jax.Array) -> Completions:
    """Some rows, those without a chosen token that are not there."""
    taken: Completions = jax.tree.map(lambda x: x[rows], completions)
    return taken._replace(mask=taken.mask & there[:, None])


def _pairs_of(batch: Any, order: jax.Array) -> Any:
    """Some pairs of a batch: of arrays with a row for each side two rows, of others one."""
    pairs = batch.completions.tokens.shape[0] // 2

    def take(x: jax.Array) -> jax.Array:
        return x.reshape(pairs, -1, *x.shape[1:])[order].reshape(-1, *x.shape[1:])

    return jax.tree.map(take, batch)


@check_arguments
def online_loop(
    log_probs: LogProbs,
    online: Online,
    optimizer: optax.GradientTransformation,
    learning: GroupLearning = ONCE,
    rivals: int = 0,
) -> Loop[Any, Groups]:
    """``init(params)`` and ``step(state, groups, *, key, reference, frozen)`` on completions that scores compare.

    Limiting cases: ``group_loop`` of the objective where there are no rivals; of ``OnlinePairs``, ``preference_loop``
    on the pairs that ``paired`` makes.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats: of pairs, two rows for each
            prompt; of groups, its own completions.
        online: ``OnlinePairs`` or ``OnlineGroups``.
        optimizer: any Optax transformation.
        learning: epochs, minibatches and micro-batches, of pairs or of groups; of groups the rest too.
        rivals: completions of each group, its last ones, that a rival drew.

    Returns:
        The pair; a batch is ``Groups`` with scores ``[P, G + rivals]``, and ``key`` orders minibatches. Metrics are
        those of ``preference_loop`` or of ``group_loop``, and ``frac_reward_zero_std``; of pairs ``frac_paired`` too,
        the share of the pairs in which one is preferred. A minibatch without a pair is no step.

    Raises:
        ValueError: for rivals that the algorithm does not have, or has and there are none; as those loops.
    """
    checks.not_negative("online_loop", rivals=rivals)
    if (online.rivals is None) != (rivals == 0):
        wanted = "0" if online.rivals is None else "at least 1"
        raise ValueError(f"online_loop: rivals is {rivals} and the algorithm's is {online.rivals}, wanted {wanted}.")
    made = _loop_of_pairs if isinstance(online, OnlinePairs) else _loop_of_groups
    return made(log_probs, online, optimizer, learning, rivals)  # pyright: ignore[reportArgumentType]


def _loop_of_groups(
    log_probs: LogProbs,
    online: OnlineGroups,
    optimizer: optax.GradientTransformation,
    learning: GroupLearning,
    rivals: int,
) -> Loop[Any, Groups]:
    init, learn = group_loop(log_probs, online.objective, optimizer, learning)

    def step(
        state: Any,
        batch: Groups,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[Any, Metrics]:
        checks.record("online_loop", "batch", batch, Groups)
        scores, others = _split(batch, rivals)
        worth = jax.vmap(online.comparison)(scores, others)
        groups, size = scores.shape

        def own(x: jax.Array) -> jax.Array:
            return x.reshape(groups, size + rivals, *x.shape[1:])[:, :size].reshape(-1, *x.shape[1:])

        completions, known = jax.tree.map(own, (batch.completions, batch.ref_log_probs))
        return learn(state, Groups(completions, worth, known), key=key, reference=reference, frozen=frozen)

    return init, step


def _loop_of_pairs(
    log_probs: LogProbs,
    online: OnlinePairs,
    optimizer: optax.GradientTransformation,
    learning: GroupLearning,
    rivals: int,
) -> Loop[TrainState, Groups]:
    reads = reads_reference(online.preference.rewards)
    init, learn = preference_loop(log_probs, online.preference, optimizer, learning.micro_batches, sequence_sum)
    parts = learning.minibatches * learning.micro_batches

    def step(
        state: TrainState,
        batch: Groups,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        checks.record("online_loop", "batch", batch, Groups)
        pairs, signs = paired(online, batch, rivals)

        def score(params: Params) -> jax.Array:
            return fixed_log_probs(log_probs, join_trees(params, frozen), pairs.completions, parts)

        known = reference_log_probs("online_loop", score, pairs, reference, reads, "rewards that read none")
        count = pairs.completions.tokens.shape[0] // 2
        if count % learning.minibatches:
            raise ValueError(
                f"online_loop: minibatches is {learning.minibatches}, wanted a divisor of the {count} pairs."
            )
        taught = where_taught(partial(learn, frozen=frozen))
        passes = Passes(learning.epochs, learning.minibatches)
        state, (steps, counted) = epochs(
            taught, state, pairs._replace(ref_log_probs=known), count, passes, key, _pairs_of
        )
        there = pairs.completions.mask.any(-1)[::2] if pairs.preferred is None else pairs.preferred
        told = {"frac_paired": there.mean(), "frac_reward_zero_std": uninformative_share(batch.scores)}
        credit = jnp.broadcast_to(signs[:, None], batch.completions.tokens.shape)
        return state, means_where(counted, steps) | told | learning.telling(credit)

    return init, step


@check_arguments
def rivals_sampling(
    config: DecoderConfig,
    prompts: Prompts,
    reward: ScoreFunction,
    request: Request,
    batch_size: int,
    share: float | jax.Array,
    rivals: int = 1,
) -> Collector:
    """``fresh_sampling`` with completions of a rival behind a prompt's own; its memory is the rival's reference.

    Args:
        config: shapes of the decoder.
        prompts: to draw from.
        reward: ``(completions, columns) → scores [B]``, in jnp.
        request: sampler, stop tokens, longest completion, and G own completions of a prompt.
        batch_size: prompts of a step, P.
        share: m of the geometric mixture ``π^(1 − m) · π_ref^m`` that rivals are drawn from; may be traced.
        rivals: H ≥ 1, of a prompt.

    Returns:
        A collector of groups with scores ``[P, G + H]``.

    Raises:
        ValueError: for a number below 1.
    """
    checks.at_least_one("rivals_sampling", batch_size=batch_size, group_size=request.group_size, rivals=rivals)
    prompts = jax.tree.map(jnp.asarray, prompts)

    def collect(
        memory: Params, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Params, Groups, Metrics]:
        which, draw, other = jax.random.split(key, 3)
        chosen = jax.random.randint(which, (batch_size,), 0, prompts.tokens.shape[0])
        asked = prompts.tokens[chosen], prompts.valid[chosen]
        models = Two(for_sampling(config, params), for_sampling(config, memory))
        own = generate_at_once(config, models.policy, asked, draw, request)
        theirs = generate_mixed(config, models, asked, other, request._replace(group_size=rivals), share)
        completions = beside(own, theirs, batch_size)
        rows = jnp.repeat(chosen, request.group_size + rivals)
        scores = reward(completions, jax.tree.map(lambda x: x[rows], prompts.columns))
        return memory, dated(Groups(completions, scores.reshape(batch_size, -1)), version), {}

    return Collector(lambda params: jax.tree.map(jnp.copy, params), collect)


def beside(own: Completions, theirs: Completions, prompts: int) -> Completions:
    """Completions of the same prompts as one record, the first ones before the second ones of each prompt.

    Args:
        own: ``P · G`` rows.
        theirs: ``P · H`` rows of as many columns, with the same fields.
        prompts: P.

    >>> from rlax_llm.core.types import Completions
    >>> def rows(*numbers):
    ...     tokens = jnp.array(numbers)[:, None]
    ...     return Completions(tokens, tokens > 0, tokens > 0, 0.0 * tokens, tokens[:, 0] > 0)
    >>> beside(rows(1, 2), rows(3, 4, 5, 6), 2).tokens[:, 0].tolist()
    [1, 3, 4, 2, 5, 6]
    """

    def join(x: jax.Array, y: jax.Array) -> jax.Array:
        pair = (each.reshape(prompts, -1, *each.shape[1:]) for each in (x, y))
        return jnp.concatenate(list(pair), 1).reshape(-1, *x.shape[1:])

    return jax.tree.map(join, own, theirs)
