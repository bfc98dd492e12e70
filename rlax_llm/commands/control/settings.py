"""The settings of ``rlax-llm control``, and what they are where they are left open: one table, recipe × environment.

Plain values, like the settings of the other commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Literal

from rlax_llm.commands.descriptions import KEEP_HELP, NORM_HELP, RUN_MAY_CHANGE, TIME_HELP, TRACK_HELP, may_change
from rlax_llm.commands.fields import LARGEST_COUNT, Part, above_zero, at_least, option, resolved, within
from rlax_llm.commands.settings import Settings
from rlax_llm.envs.ids import ENVIRONMENT_NAMES
from rlax_llm.host.tracking.registry import tracker_names
from rlax_llm.recipes.building import parameters
from rlax_llm.recipes.registry import Named, find, recipes, with_papers

_POLICY_GRADIENT: dict[str, Any] = {
    "environments": 8,
    "horizon_steps": 64,
    "learning_rate": 3e-3,
    "schedule": "linear",
    "epochs": 1,
    "minibatches": 1,
    "weight": "return_to_go",
    "entropy_coef": 0.01,
}
_PPO: dict[str, Any] = {
    "environments": 4,
    "horizon_steps": 128,
    "learning_rate": 2.5e-4,
    "schedule": "linear",
    "epochs": 4,
    "minibatches": 4,
    "eps": 0.2,
    "value_eps": 0.2,
    "kl_target": 0.01,
    "entropy_coef": 0.01,
}
_TRPO: dict[str, Any] = {
    "environments": 2,
    "horizon_steps": 512,
    "gae_lambda": 0.98,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "epochs": 20,
    "minibatches": 2,
    "kl_radius": 0.01,
    "damping": 1e-3,
    "cg_iterations": 15,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "a2c": _POLICY_GRADIENT,
    "q_actor_critic": _POLICY_GRADIENT | {"gae_lambda": 0.0},
    "ppo": _PPO,
    "trpo": _TRPO,
}
"""What differs between recipes, by the one that a recipe is ``like``; these are right for CartPole."""

_EVERYWHERE: dict[str, Any] = {
    "steps": 500_000,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "max_grad_norm": 0.5,
    "value_eps": 0.0,
    "value_coef": 0.5,
    "entropy_coef": 0.0,
    "kl_limit": 0.0,
    "normalize_observations": False,
    "normalize_rewards": False,
    "normalize_advantages": True,
    "hidden": (64, 64),
    "shared": (),
    "memory": 0,
    "activation": "tanh",
}

RECIPE_SETTINGS = {
    "credit": "weight",
    "gae_lambda": "gae_lambda",
    "eps": "eps",
    "kl_target": "kl_target",
    "kl_radius": "kl_radius",
    "damping": "damping",
    "cg_iterations": "cg_iterations",
}
"""The settings that recipes have parameters for, by the parameter."""

_OF_GRADIENTS = ("entropy_coef", "value_coef", "kl_limit")
"""Settings that recipes of natural-gradient steps do not read."""

_SWING = {"discount": 0.9, "learning_rate": 1e-3, "horizon_steps": 1024, "value_eps": 0.0, "entropy_coef": 0.0}
_GRIDS = {"environments": 64, "steps": 10_000_000, "activation": "relu"}

_TUNED: list[tuple[str, str, dict[str, Any]]] = [
    ("Pendulum-v1", "*", _SWING | {"steps": 200_000, "normalize_observations": True, "normalize_rewards": True}),
    ("Pendulum-v1", "ppo", {"discount": 0.95, "schedule": "constant", "epochs": 10, "minibatches": 32}),
    ("Pendulum-v1", "trpo", {"discount": 0.95, "gae_lambda": 0.95, "kl_radius": 0.02}),
    ("Acrobot-v1", "*", {"environments": 16, "normalize_observations": True, "normalize_rewards": True}),
    ("Acrobot-v1", "trpo", {"environments": 4}),
    ("MountainCar-v0", "*", {"environments": 16, "normalize_observations": True, "normalize_rewards": True}),
    ("MountainCarContinuous-v0", "*", {"normalize_observations": True, "normalize_rewards": True}),
    ("*-MinAtar", "*", _GRIDS),
    ("*-MinAtar", "ppo", {"learning_rate": 5e-3, "minibatches": 8}),
    ("brax:*", "*", {"environments": 64, "normalize_observations": True, "normalize_rewards": True}),
]
"""(environment, recipe, what they want), as patterns; a later row wins over an earlier one, all over the recipe's."""

