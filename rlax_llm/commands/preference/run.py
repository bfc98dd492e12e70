"""The commands ``reward``, ``dpo`` and ``kto`` as functions of their settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.examples import Split, of_records, of_tables
from rlax_llm.commands.learner import Learner, completion_scores, language_learner, scalar_learner
from rlax_llm.commands.preference.objective import build_preference, build_unpaired
from rlax_llm.commands.preference.phase import Method, PreferencePhase, Rows
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.sessions import heading, open_session, title
from rlax_llm.commands.setup import build_model, build_optimizer, build_schedule, with_defaults
from rlax_llm.commands.sft.phase import run_steps
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import LabeledCompletions, PairedCompletions
from rlax_llm.data.batches import PairRows, labeled_rows, pair_rows
from rlax_llm.data.encoding import encode_labeled, encode_pairs
from rlax_llm.data.preferences import Pair, read_labeled, read_pairs, split_pairs
from rlax_llm.data.sifting import Kept, flatten_rows, number_rows
from rlax_llm.data.tasks import load_task
from rlax_llm.generation.sampling import greedy
from rlax_llm.host.endings import report, summary
from rlax_llm.host.progress import Column, say
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import Session
from rlax_llm.loops.labels import LabelLoop, label_loop, reference_point_of_mismatched
from rlax_llm.loops.policy import Loop, fixed_log_probs
from rlax_llm.loops.preference import preference_loop, reward_loop
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.preference.links import logistic
from rlax_llm.preference.marks import reads_reference
from rlax_llm.preference.unpaired import desirable_weight_range

_SAMPLES = 8
_LOSS, _TOKENS = Column("loss", "loss", "{:.4f}"), Column("tokens_per_second", "tokens/s", "{:,.0f}")
_HELD_OUT = Column("held_out_accuracy", "held-out accuracy")
_PAIR_NAMES = {
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen_log_prob": "logps/chosen",
    "rejected_log_prob": "logps/rejected",
}
_LABEL_NAMES = {
    "desirable_reward": "rewards/chosen",
    "undesirable_reward": "rewards/rejected",
    "margin": "rewards/margins",
    "desirable_log_prob": "logps/chosen",
    "undesirable_log_prob": "logps/rejected",
    "desirable": "count/chosen",
    "undesirable": "count/rejected",
}


def run_reward(config: RewardSettings) -> RunDirectory:
    """Train a reward model on preference pairs, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    config = with_defaults(config)
    model = build_model(config)
    learner = scalar_learner(config, model, config.seed)
    rows = _pairs(config, model, learner)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        scores = completion_scores(model.tokenizer, learner.config, (2, prompt_width), bool(config.remat))
        return reward_loop(scores, logistic, optimizer, micro_batches, config.centering_coef)

    columns = (_LOSS, Column("accuracy", "accuracy"), _HELD_OUT, _TOKENS)
    return _run(config, learner, Method(loop, lambda rows: _pair_batch(model, rows), {}, columns), rows)


