"""The settings of ``rlax-llm distill``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.descriptions import DATA_HELP, INTEGERS_HELP, REWARD_HELP, REWARDS
from rlax_llm.commands.fields import Part, at_least, check_countable, option, unescaped, within
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import SamplingSettings
from rlax_llm.commands.shared_settings import (
    EpochSettings,
    OptimizerSettings,
    ReplayedRolloutSettings,
    RunSettings,
    TrainedModelSettings,
    check_draws_all,
)
from rlax_llm.commands.task_settings import BuiltInSettings, HeldOutSettings
from rlax_llm.core.user_code import is_own
from rlax_llm.core.wording import check_template
from rlax_llm.recipes.registry import find, recipes, with_papers

_TEACHER_HELP = (
    "What is learned from: a model of any family with the student's tokenizer, as --model takes it; adapters (over the "
    "student's own base they need no second copy of it where it trains adapters too); or a .parquet file that "
    "--write-teacher made. sdft, opsd and sdpo have none: there the student teaches itself."
)
_RECIPE_HELP = (
    f"Named way of distillation: {with_papers('distillation')}; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, "
    "which returns a Distillation."
)
PARQUET = ".parquet"
SCORED = ("opd_grpo", "sdpo", "trl:sdpo")
"""Recipes that compare a prompt's completions by their scores."""
TOLD = ("sdpo", "trl:sdpo")
"""Recipes whose teacher is shown right attempts and feedback; those of a user's own may be too."""
TEMPLATES = {"teacher_prompt": ("prompt", "hint"), "attempt_template": ("hint",), "feedback_template": ("hint",)}
"""Settings that are templates, and what stands in them."""
FEEDBACK_TOKENS = 256
"""Tokens of a feedback that are shown where nobody says how many."""
OWN = ("sdft", "opsd", "sdpo", "trl:sdpo")
"""Recipes whose teacher is the student itself."""


