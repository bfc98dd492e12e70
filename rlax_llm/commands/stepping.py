"""Rewards of the steps of completions: what a function or a process reward model says of each, at its last token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from rlax_llm.commands.rollouts import Rollout
from rlax_llm.commands.setup import scalar_model
from rlax_llm.commands.shared_settings import ModelSettings
from rlax_llm.commands.task_settings import StepSettings
from rlax_llm.core.mesh import fetch
from rlax_llm.core.processes import done_by_all, share
from rlax_llm.core.user_code import told
from rlax_llm.data.batches import stepwise_rows
from rlax_llm.data.encoding import encode_stepwise
from rlax_llm.data.preferences import Stepwise
from rlax_llm.data.rows import DataError, Row
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.scalar import prefix_scores
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.calling import NoRowScored, Reward, RewardError, Scores, refuse, scored_none
from rlax_llm.rewards.steps import load_step_reward, locate_steps, score_steps

StepScorer = Callable[[Sequence[Row], Sequence[list[str]], int], list[list[float] | None]]
"""``(rows, texts of the steps, group_size) → numbers``: NaN for a step, None for a row that has none."""


class StepRewards(NamedTuple):
    """What the steps of N completions earned.

    Attributes:
        rewards: float32 ``[N, S]``, over the columns behind the prompts: at the last token of each step, NaN elsewhere.
        failed: bool ``[N]``, the completions that a scorer could not score.
    """

    rewards: np.ndarray
    failed: np.ndarray


class StepJudge:
    """Scores the steps of rollouts.

    Args:
        tokenizer: the policy's.
        separator: that ends a step.
        scorers: whose numbers are added up.
    """

    def __init__(self, tokenizer: Tokenizer, separator: str, scorers: Sequence[StepScorer]):
        self.tokenizer, self.separator, self.scorers = tokenizer, separator, scorers

    def __call__(self, rollout: Rollout, group_size: int) -> StepRewards:
        """Score the steps of what the model wrote; a beginning of the answer in the prompt is none of them.

        Args:
            rollout: what was sampled.
            group_size: its completions of a prompt.

        Raises:
            RewardError: a function that cannot be used, or a completion that a model cannot read.
        """
        tokens, mask = (np.asarray(x) for x in (rollout.completions.tokens, rollout.completions.mask))
        found = [
            locate_steps(self.tokenizer.decode, own[chosen].tolist(), text, self.separator)
            for own, chosen, text in zip(tokens, mask, rollout.texts, strict=True)
        ]
        texts = [[step.text for step in steps] for steps in found]
        rewards = np.full(tokens.shape, np.nan, np.float32)
        failed = np.zeros(len(tokens), bool)
        for scorer in self.scorers:
            for i, numbers in enumerate(scorer(rollout.rows, texts, group_size)):
                failed[i] |= numbers is None
                columns = np.flatnonzero(mask[i])[[step.end for step in found[i]]]
                rewards[i, columns] = _sum(rewards[i, columns], np.asarray(numbers or [np.nan] * len(columns)))
        return StepRewards(rewards[:, rollout.prompt_width :], failed)


def _sum(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where one abstains the other stands alone."""
    return np.where(np.isnan(left), right, left + np.nan_to_num(right))