def run_dpo(config: DpoSettings) -> RunDirectory:
    """Train a language model on preference pairs, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    preference = build_preference(config)
    config = with_defaults(config)
    model = build_model(config)
    learner = language_learner(config, model, config.seed)
    rows = _pairs(config, model, learner)

    def log_probs(prompt_width: int) -> Any:
        return group_log_probs(learner.config, (2, prompt_width), remat=bool(config.remat))

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        return preference_loop(log_probs(prompt_width), preference, optimizer, micro_batches)

    columns = (_LOSS, Column("rewards/accuracies", "accuracy"), Column("rewards/margins", "margin"), _HELD_OUT, _TOKENS)
    method = Method(loop, lambda rows: _pair_batch(model, rows), _PAIR_NAMES, columns)
    if not reads_reference(preference.rewards):
        if config.precompute_reference:
            raise ValueError(f"dpo: recipe {config.recipe} reads no reference; leave precompute_reference out.")
        return _run(config, learner, method, rows)
    if not config.precompute_reference:
        return _run(config, learner, method, rows, live_reference=True)
    size = config.micro_batch_size or config.batch_size or 1
    return _run(config, learner, method, rows, prepare=partial(_referenced, model, learner, log_probs, size))


def run_kto(config: KtoSettings) -> RunDirectory:
    """Train a language model on labeled completions, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    config = with_defaults(config)
    model = build_model(config)
    learner = language_learner(config, model, config.seed)
    rows = _labels(config, model, learner)
    _warn_of_imbalance(config, rows.train)
    loss, reference = build_unpaired(config)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> LabelLoop:
        log_probs = group_log_probs(learner.config, (1, prompt_width), remat=bool(config.remat))
        weights = config.desirable_weight, config.undesirable_weight
        return label_loop(log_probs, loss, optimizer, micro_batches, *weights, reference)

    def collate(rows: Sequence[Any]) -> Rows:
        batch = labeled_rows(rows, model.tokenizer.pad_id)
        # Only KTO's reference point reads the mismatched completions.
        step = 1 if reference is reference_point_of_mismatched else 2
        completions = jax.tree.map(lambda x: x[::step], batch.completions)
        return Rows(LabeledCompletions(completions, batch.desirable), batch.prompt_width)

    columns = (_LOSS, Column("rewards/margins", "margin"), Column("kl", "KL"), _TOKENS)
    return _run(config, learner, Method(loop, collate, _LABEL_NAMES, columns), rows, live_reference=True)


