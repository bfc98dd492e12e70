"""The settings of ``rlax-llm grpo``: its own here, those of other commands too in ``commands/shared_settings.py``.

Defaults that follow from the model are in ``commands/defaults.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.defaults import SUPERVISED_BATCH_SIZE, is_small, model_defaults
from rlax_llm.commands.fields import Part, above_zero, at_least, check_countable, option, resolved
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.server_settings import ServerSettings
from rlax_llm.commands.shared_settings import (
    EpochSettings,
    OptimizerSettings,
    RolloutSettings,
    SamplingSettings,
    TaskSettings,
    TrainedModelSettings,
    WarmStartedRunSettings,
)
from rlax_llm.recipes.registry import find, listed, recipes

_RECIPE_HELP = (
    f"Named objective: {listed('group')}; another trainer's variant as trl:dr_grpo, verl:gspo, openrlhf:rloo; or your "
    "own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an Objective."
)
TRPO = "trpo"


@dataclass(frozen=True, kw_only=True)
class GroupTaskSettings(TaskSettings):
    """Prompts, and how their completions are scored."""

    reward_workers: int = option(0, "Processes that call slow rewards, a row at a time; 0 is none.")
    reward_timeout: float = option(30.0, "Seconds that such a call may take; then the row has no score.")
    overlong_buffer: int = option(
        0, "Last tokens before the limit over which the score falls by up to 1 (DAPO); 0 is off."
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "reward_workers", "overlong_buffer")
        above_zero(self, "reward_timeout")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Part):
    """A recipe, and what of it is set otherwise."""

    recipe: str = option("grpo", _RECIPE_HELP, metavar="RECIPE", values=tuple(recipes("group")))
    kl_coef: float | None = option(None, "Weight of the KL term; 0 needs no reference model.", "the recipe's")
    kl_in: Literal["loss", "reward"] | None = option(
        None, "Where that KL stands: k3 in the loss, or k1 in the score.", "as the recipe has it, or loss"
    )
    eps: float | None = option(None, "Half-width of the ratio clip (its lower side in dapo).", "the recipe's")
    eps_high: float | None = option(None, "Half-width of the clip above 1.", "the recipe's")
    ceiling: float | None = option(None, "Largest ratio (cispo, verl:grpo).", "the recipe's")
    kl_radius: float = option(0.01, "KL per token that a step of trpo may take, nats.")
    reference_every: int = option(0, "Steps after which the reference becomes the policy; 0 keeps the first.")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "kl_coef", "reference_every")
        above_zero(self, "eps", "eps_high", "ceiling", "kl_radius")
        if self.kl_in is not None and self.kl_coef is None:
            raise ValueError("kl_in is given without kl_coef; give both.")
        if self.recipe != TRPO and self.kl_radius != ObjectiveSettings.kl_radius:
            raise ValueError(f"recipe {self.recipe} has no kl_radius; leave it out, or choose trpo.")


@dataclass(frozen=True, kw_only=True)
class GroupRolloutSettings(RolloutSettings):
    """The groups of a step."""

    dynamic_rounds: int = option(
        0, "Rounds of sampling, at most, until all groups of a step differ in score (DAPO); 0 is off."
    )
    partial_rollouts: int = option(
        0,
        "Prompts that are in flight beside those of a step: it ends when batch_size groups are whole, and the others "
        "go on in the next, corrected for the policies that drew them; 0 is off.",
    )
    ahead: int = option(
        0,
        "Steps that completions are drawn ahead: 1 draws the next ones before an update and scores them in Python "
        "during it, so that they are of the policy before, corrected for that; 0 is off.",
        largest=1,
    )
    sampler_dtype: Literal["bfloat16", "int8"] | None = option(
        None,
        "Number format of the matrices that completions are drawn with; int8 has a scale for each output channel. What "
        "is learned keeps its own.",
        "the learner's",
    )
    cache_dtype: Literal["bfloat16", "int8"] | None = option(
        None, "Number format of the keys and values kept for it; int8 has a scale for each of them.", "the learner's"
    )
    tool: Literal["calculator"] | None = option(
        None, "Tool that the model may call as <calc>2*3</calc>; it reads <result>6</result>.", "none"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 2, "group_size")
        at_least(self, 0, "dynamic_rounds", "partial_rollouts", "ahead")
        if self.partial_rollouts and self.tool is not None:
            raise ValueError(
                f"partial_rollouts is given with tool {self.tool}, in whose turns no completion can be interrupted; "
                "leave one out."
            )

    @property
    def rows_in_flight(self) -> int:
        """Completions that are drawn beside one another, at most."""
        return self.rows + self.partial_rollouts * self.group_size

    @property
    def formats(self) -> dict[str, str | None]:
        """The number formats that completions to learn from are drawn in, as fields of the decoder's config."""
        return {"sampler_dtype": self.sampler_dtype, "cache_dtype": self.cache_dtype}