_OUT_HELP = "Directory of the run: config.yaml, config.json, metrics.jsonl, curves.png, summary.json, checkpoints/."
_RESUME_HELP = f"Go on with an interrupted run from its directory, with its settings; {may_change(RUN_MAY_CHANGE)}."
_CONFIG_HELP = "YAML or JSON file of settings, keys as the flags with underscores; flags given beside it win over it."
_RECIPE_HELP = (
    f"Algorithm: {with_papers('control')}; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an "
    "Objective."
)
_THEN = "tuned for recipe and environment"
_LOOKS = 50


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings(Part):
    """The environment, and what is collected from it between two updates."""

    env: str = option(
        "CartPole-v1",
        "Environment: an id of Gymnax (CartPole-v1, Pendulum-v1, Breakout-MinAtar), brax:NAME, RockPaperScissors, "
        "probe:NAME, or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an Environment.",
        metavar="NAME",
        values=ENVIRONMENT_NAMES,
    )
    environments: int = resolved("Environments of each seed, run together.", _THEN)
    horizon_steps: int = resolved("Steps of each environment between two updates.", _THEN)
    discount: float = resolved("Discount of a step, from 0 to 1.", _THEN)
    normalize_observations: bool = resolved("Bring observations to mean 0 and variance 1, as seen so far.", _THEN)
    normalize_rewards: bool = resolved("Divide rewards by the standard deviation of the discounted returns.", _THEN)

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "environments", "horizon_steps")
        within(self, 0, 1, "discount")

    @property
    def rollout_steps(self) -> int:
        """Environment steps of one seed between two updates."""
        return self.environments * self.horizon_steps


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Part):
    """A recipe, and what of it is set otherwise; what the recipe does not read is None."""

    recipe: str = option("ppo", _RECIPE_HELP, metavar="NAME", values=tuple(recipes("control")))
    weight: Literal["total_return", "return_to_go", "return_minus_baseline", "q_value", "gae", "td_residual"] | None = (
        resolved("Weight of the policy gradient in reinforce.", "return_to_go", "NAME")
    )
    gae_lambda: float = resolved("λ of the advantage estimate and of the critic's target, from 0 to 1.", _THEN)
    normalize_advantages: bool = resolved("Bring the advantages of a minibatch to mean 0 and variance 1.", "on")
    entropy_coef: float | None = resolved("Weight of the entropy, per nat.", _THEN)
    value_coef: float | None = resolved("Weight of the critic's loss.", _THEN)
    value_eps: float = resolved("Half-width of the critic's clip, in (scaled) rewards; 0 is off.", _THEN)
    eps: float | None = resolved("Half-width of the ratio clip: ppo, dual_clip, cispo.", _THEN)
    kl_target: float | None = resolved("KL that ppo_penalty steers to, nats.", _THEN)
    kl_limit: float | None = resolved("KL to the old policy, nats, that ends an update early; 0 is off.", "off")
    kl_radius: float | None = resolved("Radius of the trust region of trpo, nats.", _THEN)
    damping: float | None = resolved("Added to the Fisher matrix's diagonal by trpo.", _THEN)
    cg_iterations: int | None = resolved("Conjugate-gradient iterations of trpo.", _THEN)

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "entropy_coef", "value_coef", "damping")
        at_least(self, 1, "cg_iterations")
        above_zero(self, "eps", "kl_target", "kl_radius")
        within(self, 0, 1, "gae_lambda")
        _at_least_off(self, "value_eps", "kl_limit")