def _run(
    config: RewardSettings | DpoSettings | KtoSettings,
    learner: Learner,
    method: Method,
    rows: Split,
    live_reference: bool = False,
    prepare: Callable[[Sequence[Any]], list[Any]] = list,
) -> RunDirectory:
    """The method's steps as a run; ``prepare`` is done to both parts of the rows once the run has its directory."""
    steps = config.steps or 0
    optimizer = build_optimizer(config, build_schedule(config, config.learning_rate or 0.0, steps))
    # What the loop refuses it refuses before there is a directory.
    method.loop(optimizer, 1, (config.batch_size or 1) // (config.micro_batch_size or config.batch_size or 1))
    session = open_session(config)
    with session.running(learner.export, lambda: summary(session, heading(config), steps), title(config)) as stop:
        began, rows = session.position, Split(*map(prepare, rows))
        fixed: dict[str, Any] = {"frozen": learner.frozen}
        fixed |= {"reference": session.reference(learner.params)} if live_reference else {}
        phase = PreferencePhase(config, method, rows.train, rows.held_out, optimizer, fixed)
        session.begin(phase.init(learner.params))
        if session.position == 0:
            session.log(phase.evaluate(learner.params))
            _log_samples(config, session, learner, learner.params, rows)
        run_steps(session, phase, steps, phase.evaluate, stop)
        if began < session.position == steps:
            _log_samples(config, session, learner, session.state.params, rows)
    say(report(session, steps))
    return session.directory


def _log_samples(
    config: RewardSettings | DpoSettings | KtoSettings, session: Session, learner: Learner, params: Any, rows: Split
) -> None:
    """Greedy completions of some held-out prompts, for a person to read; a reward model has none."""
    if "score" in params or not rows.held_out:
        return
    tokenizer = learner.tokenizer
    sampling = Sampling(learner.sampled_shape, tokenizer, config.max_prompt_tokens or 0)
    prompts = [_plain(row).prompt for row in rows.held_out[:_SAMPLES]]
    request = sampling.request(greedy, config.max_new_tokens or 0)
    drawn, _ = sampling.complete(learner.sampled(params), prompts, jax.random.key(0), request)
    session.directory.log_completions(
        [
            {"step": session.step, "prompt": tokenizer.decode(prompt), "completion": text, "held_out": True}
            for prompt, text in zip(prompts, sampling.texts(drawn), strict=True)
        ]
    )


def _pairs(config: RewardSettings | DpoSettings, model: LanguageModel, learner: Learner) -> Split:
    if config.data is not None:
        return of_tables(read_pairs, encode_pairs, learner, config)
    return of_records(_sums(config, model), encode_pairs, learner, config)


def _labels(config: KtoSettings, model: LanguageModel, learner: Learner) -> Split:
    if config.data is not None:
        return of_tables(read_labeled, encode_labeled, learner, config)
    return of_records(flatten_rows(_sums(config, model).then(_labeled_each)), encode_labeled, learner, config)


def _labeled_each(pairs: Sequence[Pair]) -> list[Any]:
    return [split_pairs([pair]) for pair in pairs]


def _sums(config: RewardSettings | DpoSettings | KtoSettings, model: LanguageModel) -> Kept[Pair]:
    """Right answers preferred to those of other sums: neither their size nor their form gives them away."""
    form = "arithmetic-words" if model.tokenizer.has_chat_template else "arithmetic"
    task = load_task(form, held_out_size=1, seed=config.seed)
    right = np.array([int(row["completion"]) for row in task.train])
    other = np.random.default_rng(config.seed).permutation(right)
    wrong = np.where(other == right, right + 1, other).tolist()
    pairs = [Pair(row["prompt"], row["completion"], str(one)) for row, one in zip(task.train, wrong, strict=True)]
    return number_rows("arithmetic", pairs)


class _Referenced(NamedTuple):
    """A pair with the reference's log-probabilities of its two completions, nats a token."""

    tokens: Any
    log_probs: tuple[np.ndarray, np.ndarray]


def _plain(row: Any) -> Any:
    return row.tokens if isinstance(row, _Referenced) else row


def _pair_batch(model: LanguageModel, rows: Sequence[Any]) -> Rows:
    batch = pair_rows([_plain(row) for row in rows], model.tokenizer.pad_id)
    ref_log_probs = _known(rows, batch) if isinstance(rows[0], _Referenced) else None
    return Rows(PairedCompletions(batch.completions, batch.margins, ref_log_probs), batch.prompt_width)


def _known(rows: Sequence[_Referenced], batch: PairRows) -> jax.Array:
    """The reference's log-probabilities in the layout of the batch."""
    placed = np.zeros(batch.completions.tokens.shape, np.float32)
    for place, values in enumerate(side for row in rows for side in row.log_probs):
        placed[place, batch.prompt_width : batch.prompt_width + len(values)] = values
    return jnp.asarray(placed)


def _referenced(
    model: LanguageModel, learner: Learner, log_probs: Callable[[int], Any], size: int, rows: Sequence[Any]
) -> list[_Referenced]:
    """The pairs with the log-probabilities that the model gives them before training."""

    def score(params: Any, frozen: Any, completions: Any, prompt_width: int) -> jax.Array:
        return fixed_log_probs(log_probs(prompt_width), join_trees(params, frozen), completions)

    compiled, found = jax.jit(score, static_argnums=3), []
    for start in range(0, len(rows), size):
        taken = rows[start : start + size]
        batch = _pair_batch(model, taken)
        completions = batch.batch.completions
        values = np.asarray(compiled(learner.params, learner.frozen, completions, batch.prompt_width))
        own = values[:, batch.prompt_width :]
        found += [
            _Referenced(row, (own[2 * i, : len(row.chosen)], own[2 * i + 1, : len(row.rejected)]))
            for i, row in enumerate(taken)
        ]
    return found


def _warn_of_imbalance(config: KtoSettings, rows: Sequence[Any]) -> None:
    """Say where the class weights are outside the range that KTO's authors recommend."""
    desirable = sum(row.label for row in rows)
    if not 0 < desirable < len(rows) or not config.undesirable_weight:
        return
    low, high = desirable_weight_range(desirable, len(rows) - desirable, config.undesirable_weight)
    # Labels are counted, weights are typed: a hair's breadth outside is no reason to speak.
    if not low / 1.01 <= config.desirable_weight <= high * 1.01:
        print(
            f"kto: {desirable} of {len(rows)} labels are desirable; recommended is a desirable_weight of {low:.3g} to "
            f"{high:.3g} beside undesirable_weight {config.undesirable_weight:g}, it is {config.desirable_weight:g}.",
            file=sys.stderr,
        )