@dataclass(frozen=True, kw_only=True)
class GroupLearningSettings(EpochSettings):
    """How the groups of a step are learned from."""

    overlong_filter: bool = option(False, "Learn nothing from completions that were cut (DAPO).")
    correction: Literal["none", "token", "mask", "sequence", "moment"] = resolved(
        "Weights for a sampler that differs: of tokens, truncated or cut, whole completions, or what differs most.",
        "token with --sampler-url, --partial-rollouts, --ahead, --sampler-dtype or --cache-dtype, else none",
    )
    entropy_coef: float = option(0.0, "Weight of a bonus for the entropy of a token, at the start.")
    entropy_target: float | None = option(
        None, "Entropy that the bonus is steered to, nats per token.", "the weight stays"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "entropy_coef", "entropy_target")


@dataclass(frozen=True, kw_only=True)
class GrpoSettings(OnMachine):
    """Settings of ``rlax-llm grpo``: reinforcement learning of a language model from groups of completions.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.

    >>> GrpoSettings.of(group_size=1)
    Traceback (most recent call last):
    ValueError: grpo: group_size is 1, wanted at least 2.
    """

    command: ClassVar[str] = "grpo"

    model: TrainedModelSettings
    task: GroupTaskSettings
    objective: ObjectiveSettings
    rollout: GroupRolloutSettings
    sampling: SamplingSettings
    server: ServerSettings
    learning: GroupLearningSettings
    optimizer: OptimizerSettings
    machine: MachineSettings
    run: WarmStartedRunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Completions of a micro-batch, and rows of a step of the warm start."""
        rows = self.learning.rows_together(self.rollout)
        return (rows, SUPERVISED_BATCH_SIZE[is_small(self.model.model)]) if self.run.warm_start_steps else (rows,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model, and the correction for completions of other policies or other numbers."""
        differing = ("sampler_url", "partial_rollouts", "ahead", "sampler_dtype", "cache_dtype")
        corrected = any(given.get(name) for name in differing) and given.get("recipe") != TRPO
        return {**model_defaults(cls.command, given), "correction": "token" if corrected else "none"}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe by its own name."""
        return {"recipe": find(cls.command, given["recipe"], "group").name} if "recipe" in given else {}

    def __post_init__(self) -> None:
        """Check the parts together."""
        self.learning.check_shares(self.rollout)
        rollout = self.rollout
        factors = {"batch_size": rollout.batch_size + rollout.partial_rollouts, "group_size": rollout.group_size}
        check_countable(self.sampling.row_tokens, factors)
        buffer, longest = self.task.overlong_buffer, self.sampling.max_new_tokens
        if buffer > longest:
            raise ValueError(f"overlong_buffer is {buffer}, wanted at most max_new_tokens, {longest}.")
        if self.objective.recipe == TRPO:
            self._check_trpo()
        if self.sampling.pattern is not None and self.rollout.tool is not None:
            raise ValueError(
                f"pattern is given with tool {self.rollout.tool}, whose calls it would have to foresee; leave one out."
            )
        speculation = self.sampling.speculation
        always = speculation if speculation is not None and speculation.always else None
        for name, given in (self.rollout.formats | {"speculate": always}).items():
            if self.server.sampler_url is not None and given is not None:
                raise ValueError(f"{name} is given with sampler_url, whose server has its own; leave one out.")
        if self.server.sampler_url is not None and self.rollout.partial_rollouts:
            raise ValueError(
                "partial_rollouts is given with sampler_url, whose server ends what it begins; leave one out."
            )

    def _check_trpo(self) -> None:
        """Raise for what TRPO does not have: it takes one step, and without a ratio nothing makes up for samples of
        other weights."""
        unread = {
            "epochs": self.learning.epochs != 1,
            "minibatches": self.learning.minibatches != 1,
            "micro_batch_size": self.learning.micro_batch_size is not None,
            "correction": self.learning.correction != "none",
            "entropy_coef": self.learning.entropy_coef != 0,
            "entropy_target": self.learning.entropy_target is not None,
            "kl_coef": bool(self.objective.kl_coef),
            "eps": self.objective.eps is not None,
            "eps_high": self.objective.eps_high is not None,
            "ceiling": self.objective.ceiling is not None,
            "reference_every": self.objective.reference_every != 0,
            "dynamic_rounds": self.rollout.dynamic_rounds != 0,
            "partial_rollouts": self.rollout.partial_rollouts != 0,
            "ahead": self.rollout.ahead != 0,
            "sampler_dtype": self.rollout.sampler_dtype is not None,
            "cache_dtype": self.rollout.cache_dtype is not None,
            "sampler_url": self.server.sampler_url is not None,
        }
        for name, given in unread.items():
            if given:
                raise ValueError(f"recipe trpo has no {name}; leave it out.")
