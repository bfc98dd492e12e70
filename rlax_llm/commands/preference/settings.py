"""The settings of the commands that learn from preferences: ``reward``, ``dpo`` and ``kto``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlax_llm.commands.settings import (
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    above_zero,
    at_least,
    check_values,
    option,
)
from rlax_llm.recipes.registry import find, listed

_PAIRS_HELP = (
    "Preference pairs: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory or its hub id, "
    "with columns prompt (or none, then what both begin with), chosen, rejected, and margin if wanted; strings or "
    "lists of messages. Rows that cannot be used are left out, counted and named."
)
_LABELS_HELP = (
    "Labeled completions: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory or its hub id, "
    "with columns prompt, completion and label (true is desirable), or pairs with chosen and rejected; strings or "
    "lists of messages. Rows that cannot be used are left out, counted and named."
)
_BUILT_IN = "right and wrong sums of the arithmetic task"


@dataclass(frozen=True)
class PreferenceSettings(RunSettings, BatchSettings, OptimizerSettings, ModelSettings):
    """What these commands share."""

    command: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        self.check_model()
        self.check_optimizer()
        self.check_run()
        self.check_batch()


@dataclass(frozen=True)
class RewardSettings(PreferenceSettings):
    """Settings of ``rlax-llm reward``: a reward model from preference pairs.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "reward"

    data: str | None = option(None, "task", _PAIRS_HELP, _BUILT_IN, "DATA")
    centering_coef: float = option(
        0.0, "objective", "Weight of the squared sum of a pair's scores: keeps them around 0."
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        at_least(self, 0, "centering_coef")


@dataclass(frozen=True)
class DpoSettings(PreferenceSettings):
    """Settings of ``rlax-llm dpo``: preference optimization on pairs.

    Raises:
        ValueError: a value is out of its range, or the recipe does not have the setting.
    """

    command: ClassVar[str] = "dpo"

    data: str | None = option(None, "task", _PAIRS_HELP, _BUILT_IN, "DATA")
    recipe: str = option(
        "dpo",
        "objective",
        f"Named loss: {listed('preference', 'link')}; several of dpo's kin with weights: dpo:0.8,bco:0.2; another "
        "trainer's variant as trl:cpo; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns a Preference "
        "or a link.",
        metavar="RECIPE",
    )
    beta: float | None = option(None, "objective", "β, reward per nat; τ of ipo, λ of orpo.", "the recipe's")
    label_smoothing: float | None = option(
        None, "objective", "Share of wrong labels in cdpo, robust and exo.", "the recipe's"
    )
    gamma: float | None = option(None, "objective", "Margin of simpo and alpha_po, reward.", "the recipe's")
    nll_coef: float | None = option(
        None, "objective", "Weight of the chosen completions' negative log-likelihood, per nat.", "the recipe's"
    )
    precompute_reference: bool = option(
        False, "objective", "Compute the reference's log-probabilities once, before training, and then forget it."
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        above_zero(self, "beta")
        at_least(self, 0, "label_smoothing", "gamma", "nll_coef")
        if self.label_smoothing is not None and self.label_smoothing >= 0.5:
            raise ValueError(f"dpo: label_smoothing is {self.label_smoothing}, wanted a share below 0.5.")


@dataclass(frozen=True)
class KtoSettings(PreferenceSettings):
    """Settings of ``rlax-llm kto``: optimization of labeled completions.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "kto"

    data: str | None = option(None, "task", _LABELS_HELP, _BUILT_IN, "DATA")
    recipe: str = option(
        "kto",
        "objective",
        "What rewards are compared with: the policy's KL (kto), 0 (apo_zero), or their mean so far, by the logistic "
        "link (bco); or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an Unpaired.",
        metavar="RECIPE",
    )
    beta: float = option(0.1, "objective", "β, reward per nat.")
    desirable_weight: float = option(1.0, "objective", "Weight of desirable completions.")
    undesirable_weight: float = option(1.0, "objective", "Weight of undesirable completions.")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        object.__setattr__(self, "recipe", find("kto", self.recipe, "unpaired").name)
        above_zero(self, "beta")
        at_least(self, 0, "desirable_weight", "undesirable_weight")
