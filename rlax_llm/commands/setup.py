"""From settings to what a run is made of: model, task, objective, optimizer, and the defaults that fit the model."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlax_llm.commands.places import located
from rlax_llm.commands.settings import (
    LARGEST_COUNT,
    ModelSettings,
    OptimizerSettings,
    SamplerSettings,
    filled_in,
    logit_bias_of,
)
from rlax_llm.core.logit_bias import bias_vector
from rlax_llm.core.user_code import named_function, told
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.generation.sampling import Categorical, Sampler, greedy
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.loading import LanguageModel, check_same_vocabulary, load_model, load_scalar, local_fields
from rlax_llm.models.tokenizer import Tokenizer

_CHARACTER = {
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
    "grpo": {"batch_size": 8},
    "sft": {"steps": 500, "learning_rate": 2e-5},
    "reward": {"max_new_tokens": 256, "learning_rate": 1e-5},
    "dpo": {"max_new_tokens": 256, "learning_rate": 1e-6},
    "kto": {"max_new_tokens": 256, "learning_rate": 1e-6},
    "ppo": {"batch_size": 32, "learning_rate": 3e-6},
}
"""What differs by command, for 'char' and for other models."""
_ADAPTERS_FASTER = 10.0  # few parameters that start at 0 want larger steps (arXiv 2106.09685, appendix D)
_FACTORS = ("batch_size", "group_size", "samples")  # rows of a step
WARM_START_LEARNING_RATE = 2e-3  # of the character model, and of its supervised training
_CHARACTERS, _WIDTH = Tokenizer.characters(ALPHABET), 128  # the embedded model's


def with_defaults(config: Any) -> Any:
    """The settings with each that was left open filled in for the model, and its files by their whole paths.

    >>> from rlax_llm.commands.grpo.settings import GrpoSettings
    >>> with_defaults(GrpoSettings()).batch_size, with_defaults(GrpoSettings(model="smollm2")).batch_size
    (128, 8)
    """
    config, small = located(config), _embedded(config.model)
    chosen = dict(_CHARACTER if small else _PRETRAINED) | (_SMALL if small else _LARGE).get(config.command, {})
    if config.model != "char":
        chosen["warm_start_steps"] = 0
    if getattr(config, "eval_data", None) is not None:
        chosen.pop("eval_size")  # all of that file, unless asked otherwise
    if getattr(config, "lora_rank", 0):
        chosen["learning_rate"] *= _ADAPTERS_FASTER
    names = [name for name in chosen if hasattr(config, name)]
    return filled_in(config, {name: chosen[name] for name in names})


def _embedded(model: str) -> bool:
    """Whether this is the character model, or a checkpoint of it, which a pretrained model's rates would not move."""
    if model == "char":
        return True
    found = local_fields(model)
    return (found.get("vocab_size"), found.get("hidden_size")) == (_CHARACTERS.vocab_size, _WIDTH)


def check_batch_of(config: Any) -> None:
    """Raise where the tokens of one step are more than 32 bits count.

    Args:
        config: with every default filled in.

    Raises:
        ValueError: naming the settings that are multiplied.

    >>> from rlax_llm.commands.grpo.settings import GrpoSettings
    >>> check_batch_of(with_defaults(GrpoSettings(group_size=10_000_000)))
    Traceback (most recent call last):
    ValueError: grpo: batch_size · group_size · tokens of a row is 48,640,000,000, wanted at most 2,147,483,647; ...
    """
    named = [name for name in _FACTORS if getattr(config, name, None)]
    row = (getattr(config, "max_prompt_tokens", None) or 0) + config.max_new_tokens
    row = max(row, getattr(config, "packed_tokens", 0))
    tokens = row * math.prod(getattr(config, name) for name in named)
    if tokens > LARGEST_COUNT:
        raise ValueError(
            f"{config.command}: {' · '.join([*named, 'tokens of a row'])} is {tokens:,}, wanted at most "
            f"{LARGEST_COUNT:,}; lower one of them."
        )


def check_fits(config: Any, model: LanguageModel) -> None:
    """Raise for settings beyond the model, before anything is sampled or trained: rows longer than its positions
    reach, adapters wider than its matrices.

    Args:
        config: with every default filled in.
        model: as loaded.

    Raises:
        ValueError: naming the setting, and what the model has.
    """
    shape = model.config
    longest = (getattr(config, "max_prompt_tokens", None) or 0) + config.max_new_tokens
    if hasattr(config, "max_prompt_tokens") and longest > shape.max_positions:
        raise ValueError(
            f"{config.command}: max_prompt_tokens {config.max_prompt_tokens} and max_new_tokens "
            f"{config.max_new_tokens} are {longest} together, beyond the {shape.max_positions} positions of model "
            f"{config.model}; lower one of them."
        )
    widest = max(shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim)
    if getattr(config, "lora_rank", 0) > widest:
        raise ValueError(
            f"{config.command}: lora_rank is {config.lora_rank}, and model {config.model} has no matrix wider than "
            f"{widest}; lower it."
        )


