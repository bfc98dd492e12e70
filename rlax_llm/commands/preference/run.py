"""The commands ``reward``, ``dpo`` and ``kto`` as functions of their settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import Split
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, completion_scores, language_learner, scalar_learner
from rlax_llm.commands.preference.objective import build_preference, build_unpaired
from rlax_llm.commands.preference.phase import Method, PreferencePhase, Rows
from rlax_llm.commands.preference.rows import (
    greedy_samples,
    label_batch,
    labels_of,
    pair_batch,
    pairs_of,
    warn_of_imbalance,
    with_reference,
)
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.setup import build_model, build_optimizer, build_schedule
from rlax_llm.host.progress import Column
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.loops.labels import label_loop, reference_point_of_mismatched
from rlax_llm.loops.policy import Loop
from rlax_llm.loops.preference import preference_loop, reward_loop
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.preference.links import logistic
from rlax_llm.preference.marks import reads_reference

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
    model = build_model(config)
    learner = scalar_learner(config.model, model, config.run.seed)
    rows = pairs_of(config, model, learner)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        scores = completion_scores(model.tokenizer, learner.config, (2, prompt_width), config.model.remat)
        return reward_loop(scores, logistic, optimizer, micro_batches, config.centering_coef)

    columns = (_LOSS, Column("accuracy", "accuracy"), _HELD_OUT, _TOKENS)
    return _run(config, learner, Method(loop, partial(pair_batch, model.tokenizer.pad_id), {}, columns), rows)


def run_dpo(config: DpoSettings) -> RunDirectory:
    """Train a language model on preference pairs, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    preference = build_preference(config)
    model = build_model(config)
    learner = language_learner(config.model, model, config.run.seed)
    rows = pairs_of(config, model, learner)
    referenced = reads_reference(preference.rewards)
    if config.precompute_reference and not referenced:
        raise ValueError(f"dpo: recipe {config.recipe} reads no reference; leave precompute_reference out.")

    def log_probs(prompt_width: int) -> Any:
        return group_log_probs(learner.config, (2, prompt_width), remat=config.model.remat)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        return preference_loop(log_probs(prompt_width), preference, optimizer, micro_batches)

    columns = (_LOSS, Column("rewards/accuracies", "accuracy"), Column("rewards/margins", "margin"), _HELD_OUT, _TOKENS)
    method = Method(
        loop,
        partial(pair_batch, model.tokenizer.pad_id),
        _PAIR_NAMES,
        columns,
        reads_reference=referenced and not config.precompute_reference,
        samples=greedy_samples(config.batch, learner, rows.held_out),
    )
    if config.precompute_reference:
        size = config.batch.micro_batch_size or config.batch.batch_size
        method = method._replace(prepare=partial(with_reference, learner, log_probs, size))
    return _run(config, learner, method, rows)


def run_kto(config: KtoSettings) -> RunDirectory:
    """Train a language model on labeled completions, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    model = build_model(config)
    learner = language_learner(config.model, model, config.run.seed)
    rows = labels_of(config, model, learner)
    warn_of_imbalance(config, rows.train)
    loss, reference = build_unpaired(config)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        log_probs = group_log_probs(learner.config, (1, prompt_width), remat=config.model.remat)
        weights = config.desirable_weight, config.undesirable_weight
        return label_loop(log_probs, loss, optimizer, micro_batches, *weights, reference)

    def collate(rows: Sequence[Any]) -> Rows:
        return label_batch(model.tokenizer.pad_id, reference is reference_point_of_mismatched, rows)

    columns = (_LOSS, Column("rewards/margins", "margin"), Column("kl", "KL"), _TOKENS)
    samples = greedy_samples(config.batch, learner, rows.held_out)
    method = Method(loop, collate, _LABEL_NAMES, columns, reads_reference=True, samples=samples)
    return _run(config, learner, method, rows)


def _run(
    config: RewardSettings | DpoSettings | KtoSettings, learner: Learner, method: Method, rows: Split
) -> RunDirectory:
    optimizer = build_optimizer(
        config.optimizer, build_schedule(config.optimizer, config.optimizer.learning_rate, config.run.steps)
    )
    batching = Batching(config.batch.batch_size, config.run.seed, config.batch.micro_batches)
    phase = PreferencePhase(config.command, learner, method, rows, optimizer, batching)
    return run_language(config, phase, learner.params)