@dataclass(frozen=True, kw_only=True)
class LearningSettings(Part):
    """How a rollout is learned from."""

    learning_rate: float = resolved("Adam's; of the critic alone in trpo.", _THEN)
    schedule: Literal["constant", "linear"] = resolved(
        "Learning rate over the run; linear ends at 0.", _THEN, "{constant,linear}"
    )
    max_grad_norm: float = resolved(NORM_HELP, _THEN, infinite=True)
    epochs: int = resolved("Times that each step is learned from; by the critic alone in trpo.", _THEN)
    minibatches: int = resolved("Optimizer steps in an epoch.", _THEN)

    def check(self) -> None:
        """Check the ranges."""
        above_zero(self, "learning_rate")
        _at_least_off(self, "max_grad_norm")
        at_least(self, 1, "epochs", "minibatches")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Part):
    """The layers of actor and critic."""

    hidden: tuple[int, ...] = resolved(
        "Widths of the hidden layers of actor and critic, or of the one before the memory.", _THEN, "INT"
    )
    shared: tuple[int, ...] = resolved(
        "Widths of layers that actor and critic share, in front of the others.", "none", "INT"
    )
    memory: int = resolved("Width of a gated recurrent unit; 0 is no memory.", "0")
    activation: Literal["tanh", "relu"] = resolved("Of the hidden layers.", _THEN, "{tanh,relu}")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "memory")
        for name in ("hidden", "shared"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}, wanted widths of at least 1.")
        if self.memory and (self.shared or len(self.hidden) != 1):
            raise ValueError(
                f"with memory {self.memory} hidden is {self.hidden} and shared is {self.shared}, wanted one width in "
                "hidden and none in shared."
            )

    @property
    def largest_layer(self) -> int:
        """The most weights that a layer has."""
        widths = [*self.shared, *self.hidden, 3 * self.memory if self.memory else 1]
        return max(into * out for into, out in zip([1, *widths], widths, strict=False))


@dataclass(frozen=True, kw_only=True)
class ControlRunSettings(Part):
    """How long a run is, over how many seeds, and what is measured and kept on the way."""

    steps: int = resolved("Environment steps of each seed.", _THEN, largest=LARGEST_COUNT**2)
    seeds: int = option(8, "Independent runs, in one program.")
    seed: int = option(0, "Everything random follows from it.")
    eval_steps: int = option(1000, "Longest episode of the greedy evaluation at the end, steps; 0 is none.")
    eval_episodes: int = option(16, "Episodes of each seed in the greedy evaluation.")
    log_every: int = resolved("Iterations (rollout and update) between two looks at the run.", f"about {_LOOKS} looks")
    save_every: int | None = option(
        None, "Iterations between checkpoints, at the next look; 0 is only at the end or at Ctrl-C.", "one per minute"
    )
    keep_checkpoints: int = option(2, KEEP_HELP)
    max_hours: float | None = option(None, TIME_HELP, "no limit")
    profile: int | None = option(
        None,
        "Iteration, from 1: the first look that begins there or later is traced to profile/ (TensorBoard, Perfetto).",
        "none",
        "ITERATION",
    )
    track: tuple[str, ...] | None = option(None, TRACK_HELP, "none", "TRACKER")
    render: bool = option(False, "Write a greedy episode of the best seed to episode.gif.")
    out: str | None = option(None, _OUT_HELP, "runs/control-DATE-TIME", "DIR")
    resume: str | None = option(None, _RESUME_HELP, "a new run", "RUN_DIR")
    config: str | None = option(None, _CONFIG_HELP, "no file", "FILE")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "steps", "seeds", "eval_episodes", "log_every", "keep_checkpoints", "profile")
        at_least(self, 0, "eval_steps", "save_every")
        above_zero(self, "max_hours")
        tracker_names(self.track)


