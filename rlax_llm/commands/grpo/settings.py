"""The settings of ``rlax-llm grpo``."""

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
from rlax_llm.commands.task_settings import DATA_HELP, INTEGERS_HELP, REWARD_HELP, TASK_HELP, check_task
from rlax_llm.recipes.registry import find, listed

_RECIPE_HELP = (
    f"Named objective: {listed('group')}; another trainer's variant as trl:dr_grpo, verl:gspo, openrlhf:rloo; or your "
    "own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an Objective."
)


@dataclass(frozen=True)
class GrpoSettings(RunSettings, OptimizerSettings, SamplerSettings, ModelSettings):
    """Settings of ``rlax-llm grpo``: reinforcement learning of a language model from groups of completions.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.

    >>> GrpoSettings(group_size=1)
    Traceback (most recent call last):
    ValueError: grpo: group_size is 1, wanted at least 2.
    """

    command: ClassVar[str] = "grpo"

    task: str = option("arithmetic", "task", TASK_HELP, metavar="TASK")
    data: str | None = option(None, "task", DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, "task", REWARD_HELP, "the task's own", "REWARD")
    integer_answers: bool = option(False, "task", INTEGERS_HELP)
    reward_model: str | None = option(
        None,
        "task",
        "Reward model whose score is added: a sequence classifier's directory, or its adapters'.",
        "none",
        "DIR",
    )
    reward_workers: int = option(0, "task", "Processes that call slow rewards, a row at a time; 0 is none.")
    reward_timeout: float = option(30.0, "task", "Seconds that such a call may take; then the row has no score.")
    overlong_buffer: int = option(
        0, "task", "Last tokens before the limit over which the score falls by up to 1 (DAPO); 0 is off."
    )
    tool: Literal["calculator"] | None = option(
        None, "task", "Tool that the model may call as <calc>2*3</calc>; it reads <result>6</result>.", "none"
    )

    recipe: str = option("grpo", "objective", _RECIPE_HELP, metavar="RECIPE")
    kl_coef: float | None = option(
        None, "objective", "Weight of the KL term; 0 needs no reference model.", "the recipe's"
    )
    kl_in: Literal["loss", "reward"] | None = option(
        None, "objective", "Where that KL stands: k3 in the loss, or k1 in the score.", "as the recipe has it, or loss"
    )
    eps: float | None = option(
        None, "objective", "Half-width of the ratio clip (its lower side in dapo).", "the recipe's"
    )
    eps_high: float | None = option(None, "objective", "Half-width of the clip above 1.", "the recipe's")
    ceiling: float | None = option(None, "objective", "Largest ratio (cispo, verl:grpo).", "the recipe's")
    kl_radius: float = option(0.01, "objective", "KL of a token that a step of trpo may take, nats.")
    entropy_coef: float = option(0.0, "objective", "Weight of a bonus for the entropy of a token, at the start.")
    entropy_target: float | None = option(
        None, "objective", "Entropy that the bonus is steered to, nats per token.", "the weight stays"
    )
    overlong_filter: bool = option(False, "objective", "Learn nothing from completions that were cut (DAPO).")
    reference_every: int = option(
        0, "objective", "Steps after which the reference becomes the policy; 0 keeps the first."
    )

    batch_size: int | None = option(None, "rollout", "Prompts per step.", CHOSEN)
    group_size: int | None = option(None, "rollout", "Completions per prompt.", CHOSEN)
    max_prompt_tokens: int | None = option(None, "rollout", "Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int | None = option(None, "rollout", "Longest completion, tokens.", CHOSEN)
    dynamic_rounds: int = option(
        0, "rollout", "Rounds of sampling, at most, until all groups of a step differ in score (DAPO); 0 is off."
    )
    sampler_dtype: Literal["float32", "bfloat16"] | None = option(
        None, "rollout", "Number format that the weights are rounded to for sampling.", "that of the model"
    )
    correction: Literal["none", "token", "mask", "sequence"] = option(
        "none", "rollout", "Weights for a sampler that differs: of tokens, truncated or cut, or whole completions."
    )

    warm_start_steps: int | None = option(
        None, "training", "Supervised steps before, on the task's own answers.", "chosen for 'char', 0 for other models"
    )
    epochs: int = option(1, "training", "Times that each completion is learned from.")
    minibatches: int = option(1, "training", "Optimizer steps in an epoch, each on a share of the prompts.")
    micro_batch_size: int | None = option(
        None, "training", "Prompts per micro-batch: less memory, same gradient.", "a minibatch at once"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        object.__setattr__(self, "recipe", find("grpo", self.recipe, "group").name)
        self.check_model()
        self.check_optimizer()
        self.check_run()
        at_least(self, 1, "batch_size", "micro_batch_size", "max_prompt_tokens", "max_new_tokens", "epochs")
        at_least(self, 1, "minibatches")
        at_least(self, 2, "group_size")
        at_least(self, 0, "warm_start_steps", "kl_coef", "entropy_coef", "entropy_target", "reference_every")
        at_least(self, 0, "reward_workers", "overlong_buffer", "dynamic_rounds")
        above_zero(self, "temperature", "eps", "eps_high", "ceiling", "kl_radius", "reward_timeout")
        self.check_sampler()
        if self.data is None or self.reward_model is None:
            check_task(self)
        check_divides(self, "minibatches", "batch_size")
        self._check_parts()
        self._check_trpo()

    def _check_parts(self) -> None:
        check_micro_batch(self)
        if self.max_new_tokens and self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"grpo: overlong_buffer is {self.overlong_buffer}, wanted at most max_new_tokens, "
                f"{self.max_new_tokens}."
            )
        if self.kl_in is not None and self.kl_coef is None:
            raise ValueError("grpo: kl_in is given without kl_coef; give both.")
        if self.entropy_target is not None and self.command == "grpo" and self.recipe == "trpo":
            raise ValueError("grpo: recipe trpo has no entropy_target; leave it out.")

    def _check_trpo(self) -> None:
        if self.recipe != "trpo":
            if self.kl_radius != GrpoSettings.kl_radius:
                raise ValueError(f"grpo: recipe {self.recipe} has no kl_radius; leave it out, or choose trpo.")
            return
        plain = {"epochs": 1, "minibatches": 1, "correction": "none", "entropy_coef": 0.0, "micro_batch_size": None}
        plain |= {"kl_coef": None, "eps": None, "eps_high": None, "ceiling": None}
        # Without a ratio nothing makes up for samples of other weights.
        plain |= {"dynamic_rounds": 0, "sampler_dtype": None, "reference_every": 0}
        for name, default in plain.items():
            if getattr(self, name) not in (default, 0):
                raise ValueError(f"grpo: recipe trpo has no {name}; leave it out.")