def build_model(config: Any) -> LanguageModel:
    """The named model; ``char`` is a small decoder over the characters of the arithmetic task, from ``config.seed``.

    Raises:
        ValueError: as ``check_batch_of`` and ``check_fits``.
    """
    whole = with_defaults(config)
    check_batch_of(whole)
    model = _model(whole)
    check_fits(whole, model)
    return model


def _model(config: Any) -> LanguageModel:
    if config.model != "char":
        return computed_in(config.dtype, load_model(config.model, stored_in(config)))
    shape = DecoderConfig(_CHARACTERS.vocab_size, _WIDTH, 4 * _WIDTH, 2, 4, 4, _WIDTH // 4, max_positions=128)
    params = decoder.init_decoder(shape, jax.random.key(config.seed), stored_in(config))
    return computed_in(config.dtype, LanguageModel(shape, params, _CHARACTERS))


def stored_in(config: Any) -> Any:
    """The number format of a model's parameters: float32 where they are trained, else what is computed in.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> stored_in(SftSettings(dtype="bfloat16")), stored_in(SftSettings(dtype="bfloat16", lora_rank=8))
    (dtype('float32'), dtype(bfloat16))
    """
    trained = isinstance(config, ModelSettings) and not config.lora_rank
    return jnp.dtype(jnp.float32 if trained else config.dtype)


def computed_in(dtype: str, model: LanguageModel) -> LanguageModel:
    """The model with its products in ``dtype``; its parameters stay as they are."""
    return model._replace(config=dataclasses.replace(model.config, compute_dtype=dtype))


def scalar_judge(path: str, policy: LanguageModel, config: Any) -> LanguageModel:
    """A sequence classifier with the policy's vocabulary.

    Raises:
        ValueError: for one of another vocabulary.
    """
    loaded = load_scalar(path, stored_in(config))
    check_same_vocabulary(policy.tokenizer, loaded.tokenizer)
    return computed_in(config.dtype, loaded)


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
        ValueError: as ``named_function``; where the function fails or does not return an Optax transformation.
    """
    if config.optimizer == "adamw":
        chosen = optax.adamw(schedule, b2=0.99, weight_decay=config.weight_decay)
    else:
        chosen = _made(config.optimizer, schedule)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), chosen)


def _made(spec: str, schedule: optax.Schedule) -> Any:
    """What a function of the user's makes of a schedule."""
    factory = named_function("optimizer", spec)
    try:
        made = factory(schedule)
    except (Exception, SystemExit) as error:
        raise ValueError(f"optimizer {spec!r}: given a schedule, it raised {told(error)}.") from error
    if not isinstance(made, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
        raise ValueError(
            f"optimizer {spec!r}: given a schedule, it returned {type(made).__name__}, wanted an Optax transformation."
        )
    return made


def build_sampler(config: SamplerSettings, vocabulary: int) -> Sampler:
    """``build_greedy`` at temperature 0, else ``Categorical``.

    Raises:
        ValueError: for a bias that does not fit the vocabulary.

    >>> cold = SamplerSettings(temperature=0.0)
    >>> build_sampler(cold, 9) is greedy, build_sampler(SamplerSettings(temperature=0.5), 9).top_k
    (True, None)
    """
    if config.temperature == 0:
        return build_greedy(config, vocabulary)
    bias, top_p = _bias(config, vocabulary), config.top_p if config.top_p < 1 else None
    return Categorical(config.temperature, config.top_k or None, top_p, config.min_p or None, bias)


def build_greedy(config: SamplerSettings, vocabulary: int) -> Sampler:
    """The likeliest token, with the bias of the settings.

    Raises:
        ValueError: for a bias that does not fit the vocabulary.
    """
    bias = _bias(config, vocabulary)
    return partial(greedy, logit_bias=bias) if bias else greedy


def _bias(config: SamplerSettings, vocabulary: int) -> tuple[tuple[int, float], ...]:
    bias = logit_bias_of(config)
    bias_vector(getattr(config, "command", ""), bias, vocabulary)
    return bias
