"""Rows to learn preferences from: of a table or of right and wrong sums, as batches for a loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.examples import Encoder, Split, of_records, of_tables
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.preference.phase import Rows, Samples
from rlax_llm.commands.preference.settings import LabelDataSettings, LabelObjectiveSettings, PairDataSettings
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.sampling_settings import BatchSettings
from rlax_llm.commands.tasks import arithmetic_for
from rlax_llm.core.mesh import fetch
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import LabeledCompletions, PairedCompletions, SteppedCompletions
from rlax_llm.data.batches import PairRows, labeled_rows, pair_rows, stepwise_rows
from rlax_llm.data.encoding import encode_labeled, encode_pairs, encode_stepwise
from rlax_llm.data.preferences import Pair, read_labeled, read_pairs, read_stepwise, read_triples, split_pairs
from rlax_llm.data.sifting import Kept, flatten_rows, number_rows
from rlax_llm.data.tasks import load_task
from rlax_llm.generation.sampling import greedy
from rlax_llm.loops.parts import fixed_log_probs
from rlax_llm.models.functional import Params
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.preference.unpaired import desirable_weight_range

_SAMPLES = 8


def pairs_of(
    settings: PairDataSettings, limits: BatchSettings, seed: int, learner: Learner, third: bool = False
) -> Split:
    """Encoded pairs of a file, or of sums; with ``third`` each has a gold response."""
    encoder = Encoder(encode_pairs, learner, limits)
    if settings.data is not None:
        return of_tables(read_triples if third else read_pairs, encoder, settings, seed)
    sums = _sums(seed, learner.tokenizer)
    return of_records(sums.then(_with_gold) if third else sums, encoder, settings.split_size, seed)


def _with_gold(pairs: Sequence[Pair]) -> list[Pair]:
    """The right answer is the gold one too."""
    return [pair._replace(gold=pair.chosen) for pair in pairs]


def labels_of(settings: LabelDataSettings, limits: BatchSettings, seed: int, learner: Learner) -> Split:
    """Encoded labeled completions of a file, or of sums."""
    encoder = Encoder(encode_labeled, learner, limits)
    if settings.data is not None:
        return of_tables(read_labeled, encoder, settings, seed)
    sums = flatten_rows(_sums(seed, learner.tokenizer).then(_labeled_each))
    return of_records(sums, encoder, settings.split_size, seed)


def _labeled_each(pairs: Sequence[Pair]) -> list[Any]:
    return [split_pairs([pair]) for pair in pairs]


def steps_of(settings: PairDataSettings, limits: BatchSettings, seed: int, learner: Learner, separator: str) -> Split:
    """Encoded completions of labeled steps of a file, each step ended by the separator."""
    encoder = Encoder(partial(encode_stepwise, separator=separator), learner, limits)
    return of_tables(read_stepwise, encoder, settings, seed)


def _sums(seed: int, tokenizer: Tokenizer) -> Kept[Pair]:
    """Right answers preferred to those of other sums: neither their size nor their form gives them away."""
    task = load_task(arithmetic_for(tokenizer), held_out_size=1, seed=seed)
    right = np.array([int(row["completion"]) for row in task.train])
    other = np.random.default_rng(seed).permutation(right)
    wrong = np.where(other == right, right + 1, other).tolist()
    pairs = [Pair(row["prompt"], row["completion"], str(one)) for row, one in zip(task.train, wrong, strict=True)]
    return number_rows("arithmetic", pairs)


class Referenced(NamedTuple):
    """A pair with the reference's log-probabilities of its two completions, nats per token."""

    tokens: Any
    log_probs: tuple[np.ndarray, np.ndarray]


def _plain(row: Any) -> Any:
    return row.tokens if isinstance(row, Referenced) else row


def pair_batch(pad_id: int, rows: Sequence[Any], third: bool = False) -> Rows:
    """Pairs as a batch: their margins, and the reference's log-probabilities where the rows have them.

    Args:
        pad_id: the tokenizer's.
        rows: encoded.
        third: with each pair's gold response.
    """
    batch = pair_rows([_plain(row) for row in rows], pad_id, third=third)
    known = _known(rows, batch) if isinstance(rows[0], Referenced) else None
    return Rows(PairedCompletions(batch.completions, batch.margins, known), batch.prompt_width, 2 + third)


