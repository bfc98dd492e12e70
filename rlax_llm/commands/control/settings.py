"""The settings of ``rlax-llm control``, and what stands for those that are left open: one table, recipe × environment.

Plain values and no imports beyond the standard library, like ``configs``; ``control_config`` makes a program of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Literal

from rlax_llm.commands.settings import LARGEST_COUNT, above_zero, at_least, check_values, option
from rlax_llm.recipes.building import parameters
from rlax_llm.recipes.registry import Named, find, listed, recipes

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
_RESUME_HELP = "Go on with an interrupted run from its directory, with its settings; only --steps may change."
_CONFIG_HELP = "YAML or JSON file of settings, keys as the flags with underscores; flags given beside it win over it."
_RECIPE_HELP = (
    f"Algorithm: {listed('control')}; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns an Objective."
)
_THEN = "tuned for recipe and environment"


@dataclass(frozen=True)
class ControlSettings:
    """Settings of ``rlax-llm control``: training in an environment, over several seeds at once.

    A setting that is None is the recipe's and environment's own (``resolve``). Floats may be traced, so ``vmap`` runs
    over them: ``jax.vmap(lambda lr: run(dataclasses.replace(config, learning_rate=lr)))``.

    Raises:
        ValueError: a value is out of its range, or there is no such recipe.

    >>> ControlSettings(recipe="pppo")
    Traceback (most recent call last):
    ValueError: control: there is no recipe 'pppo'; did you mean 'ppo'? There are reinforce, q_actor_critic, ...
    """

    command: ClassVar[str] = "control"

    env: str = option(
        "CartPole-v1",
        "task",
        "Environment: an id of Gymnax (CartPole-v1, Pendulum-v1, Breakout-MinAtar), brax:NAME, RockPaperScissors or "
        "probe:NAME.",
        metavar="NAME",
    )
    recipe: str = option("ppo", "task", _RECIPE_HELP, metavar="NAME")
    seeds: int = option(8, "task", "Independent runs, side by side in one program.")
    steps: int | None = option(None, "task", "Environment steps of each seed.", _THEN)
    seed: int = option(0, "task", "Everything random follows from it.")

    environments: int | None = option(None, "rollout", "Environments of each seed, side by side.", _THEN)
    horizon_steps: int | None = option(None, "rollout", "Steps of each environment between two updates.", _THEN)
    discount: float | None = option(None, "rollout", "Discount of a step, from 0 to 1.", _THEN)
    normalize_observations: bool | None = option(
        None, "rollout", "Bring observations to mean 0 and variance 1, as seen so far.", _THEN
    )
    normalize_rewards: bool | None = option(
        None, "rollout", "Divide rewards by the standard deviation of the discounted returns.", _THEN
    )

    weight: Literal["total_return", "return_to_go", "return_minus_baseline", "q_value", "gae", "td_residual"] | None = (
        option(None, "objective", "Weight of the policy gradient in reinforce.", "return_to_go", "NAME")
    )
    gae_lambda: float | None = option(
        None, "objective", "λ of the advantage estimate and of the critic's target, from 0 to 1.", _THEN
    )
    normalize_advantages: bool | None = option(
        None, "objective", "Bring the advantages of a minibatch to mean 0 and variance 1.", "on"
    )
    entropy_coef: float | None = option(None, "objective", "Weight of the entropy, per nat.", _THEN)
    value_coef: float | None = option(None, "objective", "Weight of the critic's loss.", _THEN)
    value_eps: float | None = option(
        None, "objective", "Half-width of the critic's clip, in (scaled) rewards; 0 is off.", _THEN
    )
    eps: float | None = option(None, "objective", "Half-width of the ratio clip: ppo, dual_clip, cispo.", _THEN)
    kl_target: float | None = option(None, "objective", "KL that ppo_penalty steers to, nats.", _THEN)
    kl_limit: float | None = option(
        None, "objective", "KL to the old policy, nats, that ends an update early; 0 is off.", "off"
    )
    kl_radius: float | None = option(None, "objective", "Radius of the trust region of trpo, nats.", _THEN)
    damping: float | None = option(None, "objective", "Added to the Fisher matrix's diagonal by trpo.", _THEN)
    cg_iterations: int | None = option(None, "objective", "Conjugate-gradient iterations of trpo.", _THEN)

    learning_rate: float | None = option(None, "training", "Adam's; of the critic alone in trpo.", _THEN)
    schedule: Literal["constant", "linear"] | None = option(
        None, "training", "Learning rate over the run; linear ends at 0.", _THEN, "constant|linear"
    )
    max_grad_norm: float | None = option(None, "training", "Largest global gradient norm; 0 is off.", _THEN)
    epochs: int | None = option(
        None, "training", "Times that each step is learned from; by the critic alone in trpo.", _THEN
    )
    minibatches: int | None = option(None, "training", "Optimizer steps in an epoch.", _THEN)

    hidden: tuple[int, ...] | None = option(
        None,
        "network",
        "Widths of the hidden layers of actor and critic, or of the one before the memory.",
        _THEN,
        "INT",
    )
    shared: tuple[int, ...] | None = option(
        None, "network", "Widths of layers that actor and critic share, in front of the others.", "none", "INT"
    )
    memory: int | None = option(None, "network", "Width of a gated recurrent unit; 0 is no memory.", "0")
    activation: Literal["tanh", "relu"] | None = option(None, "network", "Of the hidden layers.", _THEN, "tanh|relu")

    eval_steps: int = option(1000, "run", "Longest episode of the greedy evaluation at the end, steps; 0 is none.")
    log_every: int | None = option(
        None, "run", "Iterations (rollout and update) between two looks at the run.", "about 50 looks"
    )
    save_every: int | None = option(
        None,
        "run",
        "Iterations between checkpoints, at the next look; 0 is only at the end or at Ctrl-C.",
        "one a minute",
    )
    eval_episodes: int = option(16, "run", "Episodes of each seed in the greedy evaluation.")
    render: bool = option(False, "run", "Write a greedy episode of the best seed to episode.gif.")
    out: str | None = option(None, "run", _OUT_HELP, "runs/control-DATE-TIME", "DIR")
    resume: str | None = option(None, "run", _RESUME_HELP, "a new run", "RUN_DIR")
    config: str | None = option(None, "run", _CONFIG_HELP, "no file", "FILE")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        object.__setattr__(self, "recipe", find("control", self.recipe, "control").name)
        at_least(self, 1, "seeds", "steps", "environments", "horizon_steps", "epochs", "minibatches")
        at_least(self, 1, "cg_iterations", "log_every", "eval_episodes")
        at_least(self, 0, "discount", "gae_lambda", "damping", "memory", "eval_steps", "entropy_coef")
        at_least(self, 0, "value_coef", "save_every")
        above_zero(self, "learning_rate", "eps", "kl_target", "kl_radius")
        for name in ("value_eps", "kl_limit", "max_grad_norm"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value >= 0:
                raise ValueError(f"control: {name} is {value}, wanted at least 0, which is off.")
        for name in ("discount", "gae_lambda"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value <= 1:
                raise ValueError(f"control: {name} is {value}, wanted a number from 0 to 1.")
        for name in ("hidden", "shared"):
            if any(width < 1 for width in getattr(self, name) or ()):
                raise ValueError(f"control: {name} is {getattr(self, name)}, wanted widths of at least 1.")


def resolve(config: ControlSettings) -> ControlSettings:
    """The same settings with nothing left open: what is None becomes the recipe's and the environment's own.

    A setting that the recipe does not read stays None. Resolving twice is resolving once.

    Args:
        config: the settings.

    Returns:
        The settings in full.

    Raises:
        ValueError: for a setting that the recipe does not read, and for settings that contradict each other.

    >>> resolved = resolve(ControlSettings(learning_rate=0.5))
    >>> resolved.learning_rate, resolved.eps, resolved.kl_radius
    (0.5, 0.2, None)
    """
    named = find("control", config.recipe, "control")
    like = named.like or "ppo"
    unread = _unread(named)
    for name in unread:
        if getattr(config, name) is not None:
            readers = [other.name for other in recipes("control").values() if name not in _unread(other)]
            raise ValueError(
                f"control: {name} is given, and recipe {config.recipe} does not read it; leave it out, or take one of "
                f"{', '.join(readers)}."
            )
    chosen = _EVERYWHERE | DEFAULTS[like]
    for environment, recipe, settings in _TUNED:
        if fnmatch(config.env, environment) and fnmatch(like, recipe):
            chosen |= settings
    if config.memory:
        chosen["hidden"] = (64,)
        chosen["minibatches"] = min(chosen["minibatches"], config.environments or chosen["environments"])
    missing = {name: value for name, value in chosen.items() if getattr(config, name) is None and name not in unread}
    resolved = dataclasses.replace(config, **missing)
    _check_together(resolved)
    _check_sizes(resolved)
    return resolved


def _unread(named: Named) -> list[str]:
    """The settings that a recipe does not read: those that it has no parameter for, but λ, which the critic reads."""
    takes = parameters(named)
    unread = [setting for name, setting in RECIPE_SETTINGS.items() if name not in takes and name != "gae_lambda"]
    return [*unread, *(_OF_GRADIENTS if named.like == "trpo" else ())]


def _check_together(config: ControlSettings) -> None:
    environments, horizon = config.environments or 1, config.horizon_steps or 1
    if config.recipe == "trpo" and (config.memory or config.shared):
        named = "memory" if config.memory else "shared"
        raise ValueError(
            f"control: {named} is {getattr(config, named)} with recipe trpo, whose actor and critic share nothing; "
            f"leave {named} out, or take another recipe."
        )
    if config.memory and (config.shared or len(config.hidden or ()) != 1):
        raise ValueError(
            f"control: with memory {config.memory} hidden is {config.hidden} and shared is {config.shared}, "
            "wanted one width in hidden and none in shared."
        )
    rows, named = (environments, "environments") if config.memory else (environments * horizon, "steps of a rollout")
    if config.minibatches and rows % config.minibatches:
        raise ValueError(f"control: minibatches is {config.minibatches}, wanted a divisor of the {rows} {named}.")
    if config.steps is not None and config.steps < environments * horizon:
        raise ValueError(
            f"control: steps is {config.steps}, wanted at least one rollout: {environments} environments × "
            f"{horizon} steps = {environments * horizon}."
        )


def _check_sizes(config: ControlSettings) -> None:
    """Raise for what 32 bits do not count: the steps of a rollout, optimizer steps, a layer's weights."""
    environments, horizon = config.environments or 1, config.horizon_steps or 1
    widths = [*(config.shared or ()), *(config.hidden or ()), 3 * config.memory if config.memory else 1]
    layer = max(into * out for into, out in zip([1, *widths], widths))
    updates = (config.steps or 1) // (environments * horizon) * (config.epochs or 1) * (config.minibatches or 1)
    sizes = {
        "seeds · environments · horizon_steps": config.seeds * environments * horizon,
        "seeds · eval_episodes · eval_steps": config.seeds * config.eval_episodes * max(config.eval_steps, 1),
        "seeds · the widths of two layers (shared, hidden, memory)": config.seeds * layer,
        "the number of optimizer steps (steps, epochs, minibatches)": updates,
    }
    for named, size in sizes.items():
        if size > LARGEST_COUNT:
            raise ValueError(f"control: {named} is {size:,}, wanted at most {LARGEST_COUNT:,}; lower one of them.")
