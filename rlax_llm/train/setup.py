"""From settings to what a run is made of: model, task, objective, optimizer, and the defaults that fit the model."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlax_llm import recipes
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.data.tasks import Task, load_task
from rlax_llm.generation.sampling import Categorical, Sampler, greedy
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.objectives import Objective
from rlax_llm.train.configs import EvalConfig, GrpoConfig, SftConfig
from rlax_llm.train.ppo_settings import PpoConfig
from rlax_llm.train.settings import OptimizerSettings, filled_in

RECIPES: dict[str, Callable[..., Objective]] = {
    "grpo": recipes.grpo,
    "dr_grpo": recipes.dr_grpo,
    "dapo": recipes.dapo,
    "rloo": recipes.rloo,
}

_CHARACTER = {
    "groups": 128,
    "group_size": 8,
    "max_prompt_tokens": 32,
    "max_new_tokens": 6,
    "steps": 280,
    "warm_start_steps": 136,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "eval_every": 20,
    "eval_size": 256,
    "remat": False,
}
_PRETRAINED = {
    "groups": 8,
    "group_size": 8,
    "max_prompt_tokens": 512,
    "max_new_tokens": 64,
    "steps": 100,
    "warm_start_steps": 0,
    "batch_size": 16,
    "learning_rate": 1e-5,
    "eval_every": 10,
    "eval_size": 128,
    "remat": True,  # no slower on a CPU (the memory of stored activations costs as much), and it fits elsewhere
}
_SMALL = {
    "sft": {"steps": 500, "learning_rate": 2e-3},
    "reward": {"steps": 300, "learning_rate": 1e-3},
    "dpo": {"steps": 200, "learning_rate": 1e-4},
    "kto": {"steps": 200, "learning_rate": 1e-4},
    "ppo": {"batch_size": 256, "learning_rate": 3e-4},
}
_LARGE = {
    "sft": {"steps": 500, "learning_rate": 2e-5},
    "reward": {"max_new_tokens": 256, "learning_rate": 1e-5},
    "dpo": {"max_new_tokens": 256, "learning_rate": 1e-6},
    "kto": {"max_new_tokens": 256, "learning_rate": 1e-6},
    "ppo": {"batch_size": 32, "learning_rate": 3e-6},
}
"""What differs by command, for 'char' and for other models."""
_ADAPTERS_FASTER = 10.0  # few parameters that start at 0 want larger steps (arXiv 2106.09685, appendix D)
WARM_START_LEARNING_RATE = 2e-3  # of the character model, and of its supervised training
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def with_defaults(config: Any) -> Any:
    """The settings with each that was left open filled in for the model.

    >>> with_defaults(GrpoConfig()).groups, with_defaults(GrpoConfig(model="smollm2")).groups
    (128, 8)
    """
    small = config.model == "char"
    chosen = dict(_CHARACTER if small else _PRETRAINED) | (_SMALL if small else _LARGE).get(config.command, {})
    if getattr(config, "lora_rank", 0):
        chosen["learning_rate"] *= _ADAPTERS_FASTER
    names = [name for name in chosen if hasattr(config, name)]
    return filled_in(config, {name: chosen[name] for name in names})


def build_model(config: Any) -> LanguageModel:
    """The named model; ``char`` is a small decoder over the characters of the arithmetic task, from ``config.seed``."""
    dtype = dtype_of(config)
    if config.model != "char":
        return load_model(config.model, dtype)
    tokenizer = Tokenizer.characters(ALPHABET)
    shape = DecoderConfig(tokenizer.vocab_size, 128, 512, 2, 4, 4, 32, max_positions=128)
    return LanguageModel(shape, decoder.init(shape, jax.random.key(config.seed), dtype), tokenizer)


def dtype_of(config: Any) -> Any:
    """The number format that ``config.dtype`` names."""
    return _DTYPES[config.dtype]


def build_task(config: GrpoConfig | SftConfig | EvalConfig | PpoConfig, held_out_size: int) -> Task:
    """The task or data file, split by ``config.seed``."""
    reward = getattr(config, "reward", None)
    return load_task(config.task, data=config.data, reward=reward, held_out_size=held_out_size, seed=config.seed)


def build_objective(config: GrpoConfig) -> tuple[Objective, bool]:
    """The recipe with the settings given for it, and whether it reads a frozen reference.

    Raises:
        ValueError: for a setting that the recipe does not have.

    >>> build_objective(GrpoConfig(recipe="dapo", kl_coef=0.1))
    Traceback (most recent call last):
    ValueError: grpo: recipe dapo has no kl_coef; leave it out, or choose another recipe (grpo, rloo).
    """
    recipe = RECIPES[config.recipe]
    takes = inspect.signature(recipe).parameters
    lower = "eps_low" if "eps_low" in takes else "eps"
    given = {"kl_coef": config.kl_coef, lower: config.eps, "eps_high": config.eps_high}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in takes:
            others = [known for known, other in RECIPES.items() if name in inspect.signature(other).parameters]
            raise ValueError(
                f"grpo: recipe {config.recipe} has no {name}; leave it out, or choose another recipe "
                f"({', '.join(others)})."
            )
    if "max_new_tokens" in takes:
        given["max_new_tokens"] = with_defaults(config).max_new_tokens
    default = takes["kl_coef"].default if "kl_coef" in takes else 0
    return recipe(**given), bool(given.get("kl_coef", default))


def build_schedule(config: OptimizerSettings, peak: float, steps: int) -> optax.Schedule:
    """Learning rate by optimizer step: a linear warm-up, then constant, cosine or linear to 0."""
    decay_steps = max(steps - config.warmup_steps, 1)
    shapes: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
    }
    if not config.warmup_steps:
        return shapes[config.schedule]
    # The first step of a warm-up over n steps takes peak / n, not 0: a step without effect would waste a rollout.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, shapes[config.schedule]], [config.warmup_steps])


def build_optimizer(config: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or the transformation that ``config.optimizer`` names.

    Raises:
        ValueError: where ``MODULE:FUNCTION`` cannot be found or does not return an Optax transformation.
    """
    if config.optimizer == "adamw":
        chosen = optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay)
    else:
        chosen = _imported(config.optimizer)(schedule)
        if not isinstance(chosen, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
            raise ValueError(f"optimizer {config.optimizer} returned {type(chosen).__name__}, wanted Optax's.")
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), chosen)


def _imported(spec: str) -> Callable[[optax.Schedule], Any]:
    place, _, name = spec.partition(":")
    try:
        return getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"optimizer {spec!r} was not found ({error}); give adamw or MODULE:FUNCTION.") from error


def build_sampler(temperature: float, top_k: int, top_p: float) -> Sampler:
    """``greedy`` at temperature 0, else ``Categorical``.

    >>> build_sampler(0.0, 0, 1.0) is greedy, build_sampler(0.5, 0, 1.0).top_k
    (True, None)
    """
    if temperature == 0:
        return greedy
    return Categorical(temperature, top_k or None, top_p if top_p < 1 else None)
