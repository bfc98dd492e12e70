"""The settings of ``rlax-llm ppo``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlax_llm.commands.settings import (
    CHOSEN,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    SamplerSettings,
    above_zero,
    at_least,
    check_divides,
    check_micro_batch,
    check_values,
    option,
)
from rlax_llm.commands.task_settings import DATA_HELP, REWARD_HELP, TASK_HELP


@dataclass(frozen=True)
class PpoSettings(RunSettings, OptimizerSettings, SamplerSettings, ModelSettings):
    """Settings of ``rlax-llm ppo``: policy, value model, frozen reference, and a reward model or functions.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "ppo"

    task: str = option("arithmetic", "task", TASK_HELP, metavar="TASK")
    data: str | None = option(None, "task", DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(
        None, "task", REWARD_HELP, "the task's own, none beside a reward model", "MODULE:FUNCTION"
    )
    reward_model: str | None = option(
        None,
        "task",
        "Reward model: RUN_DIR/model of a reward run (or its model_adapter), or another sequence classifier.",
        "none",
        "DIR",
    )
    value_model: str | None = option(
        None,
        "model",
        "What the value model starts from: 'reward', 'policy', 'scratch' or a sequence classifier's directory.",
        "the reward model, or the policy where there is none",
        "NAME",
    )

    kl_coef: float = option(0.05, "objective", "β of the KL in the reward, score per nat; 0 needs no reference.")
    kl_estimator: Literal["k1", "k2", "k3"] = option("k1", "objective", "Estimator of that KL.")
    kl_target: float | None = option(
        None, "objective", "KL of a completion that β is steered to, nats.", "β stays as it is"
    )
    eps: float = option(0.2, "objective", "Half-width of the ratio clip.")
    value_eps: float = option(0.2, "objective", "Half-width of the value clip, in scores.")
    value_coef: float = option(0.1, "objective", "Weight of the value model's loss.")
    discount: float = option(1.0, "objective", "Discount of a token, from 0 to 1.")
    policy_lambda: float = option(0.95, "objective", "λ of the advantages, from 0 to 1.")
    value_lambda: float = option(0.95, "objective", "λ of the value model's targets, from 0 to 1.")
    missing_eos_penalty: float = option(0.0, "objective", "Subtracted from the score of a completion that was cut.")
    whiten_rewards: bool = option(False, "objective", "Divide rewards by their standard deviation.")

    batch_size: int | None = option(None, "rollout", "Prompts per step.", CHOSEN)
    group_size: int = option(1, "rollout", "Completions per prompt.")
    max_prompt_tokens: int | None = option(None, "rollout", "Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int | None = option(None, "rollout", "Longest completion, tokens.", CHOSEN)

    warm_start_steps: int | None = option(
        None, "training", "Supervised steps before, on the task's own answers.", "chosen for 'char', 0 for other models"
    )
    epochs: int = option(4, "training", "Times that each completion is learned from.")
    minibatches: int = option(1, "training", "Optimizer steps in an epoch.")
    micro_batch_size: int | None = option(
        None, "training", "Prompts per micro-batch: less memory, same gradient.", "a minibatch at once"
    )
    value_learning_rate: float | None = option(None, "training", "Peak learning rate of the value model.", "the same")
    value_warmup_steps: int = option(0, "training", "First steps that teach the value model alone.")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        self.check_model()
        self.check_optimizer()
        self.check_run()
        at_least(self, 1, "batch_size", "group_size", "max_prompt_tokens", "max_new_tokens", "epochs", "minibatches")
        at_least(self, 1, "micro_batch_size")
        at_least(self, 0, "kl_coef", "value_coef", "warm_start_steps", "value_warmup_steps")
        above_zero(self, "eps", "value_eps", "kl_target", "temperature", "value_learning_rate")
        for name in ("discount", "policy_lambda", "value_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"ppo: {name} is {getattr(self, name)}, wanted a number from 0 to 1.")
        self.check_sampler()
        check_divides(self, "minibatches", "batch_size")
        check_micro_batch(self)
        if self.steps and self.value_warmup_steps >= self.steps:
            raise ValueError(
                f"ppo: value_warmup_steps is {self.value_warmup_steps} of {self.steps} steps; leave some to the policy."
            )
        if self.data is not None and self.reward is None and self.reward_model is None:
            raise ValueError("ppo: data is given without reward or reward_model; give one of them.")
        if self.value_model == "reward" and self.reward_model is None:
            raise ValueError("ppo: value_model is 'reward' and there is no reward_model; give one, or take 'policy'.")
        if self.kl_target is not None and not self.kl_coef:
            raise ValueError("ppo: kl_target is given and kl_coef is 0, which no factor changes; give a kl_coef.")
