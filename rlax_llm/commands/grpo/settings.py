"""The settings of ``rlax-llm grpo``: its own here, those of other commands too in ``commands/*_settings.py``.

Defaults that follow from the model are in ``commands/defaults.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.defaults import SUPERVISED_BATCH_SIZE, is_small, model_defaults
from rlax_llm.commands.fields import above_zero, at_least, check_countable, option, resolved, within
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import OF_THE_DISTRIBUTION, DrawSettings, SamplingSettings
from rlax_llm.commands.server_settings import ServerSettings
from rlax_llm.commands.shared_settings import (
    AveragedOptimizerSettings,
    EpochSettings,
    ReferenceSettings,
    ReplayedRolloutSettings,
    TrainedModelSettings,
    WarmStartedRunSettings,
    check_draws_all,
)
from rlax_llm.commands.task_settings import StepSettings, TaskSettings
from rlax_llm.recipes.registry import PEERS, Named, by_kind, find, recipes

_RECIPE_HELP = (
    f"Named objective, with its arXiv number. Of {by_kind()}. Another trainer's variant as TRAINER:NAME, such as "
    f"trl:dr_grpo or verl:gspo, of {', '.join(PEERS)}; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which "
    "returns an Objective."
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
class SteppedTaskSettings(StepSettings, GroupTaskSettings):
    """Prompts, and how their completions are scored, step by step too."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(ReferenceSettings):
    """A recipe, and what of it is set otherwise."""

    recipe: str = option("grpo", _RECIPE_HELP, metavar="RECIPE", values=tuple(recipes("group")))
    kl_coef: float | None = option(None, "Weight of the KL term; 0 needs no reference model.", "the recipe's")
    kl_in: Literal["loss", "reward"] | None = option(
        None, "Where that KL stands: k3 in the loss, or k1 in the score.", "as the recipe has it, or loss"
    )
    eps: float | None = option(None, "Half-width of the ratio clip (its lower side in dapo).", "the recipe's")
    eps_high: float | None = option(None, "Half-width of the clip above 1.", "the recipe's")
    ceiling: float | None = option(None, "Largest ratio (cispo, verl:grpo).", "the recipe's")
    off_policy_mask: float | None = option(
        None,
        "Leave out completions of negative advantage whose tokens the policy has left by more than this, in the mean, "
        "nats.",
        "none is",
    )
    beta: float | None = option(None, "β of gvpo and dro, score per nat.", "the recipe's")
    mu: float | None = option(None, "Share of imitation in the loss of chord, from 0 to 1.", "the recipe's")
    gamma: float | None = option(
        None, "Probability at which a demonstration's token counts half in luffy.", "the recipe's"
    )
    nll_coef: float | None = option(
        None, "Weight of the negative log-likelihood of what tools answered (echo), per nat.", "the recipe's"
    )
    step_coef: float | None = option(
        None, "Weight of what a turn earns beside turns that read the same answer of a tool (gigpo).", "the recipe's"
    )
    kl_radius: float = option(0.01, "KL per token that a step of trpo may take, nats.")

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "kl_coef", "off_policy_mask", "nll_coef", "step_coef")
        above_zero(self, "eps", "eps_high", "ceiling", "beta", "gamma", "kl_radius")
        within(self, 0, 1, "mu")
        if self.kl_in is not None and self.kl_coef is None:
            raise ValueError("kl_in is given without kl_coef; give both.")
        if self.recipe != TRPO and self.kl_radius != ObjectiveSettings.kl_radius:
            raise ValueError(f"recipe {self.recipe} has no kl_radius; leave it out, or choose trpo.")