def _at_least_off(part: Part, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{name} is {value}, wanted at least 0, which is off.")


@dataclass(frozen=True, kw_only=True)
class ControlSettings(Settings):
    """Settings of ``rlax-llm control``: training in an environment, over several seeds at once.

    What is left open is the recipe's and the environment's own. Floats may be traced, so ``vmap`` runs over them:
    ``jax.vmap(lambda rate: run(settings.changed(learning_rate=rate)))``.

    Raises:
        ValueError: a value is out of its range, there is no such recipe, or it does not read a setting that is given.

    >>> settings = ControlSettings.of(learning_rate=0.5)
    >>> settings.learning.learning_rate, settings.objective.eps, settings.objective.kl_radius
    (0.5, 0.2, None)
    >>> ControlSettings.of(recipe="pppo")
    Traceback (most recent call last):
    ValueError: control: there is no recipe 'pppo'; did you mean 'ppo'? There are reinforce, q_actor_critic, ...
    """

    command: ClassVar[str] = "control"

    environment: EnvironmentSettings
    objective: ObjectiveSettings
    learning: LearningSettings
    network: NetworkSettings
    run: ControlRunSettings

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe by its own name."""
        return {"recipe": find(cls.command, given["recipe"], "control").name} if "recipe" in given else {}

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is tuned for the recipe and the environment; a setting that the recipe does not read is None.

        Raises:
            ValueError: for a setting that the recipe does not read.
        """
        named = find(cls.command, given.get("recipe", ObjectiveSettings.recipe), "control")
        _check_read(named, given)
        like, environment = named.like or "ppo", given.get("env", EnvironmentSettings.env)
        chosen = dict.fromkeys(RECIPE_SETTINGS.values()) | _EVERYWHERE | DEFAULTS[like]
        for place, recipe, settings in _TUNED:
            if fnmatch(environment, place) and fnmatch(like, recipe):
                chosen |= settings
        if given.get("memory"):
            chosen["hidden"] = (64,)
            chosen["minibatches"] = min(chosen["minibatches"], given.get("environments", chosen["environments"]))
        whole = {**chosen, **given}
        iterations = whole["steps"] // max(whole["environments"] * whole["horizon_steps"], 1)
        return chosen | dict.fromkeys(_unread(named)) | {"log_every": min(max(1, iterations // _LOOKS), LARGEST_COUNT)}

    def __post_init__(self) -> None:
        """Check the parts together."""
        environments, steps = self.environment.environments, self.environment.rollout_steps
        if self.objective.recipe == "trpo":
            for name in ("memory", "shared"):
                if getattr(self.network, name):
                    raise ValueError(
                        f"{name} is {getattr(self.network, name)} with recipe trpo, whose actor and critic share "
                        f"nothing; leave {name} out, or take another recipe."
                    )
        rows, named = (environments, "environments") if self.network.memory else (steps, "steps of a rollout")
        if rows % self.learning.minibatches:
            raise ValueError(f"minibatches is {self.learning.minibatches}, wanted a divisor of the {rows} {named}.")
        if self.run.steps < steps:
            raise ValueError(
                f"steps is {self.run.steps}, wanted at least one rollout: {environments} environments × "
                f"{self.environment.horizon_steps} steps = {steps}."
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise for what 32 bits do not count: the steps of a rollout, optimizer steps, a layer's weights."""
        run, steps = self.run, self.environment.rollout_steps
        updates = run.steps // steps * self.learning.epochs * self.learning.minibatches
        sizes = {
            "seeds · environments · horizon_steps": run.seeds * steps,
            "seeds · eval_episodes · eval_steps": run.seeds * run.eval_episodes * max(run.eval_steps, 1),
            "seeds · the widths of two layers (shared, hidden, memory)": run.seeds * self.network.largest_layer,
            "the number of optimizer steps (steps, epochs, minibatches)": updates,
        }
        for named, size in sizes.items():
            if size > LARGEST_COUNT:
                raise ValueError(f"{named} is {size:,}, wanted at most {LARGEST_COUNT:,}; lower one of them.")


def _check_read(named: Named, given: Mapping[str, Any]) -> None:
    for name in _unread(named):
        if name in given:
            readers = [other.name for other in recipes("control").values() if name not in _unread(other)]
            raise ValueError(
                f"control: {name} is given, and recipe {named.name} does not read it; leave it out, or take one of "
                f"{', '.join(readers)}."
            )


def _unread(named: Named) -> list[str]:
    """The settings that a recipe does not read: those that it has no parameter for, but λ, which the critic reads."""
    takes = parameters(named)
    unread = [setting for name, setting in RECIPE_SETTINGS.items() if name not in takes and name != "gae_lambda"]
    return [*unread, *(_OF_GRADIENTS if named.like == "trpo" else ())]