def by_function(reward: Reward, failed: Callable[[str], None] = refuse) -> StepScorer:
    """A Python function of steps; each process asks it of its own groups, and all have all numbers.

    Args:
        reward: of ``load_step_reward``.
        failed: called with a sentence on each row that it raised on; where it returns, that row has no score.
    """

    def one(row: Row, steps: list[str], index: int) -> list[float] | str:
        try:
            return score_steps(reward, row, steps, index)
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            failed(f"reward {reward.name!r} raised {told(error)} on row {index}.")
            return told(error)

    def scored(rows: Sequence[Row], steps: Sequence[list[str]], group_size: int) -> list[list[float] | None]:
        groups = share(len(rows) // group_size)
        own = range(groups.start * group_size, groups.stop * group_size)
        parts = done_by_all(lambda: [one(rows[i], steps[i], i) for i in own], RewardError)
        found = [numbers for part in parts for numbers in part]
        raised = [numbers for numbers in found if isinstance(numbers, str)]
        if len(raised) == len(found):
            raise NoRowScored(reward.name, scored_none(reward.name, raised[0], len(found)))
        return [None if isinstance(numbers, str) else numbers for numbers in found]

    return scored


def by_model(model: LanguageModel, separator: str) -> StepScorer:
    """A process reward model: of each step the probability that it is right, ``σ(score)`` at its last token.

    It reads the texts with its own tokenizer, as it read those that it was trained on.

    Args:
        model: a scalar model.
        separator: that ends a step.
    """

    @lru_cache
    def program(layout: tuple[int, int]) -> Any:
        scores = prefix_scores(model.config, layout)

        def step_scores(params: Any, completions: Any) -> jax.Array:
            return jax.nn.sigmoid(scores(params, completions))

        return jax.jit(step_scores)

    def scored(rows: Sequence[Row], steps: Sequence[list[str]], group_size: int) -> list[list[float] | None]:
        records = [
            Stepwise(row["prompt"], own, [False] * len(own), f"row {index}")
            for index, (row, own) in enumerate(zip(rows, steps, strict=True))
        ]
        try:
            encoded = encode_stepwise(model.tokenizer, records, separator)
        except DataError as error:
            raise RewardError(f"the step reward model cannot read a completion: {error}") from error
        batch = stepwise_rows(encoded, model.tokenizer.pad_id, group_size=group_size)
        values = np.asarray(fetch(program((group_size, batch.prompt_width))(model.params, batch.completions)))
        ends = np.asarray(batch.ends)
        bad = np.flatnonzero((ends & ~np.isfinite(values)).any(-1))
        if bad.size:
            raise RewardError(f"the step reward model gives row {bad[0]} a score that is no finite number.")
        return [own[places].tolist() for own, places in zip(values, ends, strict=True)]

    return scored


def build_step_judge(
    settings: StepSettings, model: ModelSettings, tokenizer: Tokenizer, failed: Callable[[str], None] = refuse
) -> StepJudge | None:
    """What scores steps, or None where nothing is to.

    Args:
        settings: of the task.
        model: of the policy, whose number formats a step reward model shares.
        tokenizer: the policy's.
        failed: called with a sentence on each row that a function raised on.

    Raises:
        ValueError: a function or a model that cannot be read, or a separator that nobody can write.
    """
    if not settings.judges_steps:
        return None
    separator, scorers = settings.separator, []
    _check_separator("the model", tokenizer, separator)
    if settings.step_reward is not None:
        scorers.append(by_function(load_step_reward(settings.step_reward), failed))
    if settings.step_reward_model is not None:
        judge = scalar_model(settings.step_reward_model, model)
        _check_separator(settings.step_reward_model, judge.tokenizer, separator)
        scorers.append(by_model(judge, separator))
    return StepJudge(tokenizer, separator, scorers)


def _check_separator(whose: str, tokenizer: Tokenizer, separator: str) -> None:
    try:
        tokenizer.encode(separator)
    except ValueError as error:
        raise ValueError(
            f"step_separator is {separator!r}, which {whose} has no tokens for, so that no step would end; give a text "
            "that completions hold."
        ) from error


def step_rewards_of(rollout: Rollout, scores: Scores) -> np.ndarray | None:
    """What the steps earned, over all columns ``[N, T]``, NaN where none ends; None where nobody scored steps.

    Args:
        rollout: the completions.
        scores: of them.
    """
    if scores.steps is None:
        return None
    return np.pad(scores.steps, ((0, 0), (rollout.prompt_width, 0)), constant_values=np.nan)
