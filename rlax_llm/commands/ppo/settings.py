"""The settings of ``rlax-llm ppo``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.defaults import SUPERVISED_BATCH_SIZE, is_small, model_defaults
from rlax_llm.commands.fields import Part, above_zero, at_least, check_countable, option, resolved, within
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import SamplingSettings
from rlax_llm.commands.shared_settings import (
    EpochSettings,
    OptimizerSettings,
    ReplayedRolloutSettings,
    TrainedModelSettings,
    WarmStartedRunSettings,
    check_draws_all,
)
from rlax_llm.commands.task_settings import StepSettings

_GROUP = 8  # completions of a prompt in VAPO, whose paper has 16


@dataclass(frozen=True, kw_only=True)
class PpoModelSettings(TrainedModelSettings):
    """The policy, and what the value model starts from."""

    value_model: str = resolved(
        "What the value model starts from: 'reward', 'policy', 'scratch' or a sequence classifier's directory.",
        "the reward model, or the policy where there is none",
        "NAME",
    )


@dataclass(frozen=True, kw_only=True)
class ShapingSettings(Part):
    """From scores to advantages, and what the policy's loss is."""

    recipe: Literal["ppo", "vapo"] = option(
        "ppo",
        "What settings are if not given: vapo has groups, no KL, a λ that follows a completion's length and 1 for "
        "the value model, a wider clip above 1, the likelihood of good completions, and a warm-up of the value model.",
    )
    kl_coef: float = resolved("β of the KL in the reward, score per nat; 0 needs no reference.", "0.05; 0 in vapo")
    kl_estimator: Literal["k1", "k2", "k3"] = option("k1", "Estimator of that KL.")
    kl_target: float | None = option(None, "KL of a completion that β is steered to, nats.", "β stays as it is")
    eps: float = option(0.2, "Half-width of the ratio clip.")
    eps_high: float = resolved("Half-width of the clip above 1.", "eps; 0.28 in vapo")
    discount: float = option(1.0, "Discount of a token, from 0 to 1.")
    policy_lambda: float | None = resolved("λ of the advantages, from 0 to 1.", "0.95, unless length_alpha is there")
    length_alpha: float | None = resolved(
        "α of the advantages' λ for a completion of l tokens, 1 − 1/(α l).", "policy_lambda; 0.05 in vapo"
    )
    value_lambda: float = resolved("λ of the value model's targets, from 0 to 1.", "0.95; 1 in vapo")
    nll_coef: float = resolved(
        "Weight of the negative log-likelihood of completions that score above nll_threshold, per nat.",
        "0; 0.1 in vapo",
    )
    nll_threshold: float = option(0.0, "The score above which a completion's likelihood counts.")
    missing_eos_penalty: float = option(0.0, "Subtracted from the score of a completion that was cut.")
    whiten_rewards: bool = option(False, "Divide rewards by their standard deviation.")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "kl_coef", "nll_coef")
        above_zero(self, "eps", "eps_high", "length_alpha", "kl_target")
        within(self, 0, 1, "discount", "policy_lambda", "value_lambda")
        if self.policy_lambda is not None and self.length_alpha is not None:
            raise ValueError("policy_lambda is given with length_alpha, which decides on it; leave one out.")
        if self.nll_threshold != ShapingSettings.nll_threshold and self.nll_coef == 0:
            raise ValueError("nll_threshold is given and nll_coef is 0, so that nothing reads it; give an nll_coef.")
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target is given and kl_coef is 0, which no factor changes; give a kl_coef.")


@dataclass(frozen=True, kw_only=True)
class SingleRolloutSettings(ReplayedRolloutSettings):
    """The completions of a step."""

    group_size: int = option(1, "Completions per prompt.")


@dataclass(frozen=True, kw_only=True)
class PpoLearningSettings(EpochSettings):
    """How the policy and the value model learn from a rollout."""

    epochs: int = option(4, "Times that each completion is learned from.")
    value_eps: float = option(0.2, "Half-width of the value clip, in scores.")
    value_coef: float = option(0.1, "Weight of the value model's loss.")
    value_learning_rate: float = resolved("Peak learning rate of the value model.", "the same")
    value_warmup_steps: int = resolved(
        "First steps that teach the value model alone.", "0; in vapo 50, or a quarter of all"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "value_coef", "value_warmup_steps")
        above_zero(self, "value_eps", "value_learning_rate")


@dataclass(frozen=True, kw_only=True)
class PpoSettings(OnMachine):
    """Settings of ``rlax-llm ppo``: policy, value model, frozen reference, and a reward model or functions.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "ppo"

    model: PpoModelSettings
    task: StepSettings
    objective: ShapingSettings
    rollout: SingleRolloutSettings
    sampling: SamplingSettings
    learning: PpoLearningSettings
    optimizer: OptimizerSettings
    machine: MachineSettings
    run: WarmStartedRunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Completions of a micro-batch, and rows of a step of the warm start."""
        rows = self.learning.rows_together(self.rollout)
        return (rows, SUPERVISED_BATCH_SIZE[is_small(self.model.model)]) if self.run.warm_start_steps else (rows,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model and the recipe; the value model learns like the policy, from a reward model if
        there is one."""
        chosen = dict(model_defaults(cls.command, given))
        chosen |= _of_recipe(given, chosen)
        chosen["value_learning_rate"] = given.get("learning_rate", chosen["learning_rate"])
        chosen["value_model"] = "policy" if given.get("reward_model") is None else "reward"
        return chosen

    def __post_init__(self) -> None:
        """Check the parts together."""
        check_draws_all(self.model)
        self.learning.check_shares(self.rollout)
        factors = {"batch_size": self.rollout.batch_size, "group_size": self.rollout.group_size}
        check_countable(self.sampling.row_tokens, factors)
        idle, steps = self.learning.value_warmup_steps, self.run.steps
        if idle >= steps:
            raise ValueError(f"value_warmup_steps is {idle} of {steps} steps; leave some to the policy.")
        if self.model.value_model == "reward" and self.task.reward_model is None:
            raise ValueError("value_model is 'reward' and there is no reward_model; give one, or take 'policy'.")


def _of_recipe(given: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the recipe: VAPO's (arXiv 2504.05118) groups, credit, loss and warm-up, or none of them.

    Args:
        given: by name.
        chosen: for the model, by name.
    """
    eps = given.get("eps", ShapingSettings.eps)
    plain = {"kl_coef": 0.05, "eps_high": eps, "value_lambda": 0.95, "nll_coef": 0.0, "value_warmup_steps": 0}
    if given.get("recipe") != "vapo":
        return plain | {"policy_lambda": 0.95 if given.get("length_alpha") is None else None, "length_alpha": None}
    rows, steps = chosen["batch_size"], given.get("steps", chosen["steps"])
    group = given.get("group_size", _GROUP)
    return {
        "kl_coef": 0.0,
        "eps_high": max(eps, 0.28),
        "policy_lambda": None,
        "length_alpha": 0.05 if given.get("policy_lambda") is None else None,
        "value_lambda": 1.0,
        "nll_coef": 0.1,
        "value_warmup_steps": min(50, steps // 4),
        "group_size": group,
        "batch_size": max(rows // group, 1) if isinstance(group, int) and group > 0 else rows,
    }
