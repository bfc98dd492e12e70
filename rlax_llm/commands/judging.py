"""Scores of a rollout: Python rewards, a reward model, and what their lengths cost, added up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.learner import completion_scores
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.commands.stepping import StepJudge
from rlax_llm.core.mesh import fetch
from rlax_llm.core.processes import done_by_all, several, share
from rlax_llm.data.messages import begun_answer
from rlax_llm.data.tasks import Row
from rlax_llm.models.loading import LanguageModel
from rlax_llm.rewards.calling import NoRowScored, Reward, RewardError, Scores, refuse, score
from rlax_llm.rewards.pool import RewardPool

REWARD_MODEL, STEP_REWARD = "reward_model", "step_reward"
Punishment = Callable[[np.ndarray], np.ndarray]


class Judge:
    """Scores rollouts.

    Args:
        rewards: Python functions; none is allowed beside a reward model.
        model: a reward model with the policy's vocabulary, or None.
        punishment: its name, and ``lengths [B] → scores [B]`` to be added (``soft_overlong_punishment``), or None.
        failed: called with a sentence on each row that a function failed on; where it returns, that row has no score.
        steps: scores their steps, whose rewards are added to a completion's score; or None.

    Attributes:
        graded: functions tell right from wrong; a reward model alone does not.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        model: LanguageModel | None = None,
        punishment: tuple[str, Punishment] | None = None,
        failed: Callable[[str], None] = refuse,
        steps: StepJudge | None = None,
    ):
        self.rewards, self.model, self.punishment, self.failed = rewards, model, punishment, failed
        self.steps, self.graded = steps, bool(rewards)
        others = model is not None or steps is not None
        if rewards and not others and not any(reward.weight for reward in rewards):
            raise RewardError("rewards: every weight is 0, wanted one that counts; give one of them another weight.")
        self._program = lru_cache(self._compiled)

    def weights(self) -> tuple[float, ...]:
        """Of each entry of ``Scores.by_name``."""
        others = (self.model, self.steps, self.punishment)
        return (*(reward.weight for reward in self.rewards), *[1.0] * sum(other is not None for other in others))

    def _compiled(self, group_size: int, prompt_width: int) -> Any:
        assert self.model is not None
        tokenizer, shape = self.model.tokenizer, self.model.config
        return jax.jit(completion_scores(tokenizer, shape, (group_size, prompt_width), False))

    def __call__(self, rollout: Rollout, group_size: int) -> Scores:
        """Score each completion. A function reads the whole answer, the beginning that a prompt may hold included.

        Args:
            rollout: what was sampled.
            group_size: its completions of a prompt.

        Raises:
            RewardError: a function that cannot be used, or raised where ``failed`` does not return.
        """
        count = len(rollout.rows)
        nothing = Scores(np.full(count, np.nan, np.float32), {}, np.zeros(count, bool))
        pairs = zip(rollout.rows, rollout.texts, strict=True)
        answers = [begun_answer(row["prompt"]) + text for row, text in pairs]
        found = self._scored(rollout.rows, answers, group_size) if self.rewards else nothing
        if self.model is not None:
            judged = self._program(group_size, rollout.prompt_width)(self.model.params, rollout.completions)
            # Where all functions abstain the model's score stands alone; where one failed there is none.
            known = np.where(found.failed, np.nan, np.nan_to_num(found.total))
            found = found._replace(total=known).plus(REWARD_MODEL, _finite(np.asarray(fetch(judged), np.float32)))
        if self.steps is not None:
            found = found.plus_steps(STEP_REWARD, *self.steps(rollout, group_size))
        if self.punishment is not None:
            name, punish = self.punishment
            found = found.plus(name, np.asarray(punish(rollout.written()), np.float32))
        return found

    def _scored(self, rows: Sequence[Row], answers: Sequence[str], group_size: int) -> Scores:
        """What the functions give: each process asks them of its own groups, and all have all scores."""
        groups = share(len(rows) // group_size)
        own = slice(groups.start * group_size, groups.stop * group_size)

        def scored() -> dict[str, Any]:
            without: dict[str, str] = {}

            def note(error: NoRowScored) -> None:
                without[error.reward] = str(error)

            found = score(self.rewards, rows[own], answers[own], self.failed, own.start, note)
            return as_told(found) | {"without": without}

        if not several():
            return score(self.rewards, rows, answers, self.failed)
        parts = [part for part in done_by_all(scored, RewardError) if part["total"]]
        for reward in self.rewards:
            if all(reward.name in part["without"] for part in parts):
                raise NoRowScored(reward.name, parts[0]["without"][reward.name])
        return Scores.together([as_heard(part) for part in parts])

    def unpunished(self, scores: Scores, several: bool) -> np.ndarray:
        """Scores before length is punished, ``[K, N]``: the total, or each reward that counts where ``several``."""
        name = None if self.punishment is None else self.punishment[0]
        if not several:
            return (scores.total - scores.by_name.get(name or "", 0.0))[None]
        named = zip(scores.by_name.items(), self.weights(), strict=True)
        counted = [values for (reward, values), weight in named if weight and reward != name]
        return np.where(np.isnan(scores.total), np.nan, np.stack(counted))


def as_told(scores: Scores) -> dict[str, Any]:
    """Scores of functions as JSON, for the other processes.

    Args:
        scores: without those of steps.
    """
    numbers = jax.tree.map(np.ndarray.tolist, scores._replace(feedback=None)._asdict())
    return numbers | {"feedback": scores.feedback}


def as_heard(told: dict[str, Any]) -> Scores:
    """Scores that another process told of.

    Args:
        told: what ``as_told`` made of them.

    >>> one = np.ones(1, np.float32)
    >>> as_heard(as_told(Scores(one, {"f": one}, one > 1, feedback=("short",)))).feedback
    ('short',)
    """
    by_name = {name: np.array(values, np.float32) for name, values in told["by_name"].items()}
    said = None if told["feedback"] is None else tuple(told["feedback"])
    return Scores(np.array(told["total"], np.float32), by_name, np.array(told["failed"], bool), feedback=said)


def _finite(scores: np.ndarray) -> np.ndarray:
    """A reward model's scores, unless one is not a number."""
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise RewardError(f"the reward model's score of row {row} is {scores[row]}, wanted a finite number.")
    return scores


class Failures:
    """Warns of the first few rows that a reward failed on."""

    shown = 3

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, reason: str) -> None:
        """Warn of one row, or only count it."""
        self.count += 1
        if self.count <= self.shown:
            more = " Further ones are only counted (metric reward_failures)." if self.count == self.shown else ""
            print(f"warning: {reason}{more}", file=sys.stderr)


@contextmanager
def pooled(
    rewards: Sequence[Reward], workers: int, timeout: float, failed: Callable[[str], None]
) -> Iterator[tuple[Reward, ...]]:
    """The rewards, each called in so many worker processes of its own; none for 0 workers.

    Args:
        rewards: that were loaded by name.
        workers: processes of each.
        timeout: seconds that one row may take.
        failed: called with a sentence on each row that took longer or raised; it has no score.
    """
    with ExitStack() as stack:
        if not workers:
            yield tuple(rewards)
            return
        yield tuple(stack.enter_context(RewardPool(reward, workers, timeout, failed)).reward for reward in rewards)
