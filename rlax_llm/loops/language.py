"""Reinforcement learning of a language model as one program: sample prompts, generate, score, learn.

A *collector* is a pair ``init(params) → memory`` and ``collect(memory, params, key, version) → (memory, groups,
metrics)``, and collectors wrap each other: ``dynamic_sampling`` throws uninformative groups away, ``replay.replayed``
gives earlier ones in their place, ``stale_sampling``, ``delayed_sampling`` and ``rounded_sampling`` put a distance
between sampler and learner. ``version`` counts the updates that the parameters have had. What draws a token writes it
down, what hands older parameters on hands their version on with them, and ``language_loop`` takes the difference to
its own: so ages are right whatever wraps what. ``language_loop`` joins a collector with an update such as
``group_loop``; scan it over keys for a run, and vmap that over seeds and over anything that may be traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions, Groups, Known, Metrics, Params
from rlax_llm.generation.engine import for_sampling, generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.loops.curriculum import Choosing, uniform_choosing
from rlax_llm.loops.group import compared, informative_groups
from rlax_llm.models.config import DecoderConfig

Memory = Any
ScoreFunction = Callable[[Completions, Any], jax.Array]


class Prompts(NamedTuple):
    """What a run draws its prompts from.

    Attributes:
        tokens: ``[N, W]`` int32, padded on the left.
        valid: ``[N, W]`` bool.
        columns: any pytree of arrays ``[N, …]`` that the reward reads: answers, for one.
    """

    tokens: jax.Array
    valid: jax.Array
    columns: Any = ()


class Collector(NamedTuple):
    """Where a loop's groups come from.

    Attributes:
        init: ``params → memory``.
        collect: ``(memory, params, key, version) → (memory, groups, metrics)``; ``version``, scalar int32, counts the
            updates that the parameters have had. The groups' ``completions.versions`` are those of what drew them; None
            is the one that was given.
    """

    init: Callable[[Params], Memory]
    collect: Callable[[Memory, Params, jax.Array, jax.typing.ArrayLike], tuple[Memory, Groups, Metrics]]


class LanguageState(NamedTuple):
    """What a step changes.

    Attributes:
        learner: the update's state; its ``params`` are what is trained.
        memory: the collector's.
        version: scalar int32, updates so far.
    """

    learner: Any
    memory: Memory
    version: jax.Array


def fresh_sampling(
    config: DecoderConfig,
    prompts: Prompts,
    reward: ScoreFunction,
    request: Request,
    batch_size: int,
    choosing: Choosing | None = None,
) -> Collector:
    """Fresh groups of prompts drawn with replacement; its memory is that of the choice of prompts.

    Args:
        config: shapes of the decoder.
        prompts: to draw from.
        reward: ``(completions, columns) → scores [B]`` or ``[K, B]``, in jnp; ``columns`` are those of each row's
            prompt. NaN where a completion has no score.
        request: sampler, stop tokens, longest completion and group size. A sampler made inside a function that is
            traced (a ``functools.partial`` of ``inverse_cdf``, say) may close over a traced temperature.
        batch_size: prompts of a step, P.
        choosing: which prompts, such as ``by_pass_rate``; None draws each as often as any other, and remembers nothing.

    Raises:
        ValueError: for a group size or a batch size below 1.
    """
    checks.at_least_one("fresh_sampling", batch_size=batch_size, group_size=request.group_size)
    prompts = jax.tree.map(jnp.asarray, prompts)
    choice = uniform_choosing(prompts.tokens.shape[0]) if choosing is None else choosing

    def collect(
        memory: Memory, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Memory, Groups, Metrics]:
        which, draw = jax.random.split(key)
        chosen = choice.choose(memory, which, batch_size)
        matrices = for_sampling(config, params)  # gathered once, not at every token
        completions = generate_at_once(config, matrices, (prompts.tokens[chosen], prompts.valid[chosen]), draw, request)
        rows = jnp.repeat(chosen, request.group_size)
        scores = reward(completions, jax.tree.map(lambda x: x[rows], prompts.columns))
        scores = scores.reshape(*scores.shape[:-1], batch_size, -1)
        memory, metrics = choice.learn(memory, chosen, scores)
        return memory, dated(Groups(completions, scores, known=Known(prompts=chosen)), version), metrics

    return Collector(lambda params: choice.init(), collect)


def dated(groups: Groups, version: jax.typing.ArrayLike) -> Groups:
    """Groups whose completions have the version of the policy that drew them; those that have none are of this one.

    Args:
        groups: in rows.
        version: updates of the policy that was given to what drew them.
    """
    rows = groups.completions
    if rows.versions is not None:
        return groups
    versions = jnp.full(rows.tokens.shape[0], version, jnp.int32)
    return groups._replace(completions=rows._replace(versions=versions))


def ages(rows: Completions, version: jax.typing.ArrayLike) -> jax.Array:
    """The updates that the policy has had since what drew each token; 0 where the policy did not choose.

    Args:
        rows: any; those without versions are of the newest policy.
        version: updates that the policy has had.

    Returns:
        Of the shape of the tokens, float32.

    >>> every = jnp.ones((2, 1), bool)
    >>> ages(Completions(every, every, every, every, every[:, 0], versions=jnp.array([2, 3])), 5).tolist()
    [[3.0], [2.0]]
    """
    if rows.versions is None:
        return jnp.zeros(rows.tokens.shape, jnp.float32)
    apart = jnp.asarray(version, jnp.int32) - rows.versions
    by_token = apart if apart.ndim == rows.tokens.ndim else apart[..., None]
    return jnp.where(rows.mask, by_token, 0).astype(jnp.float32)


def aged(groups: Groups, version: jax.typing.ArrayLike) -> Groups:
    """Groups with their ``ages`` for ``staleness``.

    Args:
        groups: any.
        version: updates that the policy has had.
    """
    return groups._replace(staleness=ages(groups.completions, version))


def by_group(groups: Groups) -> Groups:
    """The same record with groups on axis 0 everywhere: rows ``[P, G, …]``, scores ``[P, …, G]``.

    Args:
        groups: of ``P · G`` rows.
    """
    count = groups.scores.shape[-2]
    split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), _rows(groups))
    return groups._replace(scores=jnp.moveaxis(groups.scores, -2, 0), **split)


def in_rows(groups: Groups) -> Groups:
    """What ``by_group`` was given.

    Args:
        groups: on axis 0.
    """
    joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), _rows(groups))
    return groups._replace(scores=jnp.moveaxis(groups.scores, 0, -2), **joined)


def _rows(groups: Groups) -> dict[str, Any]:
    """What a batch has of each completion."""
    return {name: getattr(groups, name) for name in ("completions", "ref_log_probs", "staleness")}


class Surplus(NamedTuple):
    """Informative groups that wait for the next step.

    Attributes:
        groups: ``by_group``, 2P of them, of which the first ``kept`` are.
        kept: scalar int32, below P between two steps.
        inner: the wrapped collector's memory.
    """

    groups: Groups
    kept: jax.Array
    inner: Memory


def dynamic_sampling(collector: Collector, most_rounds: int = 8) -> Collector:
    """DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): collect until P groups are informative.

    A group is informative where anything differs that the loss compares: its scores, or with ``known.step_rewards`` the
    rewards of its steps. A surplus is carried over to the next step, with the log-probabilities and the version of the
    policy that sampled it. After ``most_rounds`` the batch is as full as it got: the places that stay
    empty have no chosen token and NaN scores, so they count in no denominator.

    Args:
        collector: of P groups per round.
        most_rounds: ≥ 1, rounds of generation in a step.

    Returns:
        A collector; metrics of it are ``sampling/rounds``, ``sampling/kept`` (the share of the sampled groups that
        was informative), ``sampling/filled`` (the share of the batch) and ``sampling/surplus`` (groups).

    Raises:
        ValueError: for fewer than one round.
    """
    checks.at_least_one("dynamic_sampling", most_rounds=most_rounds)

    def init(params: Params) -> Surplus:
        inner = collector.init(params)
        empty = no_groups(lambda key: drawn(inner, params, key, 0)[1])
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), empty)
        return Surplus(emptied(twice, jnp.int32(0)), jnp.int32(0), inner)

    def drawn(inner: Memory, params: Params, key: jax.Array, version: jax.typing.ArrayLike) -> tuple[Memory, Groups]:
        inner, groups, _ = collector.collect(inner, params, key, version)
        return inner, by_group(dated(groups, version))

    def collect(
        memory: Surplus, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Surplus, Groups, Metrics]:
        wanted = memory.groups.scores.shape[0] // 2

        def more(now: tuple[Surplus, jax.Array, jax.Array]) -> tuple[Surplus, jax.Array, jax.Array]:
            surplus, round_, kept = now
            inner, new = drawn(surplus.inner, params, jax.random.fold_in(key, round_), version)
            fits = informative_groups(compared(in_rows(new)))
            fresh = fits.sum(dtype=jnp.int32)
            place = jnp.where(fits, surplus.kept + jnp.cumsum(fits) - 1, 2 * wanted)  # out of bounds: dropped
            put = jax.tree.map(lambda x, y: x.at[place].set(y, mode="drop"), surplus.groups, new)
            return Surplus(put, surplus.kept + fresh, inner), round_ + 1, kept + fresh

        def unfilled(now: tuple) -> jax.Array:
            return (now[0].kept < wanted) & (now[1] < most_rounds)

        found, rounds, kept = jax.lax.while_loop(unfilled, more, (memory, jnp.int32(0), jnp.int32(0)))
        taken = jax.tree.map(lambda x: x[:wanted], found.groups)
        rest = jnp.maximum(found.kept - wanted, 0)
        left = jax.tree.map(lambda x: jnp.roll(x, -wanted, 0), found.groups)
        metrics = {
            "sampling/rounds": rounds,
            "sampling/kept": kept / jnp.maximum(rounds * wanted, 1),
            "sampling/filled": jnp.minimum(found.kept, wanted) / wanted,
            "sampling/surplus": rest,
        }
        return Surplus(emptied(left, rest), rest, found.inner), in_rows(taken), metrics

    return Collector(init, collect)


def no_groups(drawn: Callable[[jax.Array], Groups]) -> Groups:
    """Zeros in the shape of a draw.

    Args:
        drawn: ``key → groups``, which is not computed.
    """
    shapes = jax.eval_shape(drawn, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def emptied(groups: Groups, count: jax.Array) -> Groups:
    """The places from ``count`` on hold nothing: no chosen token, no score.

    Args:
        groups: ``by_group``.
        count: scalar, places that hold a group.
    """
    rows, scores = groups.completions, groups.scores
    here = jnp.arange(scores.shape[0]) < count
    scores = jnp.where(here.reshape(-1, *[1] * (scores.ndim - 1)), scores, jnp.nan)
    # A set without a token would be no distribution.
    kept = jax.tree.map(lambda x: jnp.where(here[:, None, None, None], x, EVERY), rows.kept)
    rows = rows._replace(mask=rows.mask & here[:, None, None], kept=kept)
    return groups._replace(completions=rows, scores=scores)


class Held(NamedTuple):
    """The policy that is sampled from.

    Attributes:
        params: of it.
        version: scalar int32, updates that they have had.
        inner: the wrapped collector's memory.
    """

    params: Params
    version: jax.Array
    inner: Memory


def stale_sampling(collector: Collector, every: int) -> Collector:
    """Sample from parameters that are brought up to date after every ``every``-th update only.

    Limiting case: ``every = 1`` is the collector itself.

    Args:
        collector: any.
        every: ≥ 1, updates.

    Returns:
        A collector, whose fresh groups are from 0 to ``every − 1`` updates old.

    Raises:
        ValueError: for fewer than one update.
    """
    checks.at_least_one("stale_sampling", every=every)

    def collect(
        memory: Held, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Held, Groups, Metrics]:
        due = version - memory.version >= every
        used = jax.tree.map(lambda new, kept: jnp.where(due, new, kept), params, memory.params)
        since = jnp.where(due, version, memory.version)
        inner, groups, metrics = collector.collect(memory.inner, used, key, since)
        return Held(used, since, inner), dated(groups, since), metrics

    # The first parameters of a run are always taken.
    return Collector(lambda params: Held(params, jnp.int32(-every), collector.init(params)), collect)


_NEVER = -1


class Past(NamedTuple):
    """The last policies.

    Attributes:
        params: ``[most + 1, …]``.
        versions: ``[most + 1]`` int32, updates that each has had; −1 where there is none yet.
        inner: the wrapped collector's memory.
    """

    params: Params
    versions: jax.Array
    inner: Memory

    def kept(self, params: Params, version: jax.typing.ArrayLike) -> Past:
        """With this policy, in the place of the oldest one.

        Args:
            params: of it.
            version: updates that they have had; where there is this one already, that is kept once.
        """
        place = jnp.argmin(jnp.where(self.versions == version, _NEVER - 1, self.versions))
        ring = jax.tree.map(lambda x, new: x.at[place].set(new), self.params, params)
        return self._replace(params=ring, versions=self.versions.at[place].set(version))

    def of(self, version: jax.typing.ArrayLike) -> tuple[Params, jax.Array]:
        """The newest policy that has had at most so many updates, or else the first; and its updates.

        Args:
            version: updates.
        """
        there = self.versions > _NEVER
        old = there & (self.versions <= version)
        first = jnp.argmin(jnp.where(there, self.versions, jnp.iinfo(jnp.int32).max))
        place = jnp.where(old.any(), jnp.argmax(jnp.where(old, self.versions, _NEVER)), first)
        return jax.tree.map(lambda x: x[place], self.params), self.versions[place]


def delayed_sampling(collector: Collector, updates: int | jax.Array, most: int | None = None) -> Collector:
    """Sample from the parameters that there were ``updates`` before, as a learner sees that runs beside samplers.

    Before there are so many, from the first. Limiting case: ``updates = 0`` is the collector itself.

    Args:
        collector: any.
        updates: ≥ 0; may be traced, at most ``most``.
        most: copies of the parameters that are kept besides the newest; None is ``updates``.

    Returns:
        A collector, whose fresh groups are so many updates old.

    Raises:
        ValueError: for a negative number of updates, or more than ``most``.
    """
    kept = updates if most is None else most
    checks.not_negative("delayed_sampling", updates=updates, **{"most − updates": kept - updates})
    if not isinstance(kept, int):
        raise ValueError("delayed_sampling: updates is traced and most is None; give most, the largest that it may be.")
    size = kept + 1

    def init(params: Params) -> Past:
        ring = jax.tree.map(lambda x: jnp.zeros((size, *jnp.shape(x)), jnp.result_type(x)), params)
        return Past(ring, jnp.full(size, _NEVER, jnp.int32), collector.init(params))

    def collect(
        memory: Past, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Past, Groups, Metrics]:
        past = memory.kept(params, version)
        used, drawn = past.of(version - updates)
        inner, groups, metrics = collector.collect(memory.inner, used, key, drawn)
        return past._replace(inner=inner), dated(groups, drawn), metrics

    return Collector(init, collect)


def rounded_sampling(collector: Collector, dtype: Any) -> Collector:
    """Sample from parameters rounded to another number format: ``jnp.bfloat16``, as engines do.

    Args:
        collector: any.
        dtype: of the sampler's weights; what it computes in is what they promote to.
    """

    def lower(params: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(dtype).astype(x.dtype), params)

    def collect(
        memory: Memory, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Memory, Groups, Metrics]:
        return collector.collect(memory, lower(params), key, version)

    return Collector(collector.init, collect)


def language_loop(
    collector: Collector, update: tuple[Callable[..., Any], Callable[..., Any]]
) -> tuple[Callable[..., LanguageState], Callable[..., tuple[LanguageState, Metrics]]]:
    """``init(params, frozen)`` and ``step(state, key, *, reference, frozen)``: all of RL in one program.

    The loop draws its own batch, so its ``step`` takes a key in the batch's place, as ``jax.lax.scan`` gives it.

    Args:
        collector: where the groups come from: ``fresh_sampling``, or a wrapper around it.
        update: ``(init, step)`` of ``group_loop`` or ``group_trpo_loop``.

    Returns:
        The pair; groups reach the update with the ``staleness`` of each token, in updates. Metrics are the update's
        and the collector's, and ``reward``, ``reward_std``, ``completion_length``
        (tokens) and ``truncated_fraction`` of what was learned from.

    >>> from rlax_llm import Categorical, DecoderConfig, Request, group_loop
    >>> from rlax_llm.recipes import group as recipes
    >>> from rlax_llm.models import decoder
    >>> from rlax_llm.models.scoring import group_log_probs
    >>> import optax
    >>> config = DecoderConfig(4, 8, 16, 1, 2, 2, 4)
    >>> prompts = Prompts(jnp.array([[1], [2]]), jnp.ones((2, 1), bool), columns=jnp.array([2, 3]))
    >>> def reward(completions, wanted): return (completions.tokens[:, 1:] == wanted[:, None]).mean(-1)
    >>> collector = fresh_sampling(config, prompts, reward, Request(Categorical(), (), 2, group_size=4), batch_size=2)
    >>> update = group_loop(group_log_probs(config, (4, 1)), recipes.dapo(), optax.adam(0.01))
    >>> init, step = language_loop(collector, update)
    >>> state = init(decoder.init_decoder(config, jax.random.key(0)))
    >>> state, metrics = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 3))
    >>> metrics["reward"].shape
    (3,)
    """
    start, learn = update

    def init(params: Params, frozen: Params | None = None) -> LanguageState:
        return LanguageState(start(params), collector.init(join_trees(params, frozen)), jnp.int32(0))

    def step(
        state: LanguageState, key: jax.Array, *, reference: Params | None = None, frozen: Params | None = None
    ) -> tuple[LanguageState, Metrics]:
        draw, order = jax.random.split(key)
        whole = join_trees(state.learner.params, frozen)
        memory, drawn, sampling = collector.collect(state.memory, whole, draw, state.version)
        groups = aged(drawn, state.version)
        learner, metrics = learn(state.learner, groups, key=order, reference=reference, frozen=frozen)
        return LanguageState(learner, memory, state.version + 1), metrics | sampling | describe_groups(groups)

    return init, step


def describe_groups(groups: Groups) -> Metrics:
    """Mean and standard deviation of the scores, mean length in tokens, share of truncated completions.

    Args:
        groups: several rewards are added up; completions without a score or a token do not count.
    """
    totals = groups.scores.sum(0) if groups.scores.ndim == 3 else groups.scores
    lengths = groups.completions.mask.sum(-1)
    there = lengths > 0
    return {
        "reward": jnp.nanmean(totals),
        "reward_std": jnp.nanstd(totals),
        "completion_length": lengths.sum() / jnp.maximum(there.sum(), 1),
        "truncated_fraction": (groups.completions.truncated & there).sum() / jnp.maximum(there.sum(), 1),
    }
