"""The settings of the commands that learn from preferences: ``reward``, ``dpo`` and ``kto``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.fields import Part, above_zero, at_least, option
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.shared_settings import (
    BatchSettings,
    HeldOutSettings,
    OptimizerSettings,
    RunSettings,
    TrainedModelSettings,
)
from rlax_llm.recipes.registry import find, listed, recipes

_PAIRS_HELP = (
    "Preference pairs: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory or its hub id, or "
    "several in order, with columns prompt (or none, then what both begin with), chosen, rejected, and margin if "
    "wanted; strings or lists of messages. Rows that cannot be used are left out, counted and named."
)
_LABELS_HELP = (
    "Labeled completions: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory or its hub id, "
    "or several in order, with columns prompt, completion and label (true is desirable), or pairs with chosen and "
    "rejected; strings or lists of messages. Rows that cannot be used are left out, counted and named."
)
_BUILT_IN = "right and wrong sums of the arithmetic task"


@dataclass(frozen=True, kw_only=True)
class PairDataSettings(HeldOutSettings):
    """Pairs to learn from."""

    data: tuple[str, ...] | None = option(None, _PAIRS_HELP, _BUILT_IN, "DATA")


@dataclass(frozen=True, kw_only=True)
class LabelDataSettings(HeldOutSettings):
    """Labeled completions to learn from."""

    data: tuple[str, ...] | None = option(None, _LABELS_HELP, _BUILT_IN, "DATA")


@dataclass(frozen=True, kw_only=True)
class RewardObjectiveSettings(Part):
    """What a reward model pays besides the loss of its pairs."""

    centering_coef: float = option(0.0, "Weight of the squared sum of a pair's scores: keeps them around 0.")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "centering_coef")


@dataclass(frozen=True, kw_only=True)
class PairObjectiveSettings(Part):
    """A recipe, and what of it is set otherwise."""

    recipe: str = option(
        "dpo",
        f"Named loss: {listed('preference', 'link')}; several of dpo's kin with weights: dpo:0.8,bco:0.2; another "
        "trainer's variant as trl:cpo; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns a Preference "
        "or a link.",
        metavar="RECIPE",
        values=tuple(recipes("preference", "link")),
    )
    beta: float | None = option(None, "β, reward per nat; τ of ipo, λ of orpo.", "the recipe's")
    label_smoothing: float | None = option(None, "Share of wrong labels in cdpo, robust and exo.", "the recipe's")
    gamma: float | None = option(None, "Margin of simpo and alpha_po, reward.", "the recipe's")
    nll_coef: float | None = option(
        None, "Weight of the chosen completions' negative log-likelihood, per nat.", "the recipe's"
    )
    precompute_reference: bool = option(
        False, "Compute the reference's log-probabilities once, before training, and then forget it."
    )

    def check(self) -> None:
        """Check the ranges."""
        above_zero(self, "beta")
        at_least(self, 0, "label_smoothing", "gamma", "nll_coef")
        if self.label_smoothing is not None and self.label_smoothing >= 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, wanted a share below 0.5.")


@dataclass(frozen=True, kw_only=True)
class LabelObjectiveSettings(Part):
    """A recipe, and what labels weigh."""

    recipe: str = option(
        "kto",
        "What rewards are compared with: the policy's KL (kto), 0 (apo_zero), or their mean so far, by the logistic "
        "link (bco); or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an Unpaired.",
        metavar="RECIPE",
        values=tuple(recipes("unpaired")),
    )
    beta: float = option(0.1, "β, reward per nat.")
    desirable_weight: float = option(1.0, "Weight of desirable completions.")
    undesirable_weight: float = option(1.0, "Weight of undesirable completions.")

    def check(self) -> None:
        """Check the ranges."""
        above_zero(self, "beta")
        at_least(self, 0, "desirable_weight", "undesirable_weight")


@dataclass(frozen=True, kw_only=True)
class RewardSettings(OnMachine):
    """Settings of ``rlax-llm reward``: a reward model from preference pairs.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "reward"

    model: TrainedModelSettings
    task: PairDataSettings
    objective: RewardObjectiveSettings
    batch: BatchSettings
    optimizer: OptimizerSettings
    machine: MachineSettings
    run: RunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Examples of a micro-batch."""
        return (self.batch.rows_together,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model."""
        return model_defaults(cls.command, given)


@dataclass(frozen=True, kw_only=True)
class DpoSettings(OnMachine):
    """Settings of ``rlax-llm dpo``: preference optimization on pairs.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "dpo"

    model: TrainedModelSettings
    task: PairDataSettings
    objective: PairObjectiveSettings
    batch: BatchSettings
    optimizer: OptimizerSettings
    machine: MachineSettings
    run: RunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Examples of a micro-batch."""
        return (self.batch.rows_together,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model."""
        return model_defaults(cls.command, given)


@dataclass(frozen=True, kw_only=True)
class KtoSettings(OnMachine):
    """Settings of ``rlax-llm kto``: optimization of labeled completions.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "kto"

    model: TrainedModelSettings
    task: LabelDataSettings
    objective: LabelObjectiveSettings
    batch: BatchSettings
    optimizer: OptimizerSettings
    machine: MachineSettings
    run: RunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Examples of a micro-batch."""
        return (self.batch.rows_together,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model."""
        return model_defaults(cls.command, given)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe by its own name."""
        return {"recipe": find(cls.command, given["recipe"], "unpaired").name} if "recipe" in given else {}
