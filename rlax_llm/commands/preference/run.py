"""The commands ``reward``, ``dpo`` and ``kto`` as functions of their settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import Split
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, completion_scores, language_learner, scalar_learner
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.optimizers import build_averaging
from rlax_llm.commands.preference.objective import build_preference, build_unpaired
from rlax_llm.commands.preference.phase import Method, PreferencePhase, Rows
from rlax_llm.commands.preference.rows import (
    greedy_samples,
    label_batch,
    labels_of,
    pair_batch,
    pairs_of,
    step_batch,
    steps_of,
    warn_of_imbalance,
    with_reference,
)
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.setup import build_model, build_schedule
from rlax_llm.host.progress import Column
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.loops.labels import label_loop, reference_point_of_mismatched
from rlax_llm.loops.policy import Loop
from rlax_llm.loops.preference import preference_loop, reward_loop, rows_of_pair
from rlax_llm.loops.process import process_loop
from rlax_llm.loops.references import following_reference
from rlax_llm.models.scalar import prefix_scores
from rlax_llm.models.scoring import group_log_probs, group_log_probs_with_collisions
from rlax_llm.preference.links import logistic
from rlax_llm.preference.marks import reads_collisions, reads_reference
from rlax_llm.preference.pairs import Preference

_LOSS, _TOKENS = Column("loss", "loss", "{:.4f}"), Column("tokens_per_second", "tokens/s", "{:,.0f}")
_HELD_OUT = Column("held_out_accuracy", "held-out accuracy")
_JUDGED = (_LOSS, Column("accuracy", "accuracy"), _HELD_OUT, _TOKENS)
PAIR_NAMES = {
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen_log_prob": "logps/chosen",
    "rejected_log_prob": "logps/rejected",
}
"""TRL's names, by the loop's."""
_LABEL_NAMES = {
    "desirable_reward": "rewards/chosen",
    "undesirable_reward": "rewards/rejected",
    "margin": "rewards/margins",
    "desirable_log_prob": "logps/chosen",
    "undesirable_log_prob": "logps/rejected",
    "desirable": "count/chosen",
    "undesirable": "count/rejected",
}


def reward_method(settings: RewardSettings, learner: Learner) -> Method:
    """How a reward model is learned.

    Args:
        settings: of the command.
        learner: a scalar model.
    """

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        scores = completion_scores(learner.tokenizer, learner.config, (2, prompt_width), settings.model.remat)
        return reward_loop(scores, logistic, optimizer, micro_batches, settings.objective.centering_coef)

    return Method(loop, partial(pair_batch, learner.tokenizer.pad_id), {}, _JUDGED)


def process_method(settings: RewardSettings, learner: Learner) -> Method:
    """How a process reward model is learned.

    Args:
        settings: of the command.
        learner: a scalar model.
    """

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        scores = prefix_scores(learner.config, (1, prompt_width), settings.model.remat)
        return process_loop(scores, optimizer, micro_batches)

    return Method(loop, partial(step_batch, learner.tokenizer.pad_id), {}, _JUDGED)


def dpo_method(settings: DpoSettings, learner: Learner, preference: Preference) -> Method:
    """How pairs are learned from.

    Args:
        settings: of the command.
        learner: a language model.
        preference: of its recipe.

    Raises:
        ValueError: where a reference is to be computed that the recipe does not read.
    """
    referenced, computed = reads_reference(preference.rewards), settings.objective.precompute_reference
    if computed and not referenced:
        raise ValueError(f"dpo: recipe {settings.objective.recipe} reads no reference; leave precompute_reference out.")
    every = settings.objective.reference_every
    if every and not referenced:
        raise ValueError(f"dpo: recipe {settings.objective.recipe} reads no reference; leave reference_every out.")

    def log_probs(prompt_width: int) -> Any:
        score = group_log_probs_with_collisions if reads_collisions(preference.factors) else group_log_probs
        return score(learner.config, (rows_of_pair(preference), prompt_width), remat=settings.model.remat)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        learned = preference_loop(log_probs(prompt_width), preference, optimizer, micro_batches)
        return following_reference(learned, every, settings.objective.reference_mix) if every else learned

    columns = (_LOSS, Column("rewards/accuracies", "accuracy"), Column("rewards/margins", "margin"), _HELD_OUT, _TOKENS)
    collate = partial(pair_batch, learner.tokenizer.pad_id, third=rows_of_pair(preference) == 3)
    method = Method(loop, collate, PAIR_NAMES, columns, reads_reference=referenced and not computed and not every)
    if not computed:
        return method
    return method._replace(prepare=partial(with_reference, learner, log_probs, settings.batch.rows_together))


def kto_method(settings: KtoSettings, learner: Learner) -> Method:
    """How labels are learned from.

    Args:
        settings: of the command.
        learner: a language model.
    """
    loss, reference = build_unpaired(settings.objective)

    def loop(optimizer: Any, prompt_width: int, micro_batches: int) -> Loop[Any, Any]:
        log_probs = group_log_probs(learner.config, (1, prompt_width), remat=settings.model.remat)
        weights = settings.objective.desirable_weight, settings.objective.undesirable_weight
        return label_loop(log_probs, loss, optimizer, micro_batches, *weights, reference)

    def collate(rows: Sequence[Any]) -> Rows:
        return label_batch(learner.tokenizer.pad_id, reference is reference_point_of_mismatched, rows)

    columns = (_LOSS, Column("rewards/margins", "margin"), Column("kl", "KL"), _TOKENS)
    return Method(loop, collate, _LABEL_NAMES, columns, reads_reference=True)


@on_machine
def run_reward(settings: RewardSettings) -> RunDirectory:
    """Train a reward model on preference pairs, or on labeled steps, and leave a run directory.

    Args:
        settings: of the command.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    batch, seed = settings.batch, settings.run.seed
    model = build_model("reward", settings.model, seed, batch)
    learner = scalar_learner(settings.model, model, seed)
    if settings.objective.process:
        steps = steps_of(settings.task, batch, seed, learner, settings.objective.separator)
        return _run(settings, learner, process_method(settings, learner), steps)
    rows = pairs_of(settings.task, batch, seed, learner)
    return _run(settings, learner, reward_method(settings, learner), rows)


