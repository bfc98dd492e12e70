"""Parts of settings about what is learned on: held-out rows, a task and its rewards, rewards of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from rlax_llm.commands.descriptions import DATA_HELP, INTEGERS_HELP, REWARD_HELP, REWARDS, SPLIT_HELP, TASK_HELP, TASKS
from rlax_llm.commands.fields import Part, at_least, option, resolved, unescaped

NEW_LINE = r"\n"


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings(Part):
    """Data of one's own, and what is measured on."""

    data: tuple[str, ...] | None = option(None, DATA_HELP, "the task", "FILE.jsonl")
    split: str = option("train", SPLIT_HELP)
    eval_data: str | None = option(
        None, "File of held-out rows, of the form of --data.", "rows of the data itself", "DATA"
    )
    eval_split: str | None = option(
        None,
        "Split that held-out rows are taken from: of --eval-data, or else of the data itself.",
        "--split",
        "SPLIT",
    )
    eval_size: int | None = resolved(
        "Held-out prompts per evaluation; 0 holds out none.",
        "a tenth of --data, at most 128; all of --eval-data or --eval-split; of a task 256, or 128 for a large model",
    )

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "eval_size")
        given = next((name for name in ("eval_data", "eval_split") if getattr(self, name) is not None), None)
        if given is None:
            if self.eval_size is None and self.data is None:
                raise ValueError("eval_size is None, wanted a whole number, as there is no data.")
            return
        if self.data is None:
            raise ValueError(f"{given} is given without data; give both.")
        if self.eval_size == 0:
            raise ValueError(f"{given} is given and eval_size is 0; leave one out.")
        if self.eval_data is None and self.eval_split == self.split:
            raise ValueError(f"eval_split is {self.split!r}, the split that is learned from; give another.")

    @property
    def split_size(self) -> int:
        """Rows of a task that are held out."""
        return 0 if self.eval_size is None else self.eval_size

    @property
    def source(self) -> str:
        """What is learned from, in a word: files, or the task that is built in."""
        return ", ".join(self.data or ["arithmetic"])


@dataclass(frozen=True, kw_only=True)
class BuiltInSettings(Part):
    """A task that comes with its prompts."""

    task: str = option("arithmetic", TASK_HELP, metavar="TASK", values=TASKS)


@dataclass(frozen=True, kw_only=True)
class SeparatorSettings(Part):
    """Where a step of a completion ends."""

    step_separator: str = option(
        NEW_LINE, r"Text that ends a step of a completion; \n is a new line, \t a tab, \\ a backslash.", empty=True
    )

    def check(self) -> None:
        """Check that there is one."""
        super().check()
        if not self.step_separator:
            raise ValueError("step_separator is an empty text, wanted one that ends a step; leave it out.")

    @property
    def separator(self) -> str:
        """The text itself."""
        return unescaped(self.step_separator)


@dataclass(frozen=True, kw_only=True)
class TaskSettings(HeldOutSettings, BuiltInSettings):
    """Prompts and what tells their completions apart: rewards, a reward model or both."""

    data: tuple[str, ...] | None = option(None, DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, REWARD_HELP, "the task's own, none with a reward model", "REWARD", values=REWARDS)
    integer_answers: bool = option(False, INTEGERS_HELP)
    reward_model: str | None = option(
        None,
        "Reward model whose score is added: RUN_DIR/model of a reward run (or its model_adapter), or another sequence "
        "classifier.",
        "none",
        "DIR",
    )

    def check(self) -> None:
        """Check that data has a reward."""
        super().check()
        if self.data is not None and self.reward is None and not self.is_judged:
            raise ValueError("data is given without reward or reward_model, and a file has none of its own; give one.")
        check_integer_answers(self.integer_answers, self.data)

    @property
    def is_judged(self) -> bool:
        """Whether completions have a score without a reward function."""
        return self.reward_model is not None

    @property
    def source(self) -> str:
        """What is learned from, in a word: files or a task."""
        return ", ".join(self.data or [self.task])


@dataclass(frozen=True, kw_only=True)
class StepSettings(SeparatorSettings, TaskSettings):
    """Prompts and what tells their completions apart, step by step too."""

    step_reward: str | None = option(
        None,
        "Reward of the steps of a completion, as MODULE:FUNCTION or FILE.py:FUNCTION of signature f(row, steps) -> a "
        "number for each step: each is paid at its step's last token.",
        "none",
        "FUNCTION",
    )
    step_reward_model: str | None = option(
        None,
        "Process reward model whose probability that a step is right is added: RUN_DIR/model of a run of reward "
        "--process.",
        "none",
        "DIR",
    )

    def check(self) -> None:
        """Check that what is said of steps is read."""
        super().check()
        if self.step_separator != NEW_LINE and not self.judges_steps:
            raise ValueError("step_separator is given without step_reward or step_reward_model; give one of them.")

    @property
    def judges_steps(self) -> bool:
        """Whether steps are scored."""
        return self.step_reward is not None or self.step_reward_model is not None

    @property
    def is_judged(self) -> bool:
        """Whether completions have a score without a reward function."""
        return super().is_judged or self.judges_steps


def check_integer_answers(integer_answers: bool, data: object) -> None:
    """Raise where integers are wanted of answers that are not there."""
    if integer_answers and data is None:
        raise ValueError("integer_answers is given without data, whose answers it reads; give both.")