def is_stored(teacher: str | None) -> bool:
    """Whether a teacher is a file of what one said.

    >>> is_stored("said.parquet"), is_stored("smollm2"), is_stored(None)
    (True, False, False)
    """
    return teacher is not None and teacher.endswith(PARQUET)


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(Part):
    """Who is learned from, and how."""

    teacher: str | None = option(None, _TEACHER_HELP, "none", "TEACHER")
    recipe: str = option("opd", _RECIPE_HELP, metavar="RECIPE", values=tuple(recipes("distillation")))
    beta: float | None = option(
        None, "Of gkd's divergence, from 0 (forward KL) to 1 (reverse KL).", "the recipe's, 0.5"
    )
    on_policy: float | None = option(
        None,
        "Share of the steps whose completions the student draws (gkd); in the others they are the data's.",
        "the recipe's, 0.5",
    )
    gamma: float | None = option(
        None, "How much more the first token counts than one behind all of the gap (iw_opd).", "the recipe's, 0.5"
    )
    coef: float | None = option(
        None,
        "Weight of the teacher beside the reward (opd_grpo); in trl:sdpo w of (1 − w) · policy loss + w · distillation "
        "loss.",
        "the recipe's, 1",
    )
    reward_coef: float | None = option(None, "Weight of GRPO's advantage beside the teacher (sdpo).", "the recipe's, 0")
    follows: float | None = option(
        None, "Share of the student that its own teacher takes on after each step (sdft, sdpo).", "the recipe's, 0.05"
    )
    separator: str | None = option(
        None,
        "Text between an answer that the teacher is shown and the prompt behind it (sdft, opsd, sdpo), which the model "
        r"must be able to write; \n is a new line, \t a tab, \\ a backslash.",
        r"the recipe's, \n",
        empty=True,
    )
    teacher_prompt: str | None = option(
        None,
        "What a student that teaches itself is asked as a teacher (sdft, opsd, sdpo), in the place of a separator: "
        "{prompt} stands for what it reads as a student, {hint} for the answer, attempt or feedback that it is shown.",
        "the prompt, the hint, the prompt",
        "TEXT",
    )
    attempt_template: str | None = option(
        None, "How sdpo's teacher is shown a right attempt, where {hint} stands for it.", "the attempt", "TEXT"
    )
    feedback_template: str | None = option(
        None, "How sdpo's teacher is shown feedback, where {hint} stands for it.", "behind the separator", "TEXT"
    )
    max_feedback_tokens: int = option(
        FEEDBACK_TOKENS, "Tokens of a feedback that sdpo's teacher is shown; of a longer one its end.", metavar="INT"
    )
    teacher_top_k: int = option(
        0,
        "Compare the teacher's k likeliest tokens and one bucket for the rest; 0 compares the whole vocabulary.",
        metavar="INT",
    )
    write_teacher: str | None = option(
        None,
        "Train nothing: write the teacher's likeliest tokens at each token of the data's completions to this .parquet "
        "file, as many as --teacher-top-k says, else 64.",
        "train",
        "FILE.parquet",
    )

    def check(self) -> None:
        """Check the ranges."""
        within(self, 0, 1, "beta", "on_policy", "follows")
        at_least(self, 0, "gamma", "coef", "reward_coef", "teacher_top_k")
        at_least(self, 1, "max_feedback_tokens")
        if self.separator == "":
            raise ValueError("separator is an empty text, wanted one that ends an answer; leave it out.")
        if self.separator is not None and self.teacher_prompt is not None:
            raise ValueError("separator is given, and teacher_prompt says what stands between; leave one of them out.")
        for name, places in TEMPLATES.items():
            if getattr(self, name) is not None:
                check_template(name, getattr(self, name), *places)
        if self.write_teacher is None:
            return
        if self.teacher is None or self.is_stored:
            raise ValueError("write_teacher is given without a teacher that can be asked; give one.")
        if not self.write_teacher.endswith(PARQUET):
            raise ValueError(f"write_teacher is {self.write_teacher!r}, wanted a file that ends in {PARQUET}.")
        if not Path(self.write_teacher).absolute().parent.is_dir():
            raise ValueError(f"write_teacher is {self.write_teacher!r}, and its directory is not there; make it.")

    @property
    def is_stored(self) -> bool:
        """Whether the teacher is a file of what one said."""
        return is_stored(self.teacher)

    def given(self) -> dict[str, float | str]:
        """The recipe's own settings that are given, by name."""
        numbers = ("beta", "on_policy", "gamma", "coef", "reward_coef", "follows")
        named = {name: getattr(self, name) for name in numbers} | self.texts()
        return {name: value for name, value in named.items() if value is not None}

    @property
    def shows_feedback(self) -> bool:
        """Whether the teacher may be shown feedback."""
        return self.recipe in TOLD or is_own(self.recipe)

    def texts(self) -> dict[str, str]:
        """The separator and the templates that are given, as they are meant, by name."""
        named = {name: getattr(self, name) for name in ("separator", *TEMPLATES)}
        return {name: unescaped(text) for name, text in named.items() if text is not None}


@dataclass(frozen=True, kw_only=True)
class DistillTaskSettings(HeldOutSettings, BuiltInSettings):
    """Prompts, their completions where they are learned from, and rewards where there are any."""

    data: tuple[str, ...] | None = option(None, DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, REWARD_HELP, "the task's own, none of data", "REWARD", values=REWARDS)
    integer_answers: bool = option(False, INTEGERS_HELP)

    @property
    def source(self) -> str:
        """What is learned from, in a word: files or a task."""
        return ", ".join(self.data or [self.task])