@on_machine
def run_dpo(settings: DpoSettings) -> RunDirectory:
    """Train a language model on preference pairs, and leave a run directory.

    Args:
        settings: of the command.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    batch, seed = settings.batch, settings.run.seed
    preference = build_preference(settings.objective)
    model = build_model("dpo", settings.model, seed, batch)
    learner = language_learner(settings.model, model, seed)
    method = dpo_method(settings, learner, preference)
    rows = pairs_of(settings.task, batch, seed, learner, rows_of_pair(preference) == 3)
    method = method._replace(samples=greedy_samples(batch, learner, rows.held_out))
    return _run(settings, learner, method, rows, settings.objective.recipe)


@on_machine
def run_kto(settings: KtoSettings) -> RunDirectory:
    """Train a language model on labeled completions, and leave a run directory.

    Args:
        settings: of the command.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    batch, seed = settings.batch, settings.run.seed
    model = build_model("kto", settings.model, seed, batch)
    learner = language_learner(settings.model, model, seed)
    rows = labels_of(settings.task, batch, seed, learner)
    warn_of_imbalance(settings.objective, rows.train)
    method = kto_method(settings, learner)._replace(samples=greedy_samples(batch, learner, rows.held_out))
    return _run(settings, learner, method, rows, settings.objective.recipe)


def _run(
    settings: RewardSettings | DpoSettings | KtoSettings,
    learner: Learner,
    method: Method,
    rows: Split,
    recipe: str | None = None,
) -> RunDirectory:
    schedule = build_schedule(settings.optimizer, settings.optimizer.learning_rate, settings.run.steps)
    optimizer = build_averaging(settings.optimizer, schedule)
    batching = Batching(settings.batch.batch_size, settings.run.seed, settings.batch.micro_batches)
    phase = PreferencePhase(settings.command, learner, method, rows, optimizer, batching)
    return run_language(settings, phase, learner.params, recipe=recipe)