@dataclass(frozen=True, kw_only=True)
class GroupRolloutSettings(ReplayedRolloutSettings):
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
    replay: int = option(
        0,
        "Groups that differed in score and are remembered, the last ones, to stand in for groups of a step that do not "
        "differ, corrected for the policies that drew them; 0 is off.",
    )
    replay_share: float = option(0.5, "Share of a step's groups that may be replayed, at most.")
    curriculum: float | None = option(
        None,
        "Pass rate of the prompts that are drawn most often; the chance of others falls with the distance of theirs.",
        "each prompt is drawn once in an epoch",
    )
    curriculum_window: int = option(4, "Times that a prompt was drawn last which its pass rate is taken over.")
    retire: Literal["solved", "settled", "none"] = option(
        "solved",
        "Prompts that a curriculum draws no more: those whose completions were all right over the window, or all right "
        "or all wrong.",
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
    demonstrations: str | None = option(
        None,
        "Column of the rows with a demonstration of each prompt, which is the last of its group's completions: "
        "imitated beside the others (chord), or scored as one of them (luffy).",
        "none",
        "COLUMN",
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "dynamic_rounds", "partial_rollouts", "ahead", "replay")
        self._check_replay()
        self._check_router_replay()
        self._check_curriculum()
        if self.partial_rollouts and self.tool is not None:
            raise ValueError(
                f"partial_rollouts is given with tool {self.tool}, in whose turns no completion can be interrupted; "
                "leave one out."
            )

    def _check_replay(self) -> None:
        """Raise for a share of nothing."""
        within(self, 0, 1, "replay_share")
        if not self.replay and self.replay_share != GroupRolloutSettings.replay_share:
            raise ValueError("replay_share is given without replay; give both.")
        if self.replay and round(self.replay_share * self.batch_size) == 0:
            raise ValueError(
                f"replay_share is {self.replay_share:g}, less than half of one of the {self.batch_size} groups; give a "
                "larger one, or leave replay out."
            )
        if self.replay:
            at_least(self, 2, "group_size")

    def _check_router_replay(self) -> None:
        """Raise for completions that are not of one pass over their tokens."""
        for name, kind in (("partial_rollouts", "go on under other parameters"), ("tool", "take several turns")):
            if self.router_replay and getattr(self, name):
                raise ValueError(
                    f"router_replay is given with {name}, whose completions {kind} and do not say which experts their "
                    "tokens were sent to; leave one out."
                )

    def _check_curriculum(self) -> None:
        """Raise for a curriculum that could not choose."""
        at_least(self, 1, "curriculum_window")
        if self.curriculum is None:
            for name in ("curriculum_window", "retire"):
                if getattr(self, name) != getattr(GroupRolloutSettings, name):
                    raise ValueError(f"{name} is given without curriculum; give both.")
            return
        within(self, 0, 1, "curriculum")
        if self.partial_rollouts:
            raise ValueError(
                "curriculum is given with partial_rollouts, whose prompts are settled before those in flight have "
                "scores; leave one out."
            )

    @property
    def drawn_size(self) -> int:
        """Completions of a prompt that are drawn."""
        return self.group_size - (self.demonstrations is not None)

    @property
    def rows_in_flight(self) -> int:
        """Completions that are drawn beside one another, at most."""
        return (self.batch_size + self.partial_rollouts) * self.drawn_size

    @property
    def formats(self) -> dict[str, str | None]:
        """The number formats that completions to learn from are drawn in, as fields of the decoder's config."""
        return {"sampler_dtype": self.sampler_dtype, "cache_dtype": self.cache_dtype}


@dataclass(frozen=True, kw_only=True)
class GroupLearningSettings(EpochSettings):
    """How the groups of a step are learned from."""

    overlong_filter: bool = option(False, "Learn nothing from completions that were cut (DAPO).")
    correction: Literal["none", "token", "mask", "sequence", "moment", "log_linear"] = resolved(
        "Weights for a sampler that differs: of tokens, truncated or cut, whole completions, or what differs most; "
        "log_linear takes the policy between by the steps since a token was drawn, without a pass over all of them; "
        "none leaves a recipe's own ratio, to the policy that drew each token.",
        "token with --sampler-url, --partial-rollouts, --ahead, --replay, --sampler-dtype or --cache-dtype and without "
        "--off-policy-mask, else none",
    )
    top_entropy: float = option(
        1.0, "Share of the tokens that have an advantage, those of highest entropy; 0.2 in the paper, 1 is all."
    )
    entropy_coef: float = option(0.0, "Weight of a bonus for the entropy of a token, at the start.")
    entropy_target: float | None = option(
        None, "Entropy that the bonus is steered to, nats per token.", "the weight stays"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "entropy_coef", "entropy_target")
        above_zero(self, "top_entropy")
        within(self, 0, 1, "top_entropy")


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
    task: SteppedTaskSettings
    objective: ObjectiveSettings
    rollout: GroupRolloutSettings
    sampling: SamplingSettings
    server: ServerSettings
    learning: GroupLearningSettings
    optimizer: AveragedOptimizerSettings
    machine: MachineSettings
    run: WarmStartedRunSettings

    def rows_together(self) -> tuple[int, ...]:
        """Completions of a micro-batch, and rows of a step of the warm start."""
        rows = self.learning.rows_together(self.rollout)
        return (rows, SUPERVISED_BATCH_SIZE[is_small(self.model.model)]) if self.run.warm_start_steps else (rows,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model, and the correction for completions of other policies or other numbers."""
        differing = ("sampler_url", "partial_rollouts", "ahead", "replay", "sampler_dtype", "cache_dtype")
        corrected = any(given.get(name) for name in differing) and given.get("recipe") != TRPO
        corrected = corrected and given.get("off_policy_mask") is None
        return {**model_defaults(cls.command, given), "correction": "token" if corrected else "none"}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe by its own name."""
        return {"recipe": find(cls.command, given["recipe"], "group").name} if "recipe" in given else {}

    def __post_init__(self) -> None:
        """Check the parts together."""
        check_draws_all(self.model)
        self.learning.check_shares(self.rollout)
        rollout = self.rollout
        self._check_recipe()
        factors = {"batch_size": rollout.batch_size + rollout.partial_rollouts, "group_size": rollout.group_size}
        check_countable(self.sampling.row_tokens, factors)
        buffer, longest = self.task.overlong_buffer, self.sampling.max_new_tokens
        if buffer > longest:
            raise ValueError(f"overlong_buffer is {buffer}, wanted at most max_new_tokens, {longest}.")
        if self.sampling.pattern is not None and self.rollout.tool is not None:
            raise ValueError(
                f"pattern is given with tool {self.rollout.tool}, whose calls it would have to foresee; leave one out."
            )
        self._check_served()

    def _check_served(self) -> None:
        """Raise for what a server that draws cannot be asked for, as far as the settings tell."""
        if self.server.sampler_url is None:
            return
        speculation = self.sampling.speculation
        always = speculation if speculation is not None and speculation.always else None
        own = self.rollout.formats | {"speculate": always}
        for name, given in own.items():
            if given is not None:
                raise ValueError(f"{name} is given with sampler_url, whose server has its own; leave one out.")
        for name in OF_THE_DISTRIBUTION:
            if getattr(self.sampling, name) != getattr(DrawSettings, name):
                raise ValueError(
                    f"{name} is given with sampler_url, whose server does not say what that left to draw from, and the "
                    "learner could not recompute the log-probabilities; leave one out."
                )
        if self.rollout.partial_rollouts:
            raise ValueError(
                "partial_rollouts is given with sampler_url, whose server ends what it begins; leave one out."
            )

    def _check_recipe(self) -> None:
        """Raise for what the recipe does not go with."""
        named = find(self.command, self.objective.recipe, "group")
        if not named.is_own:  # which says it when it is made
            self.check_compared(named)
        self._check_given()
        if self.objective.recipe == TRPO:
            self._check_trpo()
        if self.objective.off_policy_mask is not None and self.learning.correction != "none":
            raise ValueError(
                f"off_policy_mask is given with correction {self.learning.correction}, in whose place it reads what "
                "the tokens were drawn with; leave one out."
            )

    def check_compared(self, named: Named) -> None:
        """Raise where there is nothing that a recipe could compare.

        Args:
            named: the recipe, with what it says of itself.

        Raises:
            ValueError: there is not.
        """
        if not named.alone:
            at_least(self.rollout, 2, "group_size")
        if "turns" in named.reads and self.rollout.tool is None:
            raise ValueError(
                f"recipe {named.name} compares turns, and without a tool there is one; give tool, or take another."
            )

    def _check_given(self) -> None:
        """Raise for a recipe without the given tokens that it reads, or for these without it."""
        recipe, rollout = self.objective.recipe, self.rollout
        named = find(self.command, recipe, "group")
        # What a user's own recipe reads is known when it is made.
        own = named.is_own and rollout.demonstrations is not None
        given = named.given
        shown = own or given in ("demonstrations", "members")
        if shown and rollout.demonstrations is None:
            raise ValueError(f"recipe {recipe} learns from demonstrations; give demonstrations, their column.")
        if rollout.demonstrations is not None and not shown:
            raise ValueError(
                f"demonstrations is given and recipe {recipe} reads none; leave it out, or choose chord, luffy or one "
                "of your own that does."
            )
        if given == "answers" and rollout.tool is None:
            raise ValueError(f"recipe {recipe} learns from what tools answer; give tool, or take another.")
        if shown and self.task.judges_steps:
            raise ValueError(
                f"recipe {recipe} learns from demonstrations, whose steps nobody judges; leave step_reward and "
                "step_reward_model out, or take another."
            )
        self.check_shown_as(given)

    def check_shown_as(self, given: str) -> None:
        """Raise for what does not go with demonstrations of a kind.

        Args:
            given: as of a ``Named``, what demonstrations are to the recipe.

        Raises:
            ValueError: something does not.
        """
        if given == "members":
            self._check_members()
        if given == "demonstrations" and self.rollout.drawn_size < 2:
            raise ValueError(
                f"group_size is {self.rollout.group_size}, wanted at least 3 with recipe {self.objective.recipe}: one "
                "is the demonstration."
            )

    def _check_members(self) -> None:
        """Raise for what cannot be where a demonstration is one of its group."""
        recipe = self.objective.recipe
        for name in ("dynamic_rounds", "replay"):
            if getattr(self.rollout, name):
                raise ValueError(
                    f"{name} is given with recipe {recipe}, which learns from groups whose own completions score "
                    "alike too; leave one out."
                )
        if self.objective.off_policy_mask is not None:
            raise ValueError(
                f"off_policy_mask is given with recipe {recipe}, and who drew a demonstration is not known; leave one "
                "out."
            )

    def _check_trpo(self) -> None:
        """Raise for what TRPO does not have: it takes one step, and without a ratio nothing makes up for samples of
        other weights."""
        unread = {
            "epochs": self.learning.epochs != 1,
            "minibatches": self.learning.minibatches != 1,
            "micro_batch_size": self.learning.micro_batch_size is not None,
            "correction": self.learning.correction != "none",
            "top_entropy": self.learning.top_entropy != 1,
            "off_policy_mask": self.objective.off_policy_mask is not None,
            "entropy_coef": self.learning.entropy_coef != 0,
            "entropy_target": self.learning.entropy_target is not None,
            "kl_coef": bool(self.objective.kl_coef),
            "average": self.optimizer.average != "none",
            "reference_every": self.objective.reference_every != 0,
            "sampler_dtype": self.rollout.sampler_dtype is not None,
            "cache_dtype": self.rollout.cache_dtype is not None,
            f"base_dtype {self.model.base_dtype}": self.model.blocks is not None,
            "sampler_url": self.server.sampler_url is not None,
            "step_reward": self.task.step_reward is not None,
            "step_reward_model": self.task.step_reward_model is not None,
        }
        for part, numbers in (
            (self.rollout, ("dynamic_rounds", "partial_rollouts", "ahead", "replay")),
            (self.model, ("router_aux_coef", "router_z_coef")),
        ):
            unread |= {name: bool(getattr(part, name)) for name in numbers}
        named = ("eps", "eps_high", "ceiling", "beta", "mu", "gamma", "nll_coef", "step_coef")
        unread |= {name: getattr(self.objective, name) is not None for name in named}
        for name, given in unread.items():
            if given:
                raise ValueError(f"recipe trpo has no {name}; leave it out.")
