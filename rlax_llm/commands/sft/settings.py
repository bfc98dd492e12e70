"""The settings of ``rlax-llm sft``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.fields import at_least, option, resolved
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import BatchSettings
from rlax_llm.commands.shared_settings import OptimizerSettings, RunSettings, TrainedModelSettings
from rlax_llm.commands.task_settings import BuiltInSettings, HeldOutSettings

_KL_COEF = 0.1
_DATA_HELP = (
    "Demonstrations, instead of a task: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory "
    "or its hub id, or several in order, with columns prompt and completion, or messages, or text. Rows that cannot be "
    "used are left out, counted and named."
)


@dataclass(frozen=True, kw_only=True)
class DemonstrationSettings(HeldOutSettings, BuiltInSettings):
    """What is learned from."""

    data: tuple[str, ...] | None = option(None, _DATA_HELP, "the task", "DATA")
    every_turn: bool = option(False, "Learn all that the assistant says in 'messages', not its last message alone.")

    @property
    def source(self) -> str:
        """What is learned from, in a word: files or a task."""
        return ", ".join(self.data or [self.task])


@dataclass(frozen=True, kw_only=True)
class PackedBatchSettings(BatchSettings):
    """The rows of a step, which examples may share."""

    packed_tokens: int = option(
        0, "Width of rows that examples share, each seeing itself alone; 0 gives each a row.", metavar="INT"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "packed_tokens")

    @property
    def widest_row(self) -> int:
        """Tokens of the widest row."""
        return max(self.row_tokens, self.packed_tokens)


@dataclass(frozen=True, kw_only=True)
class SupervisedOptimizerSettings(OptimizerSettings):
    """How parameters move, at a constant rate."""

    schedule: Literal["constant", "cosine", "linear"] = option(
        "constant", "Learning rate after the warm-up; cosine and linear end at 0."
    )
    loss: Literal["nll", "dft", "asft"] = option(
        "nll",
        "What is minimized: the negative log-likelihood, in DFT each token's weighed by its probability, or in ASFT "
        "that and the KL from the model before training.",
    )
    kl_coef: float = resolved(
        "Weight of that KL, per nat of a token; with 0 asft is dft.", f"{_KL_COEF} of asft, else 0"
    )

    def check(self) -> None:
        """Check that what is given is read."""
        super().check()
        at_least(self, 0, "kl_coef")
        if self.kl_coef and self.loss != "asft":
            raise ValueError(f"kl_coef is {self.kl_coef} and loss is {self.loss}, which has no KL; choose asft.")


@dataclass(frozen=True, kw_only=True)
class SupervisedRunSettings(RunSettings):
    """A run of short steps."""

    save_every: int = option(200, "Steps between checkpoints; 0 is only at the end or at Ctrl-C.")


@dataclass(frozen=True, kw_only=True)
class SftSettings(OnMachine):
    """Settings of ``rlax-llm sft``: supervised training on prompts and their answers.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "sft"

    model: TrainedModelSettings
    task: DemonstrationSettings
    batch: PackedBatchSettings
    optimizer: SupervisedOptimizerSettings
    machine: MachineSettings
    run: SupervisedRunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Examples of a micro-batch."""
        return (self.batch.rows_together,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model, and the anchor of ASFT."""
        anchored = given.get("loss") == "asft"
        return {**model_defaults(cls.command, given), "kl_coef": _KL_COEF if anchored else 0.0}