def _known(rows: Sequence[Referenced], batch: PairRows) -> jax.Array:
    """The reference's log-probabilities in the layout of the batch."""
    placed = np.zeros(batch.completions.tokens.shape, np.float32)
    for place, values in enumerate(side for row in rows for side in row.log_probs):
        placed[place, batch.prompt_width : batch.prompt_width + len(values)] = values
    return jnp.asarray(placed)


def label_batch(pad_id: int, mismatched: bool, rows: Sequence[Any]) -> Rows:
    """Labeled completions as a batch.

    Args:
        pad_id: the tokenizer's.
        mismatched: with each prompt's mismatched completion, which KTO's reference point alone reads.
        rows: encoded.
    """
    batch = labeled_rows(rows, pad_id)
    step = 1 if mismatched else 2
    completions = jax.tree.map(lambda x: x[::step], batch.completions)
    return Rows(LabeledCompletions(completions, batch.desirable), batch.prompt_width)


def step_batch(pad_id: int, rows: Sequence[Any]) -> Rows:
    """Completions of labeled steps as a batch.

    Args:
        pad_id: the tokenizer's.
        rows: encoded.
    """
    batch = stepwise_rows(rows, pad_id)
    return Rows(SteppedCompletions(batch.completions, batch.ends, batch.right), batch.prompt_width)


def with_reference(
    learner: Learner, log_probs: Callable[[int], Any], size: int, rows: Sequence[Any]
) -> list[Referenced]:
    """The pairs with the log-probabilities that the model gives them before training.

    Args:
        learner: of whose parameters at their start.
        log_probs: ``prompt_width → (params, completions) → …``.
        size: pairs at a time.
        rows: encoded pairs.
    """

    def score(params: Any, frozen: Any, completions: Any, prompt_width: int) -> jax.Array:
        return fixed_log_probs(log_probs(prompt_width), join_trees(params, frozen), completions)

    compiled = jax.jit(score, static_argnums=3)
    found = []
    for start in range(0, len(rows), size):
        taken = rows[start : start + size]
        batch = pair_batch(learner.tokenizer.pad_id, taken)
        completions = batch.batch.completions
        values = fetch(compiled(learner.params, learner.frozen, completions, batch.prompt_width))
        own = values[:, batch.prompt_width :]
        for place, row in enumerate(taken):
            chosen = own[2 * place, : len(row.chosen)]
            rejected = own[2 * place + 1, : len(row.rejected)]
            found.append(Referenced(row, (chosen, rejected)))
    return found


def greedy_samples(limits: BatchSettings, learner: Learner, held_out: Sequence[Any]) -> Samples:
    """Greedy completions of some held-out prompts, for a person to read.

    Args:
        limits: of their lengths.
        learner: what is trained.
        held_out: encoded rows.
    """
    tokenizer = learner.tokenizer
    sampling = Sampling(learner.sampled_shape, tokenizer, limits.max_prompt_tokens)
    request = sampling.request(greedy, limits.max_new_tokens)
    prompts = [row.prompt for row in held_out[:_SAMPLES]]

    def samples(params: Params) -> list[dict[str, Any]]:
        drawn, _ = sampling.complete(learner.sampled(params), prompts, jax.random.key(0), request)
        return [
            {"prompt": tokenizer.decode(prompt), "completion": text, "held_out": True}
            for prompt, text in zip(prompts, sampling.texts(drawn), strict=True)
        ]

    return samples


def warn_of_imbalance(settings: LabelObjectiveSettings, rows: Sequence[Any]) -> None:
    """Say where the class weights are outside the range that KTO's authors recommend."""
    desirable = sum(row.label for row in rows)
    if not 0 < desirable < len(rows) or not settings.undesirable_weight:
        return
    low, high = desirable_weight_range(desirable, len(rows) - desirable, settings.undesirable_weight)
    # Labels are counted, weights are typed: a hair's breadth outside is no reason to speak.
    if not low / 1.01 <= settings.desirable_weight <= high * 1.01:
        print(
            f"kto: {desirable} of {len(rows)} labels are desirable; recommended is a desirable_weight of {low:.3g} to "
            f"{high:.3g} with undesirable_weight {settings.undesirable_weight:g}, it is {settings.desirable_weight:g}.",
            file=sys.stderr,
        )
