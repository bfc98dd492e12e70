"""The settings of the commands that learn from preferences: ``reward``, ``dpo`` and ``kto``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.fields import Part, above_zero, at_least, option, within
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.preference.sums import check_rewards, read_sum
from rlax_llm.commands.sampling_settings import BatchSettings
from rlax_llm.commands.shared_settings import (
    AveragedOptimizerSettings,
    ReferenceSettings,
    RunSettings,
    TrainedModelSettings,
)
from rlax_llm.commands.task_settings import NEW_LINE, HeldOutSettings, SeparatorSettings
from rlax_llm.recipes.registry import find, recipes, with_papers

_PAIRS_HELP = (
    "Preference pairs: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory or its hub id, or "
    "several in order, with columns prompt (or none, then what both begin with), chosen, rejected, margin if wanted, "
    "and gold for tpo; strings or lists of messages. Rows that cannot be used are left out, counted and named."
)
_STEPS_HELP = f"{_PAIRS_HELP} With --process prompt, completions (a list of steps) and labels (of each, true or false)."
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
class JudgedDataSettings(PairDataSettings):
    """Pairs, or labeled steps, to learn from."""

    data: tuple[str, ...] | None = option(None, _STEPS_HELP, _BUILT_IN, "DATA")


@dataclass(frozen=True, kw_only=True)
class LabelDataSettings(HeldOutSettings):
    """Labeled completions to learn from."""

    data: tuple[str, ...] | None = option(None, _LABELS_HELP, _BUILT_IN, "DATA")


@dataclass(frozen=True, kw_only=True)
class RewardObjectiveSettings(SeparatorSettings):
    """What a reward model judges, and what it pays besides the loss of its pairs."""

    centering_coef: float = option(0.0, "Weight of the squared sum of a pair's scores: keeps them around 0.")
    process: bool = option(
        False, "Learn from labeled steps instead of pairs: the score at a step's last token says whether it is right."
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "centering_coef")
        if self.process and self.centering_coef:
            raise ValueError("centering_coef is given with process, which has no pairs to center; leave one out.")
        if self.step_separator != NEW_LINE and not self.process:
            raise ValueError("step_separator is given without process, and pairs have no steps; give both.")


@dataclass(frozen=True, kw_only=True)
class PairObjectiveSettings(ReferenceSettings):
    """A recipe, and what of it is set otherwise."""

    recipe: str = option(
        "dpo",
        f"Named loss: {with_papers('preference', 'link')}; several of dpo's kin with weights: dpo:0.8,bco:0.2; "
        "another trainer's variant as trl:cpo; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns a "
        "Preference or a link.",
        metavar="RECIPE",
        values=tuple(recipes("preference", "link")),
    )
    beta: float | None = option(None, "β, reward per nat; τ of ipo, λ of orpo.", "the recipe's")
    label_smoothing: float | None = option(None, "Share of wrong labels in cdpo, robust and exo.", "the recipe's")
    gamma: float | None = option(None, "Margin of simpo, alpha_po and tpo_length, reward.", "the recipe's")
    nll_coef: float | None = option(
        None,
        "Weight of the chosen completions' negative log-likelihood, of tpo that of the gold ones, per nat.",
        "the recipe's",
    )
    wpo: bool = option(False, "Weigh each pair by how likely the policy would write both completions itself (WPO).")
    tail_coef: float = option(
        1.0,
        "Weight of the tokens of a pair's longer completion beyond the length of the shorter (LD-DPO), from 0 to 1, "
        "with dpo's kin.",
    )
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] = option(
        "reverse_kl", "Divergence from the reference that rewards follow from (f-DPO), with dpo's kin."
    )
    divergence_alpha: float = option(0.5, "α of --divergence alpha; 1 is reverse_kl, 0 forward_kl.")
    precompute_reference: bool = option(
        False, "Compute the reference's log-probabilities once, before training, and then forget it."
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        above_zero(self, "beta")
        at_least(self, 0, "label_smoothing", "gamma", "nll_coef")
        within(self, 0, 1, "tail_coef")
        if self.divergence != "alpha" and self.divergence_alpha != PairObjectiveSettings.divergence_alpha:
            raise ValueError(f"divergence {self.divergence} has no divergence_alpha; leave it out, or choose alpha.")
        if self.changed_reward:
            check_rewards(self.recipe, f"with {self.changed_reward}, or leave that out")
        if self.precompute_reference and self.reference_every:
            raise ValueError("precompute_reference and reference_every are given; a reference that moves is not known.")
        if self.label_smoothing is not None and self.label_smoothing >= 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, wanted a share below 0.5.")

    @property
    def changed_reward(self) -> str:
        """The setting that changes the reward of dpo; nothing where none does."""
        if self.divergence != "reverse_kl":
            return "divergence"
        return "tail_coef" if self.tail_coef != 1 else ""


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
    """Settings of ``rlax-llm reward``: a reward model from preference pairs, or from labeled steps.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "reward"

    model: TrainedModelSettings
    task: JudgedDataSettings
    objective: RewardObjectiveSettings
    batch: BatchSettings
    optimizer: AveragedOptimizerSettings
    machine: MachineSettings
    run: RunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Examples of a micro-batch."""
        return (self.batch.rows_together,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model."""
        return model_defaults(cls.command, given)

    def __post_init__(self) -> None:
        """Check the parts together."""
        if self.objective.process and self.task.data is None:
            raise ValueError("process is given without data, and the arithmetic task has no steps; give both.")
        for name in ("router_aux_coef", "router_z_coef"):
            if getattr(self.model, name):
                raise ValueError(f"{name} is given, and a model of scores balances no router; leave it out.")
        if "head" in self.model.saved:
            raise ValueError("lora_save names 'head', and a model of scores has none; its score is always trained.")


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
    optimizer: AveragedOptimizerSettings
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
        """Nothing in other words; a recipe that there is not is said before anything reads it."""
        if "recipe" in given:
            read_sum(given["recipe"])
        return {}


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
    optimizer: AveragedOptimizerSettings
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