@dataclass(frozen=True, kw_only=True)
class DistillSettings(OnMachine):
    """Settings of ``rlax-llm distill``: a student and its teacher.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.

    >>> DistillSettings.of(recipe="gkd")
    Traceback (most recent call last):
    ValueError: distill: there is no teacher; give teacher.
    """

    command: ClassVar[str] = "distill"

    model: TrainedModelSettings
    teacher: TeacherSettings
    task: DistillTaskSettings
    rollout: ReplayedRolloutSettings
    sampling: SamplingSettings
    learning: EpochSettings
    optimizer: OptimizerSettings
    machine: MachineSettings
    run: RunSettings

    def _check_top_tokens(self) -> None:
        """Raise where a teacher's likeliest tokens would be compared with what no model was sampled from."""
        if not self.teacher.teacher_top_k and not self.teacher.is_stored:
            return
        changing = ("logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty")
        plain = {"logit_bias": None, "repetition_penalty": 1.0}
        for name in changing:
            if getattr(self.sampling, name) != plain.get(name, 0.0):
                raise ValueError(
                    f"{name} is given with the likeliest tokens of a teacher, which are of its plain distribution; "
                    "leave it out, or compare all tokens."
                )

    def rows_together(self) -> tuple[int, ...]:
        """Completions of a micro-batch."""
        return (self.learning.rows_together(self.rollout),)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model; groups for the recipes that compare a prompt's completions; nothing held out
        where a teacher's file is all that is given, which is of no task.

        >>> DistillSettings.of(teacher="smollm2", write_teacher="said.parquet").sampling.max_prompt_tokens
        512
        >>> DistillSettings.of(teacher="said.parquet", recipe="forward_kl").task.eval_size
        0
        """
        # A teacher that is asked without a student reads the rows alone, with limits of its own.
        reader = given.get("teacher") if given.get("write_teacher") is not None else None
        chosen = model_defaults(cls.command, given, reader or "char")
        if is_stored(given.get("teacher")) and given.get("task") is None and given.get("data") is None:
            chosen = {**chosen, "eval_size": 0}
        return {**chosen, "group_size": 8} if given.get("recipe") in SCORED else chosen

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe by its own name."""
        return {"recipe": find(cls.command, given["recipe"], "distillation").name} if "recipe" in given else {}

    def __post_init__(self) -> None:
        """Check the parts together."""
        check_draws_all(self.model)
        self.learning.check_shares(self.rollout)
        factors = {"batch_size": self.rollout.batch_size, "group_size": self.rollout.group_size}
        check_countable(self.sampling.row_tokens, factors)
        self._check_top_tokens()
        own = self.teacher.recipe in OWN
        if own and self.teacher.teacher is not None:
            raise ValueError(f"recipe {self.teacher.recipe} has no teacher but the student; leave teacher out.")
        if not own and self.teacher.teacher is None and ":" not in self.teacher.recipe:
            raise ValueError("there is no teacher; give teacher.")
        self._check_scores()
        if self.teacher.max_feedback_tokens != FEEDBACK_TOKENS and not self.teacher.shows_feedback:
            raise ValueError(
                f"max_feedback_tokens is given and recipe {self.teacher.recipe} shows no feedback; leave it out."
            )
        if self.teacher.write_teacher is not None and self.sampling.temperature != 1:
            raise ValueError(
                f"temperature is {self.sampling.temperature}, and what a teacher says is written at 1; leave it out."
            )

    def _check_scores(self) -> None:
        """Raise where a recipe compares completions, and there are no scores or no two of a prompt.

        Without scores there may still be feedback, which the rows say.
        """
        if self.teacher.recipe not in SCORED or self.teacher.write_teacher is not None:
            return
        if self.task.data is not None and self.task.reward is None and not self.teacher.shows_feedback:
            raise ValueError(
                f"recipe {self.teacher.recipe} reads the scores of completions, and data has none; give a reward."
            )
        if self.rollout.group_size < 2:
            raise ValueError(
                f"recipe {self.teacher.recipe} compares the completions of a prompt, and group_size is "
                f"{self.rollout.group_size}; give at least 2."
            )
