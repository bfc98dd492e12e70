"""Models without their weights: the shape of a named one, or of a directory's ``config.json``, as abstract arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.commands.learner import NAMELESS, Learner
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.setup import build_model, check_fits, computed_in, in_blocks
from rlax_llm.commands.shared_settings import FILE_BLOCKS, ModelSettings
from rlax_llm.commands.task_settings import StepSettings, TaskSettings
from rlax_llm.core.names import did_you_mean
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.models.adapter_files import base_name, is_adapter
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.huggingface import read_config
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.ropes import Llama3Rope
from rlax_llm.models.tokenizer import Tokenizer


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=1e6,
        tie_embeddings=tied,
        qk_norm="head",
        max_positions=40_960,
    )


def _llama3(hidden: int, intermediate: int, layers: int, heads: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        rope_theta=5e5,
        rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 8_192),
        norm_eps=1e-5,
        tie_embeddings=False,
        max_positions=131_072,
    )


_SMOLLM2 = DecoderConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rope_theta=1e5,
    norm_eps=1e-5,
    max_positions=8_192,
)

SHAPES = {
    "smollm2": _SMOLLM2,
    "qwen3-0.6b": _qwen3(1_024, 3_072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2_048, 6_144, 28, 16, True),
    "qwen3-4b": _qwen3(2_560, 9_728, 36, 32, True),
    "qwen3-8b": _qwen3(4_096, 12_288, 36, 32, False),
    "qwen3-14b": _qwen3(5_120, 17_408, 40, 40, False),
    "qwen3-32b": _qwen3(5_120, 25_600, 64, 64, False),
    "llama-3-8b": _llama3(4_096, 14_336, 32, 32),
    "llama-3-70b": _llama3(8_192, 28_672, 80, 64),
}
"""Published shapes by name."""


def shape_of(name: str) -> DecoderConfig:
    """The shape of a model's name: of ``SHAPES``, or of a directory, of which ``config.json`` alone is read.

    Raises:
        ValueError: there is no such name or directory; as ``read_config``.

    >>> shape_of("Qwen/Qwen3-8B").num_layers
    36
    >>> shape_of("qwen3-9b")
    Traceback (most recent call last):
    ValueError: plan: model 'qwen3-9b' is unknown; did you mean 'qwen3-8b'? Give a directory that holds a ...
    """
    if Path(name).is_dir():
        return read_config(name)
    plain = name.rpartition("/")[2].lower()
    if plain in SHAPES:
        return SHAPES[plain]
    raise ValueError(
        f"plan: model {name!r} is unknown{did_you_mean(plain, SHAPES)} Give a directory that holds a config.json, "
        f"'char', or one of {', '.join(SHAPES)}."
    )


def array(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of a shape and a dtype that holds nothing.

    >>> array((2,), jnp.float32).shape
    (2,)
    """
    return jax.ShapeDtypeStruct(shape, dtype)


def key() -> Any:
    """A typed PRNG key, abstract.

    >>> key().shape
    ()
    """
    return jax.eval_shape(lambda: jax.random.key(0))


def abstract_model(command: str, settings: ModelSettings, limits: LimitSettings | None) -> LanguageModel:
    """The model of the settings without its weights, and with the small tokenizer in place of its own.

    Args:
        command: that a message begins with.
        settings: of the model.
        limits: of its rows; None is none.

    Raises:
        ValueError: for a model that is not known; as ``check_fits``.
    """
    if settings.model == NAMELESS:
        model = build_model(command, settings, 0, limits)
        return model._replace(params=jax.eval_shape(lambda params: params, model.params))
    return _loaded(command, settings, limits, settings.model, "parameter_shapes")


def abstract_scalar(path: str, settings: ModelSettings) -> LanguageModel:
    """A sequence classifier without its weights, as ``setup.scalar_judge`` reads one.

    Args:
        path: a name of ``shape_of``.
        settings: of the policy, whose number formats it shares.
    """
    return _loaded("plan", settings, None, path, "scalar_shapes")


def abstract_asked(path: str, settings: ModelSettings) -> LanguageModel:
    """A language model that is asked and not trained, as ``load_teacher`` reads one: all of it, adapters merged.

    Args:
        path: a name of ``shape_of``, or a directory of adapters over one.
        settings: of the model that is trained, in whose dtype it is held.
    """
    name = base_name(path) if Path(path).is_dir() and is_adapter(path) else path
    return _in_shape(shape_of(name), "parameter_shapes", settings.dtype, settings)


def judges_of(task: TaskSettings, settings: ModelSettings) -> dict[str, LanguageModel]:
    """The reward models of a task by what they are, without their weights.

    Args:
        task: its settings.
        settings: of the policy.
    """
    of_steps = task.step_reward_model if isinstance(task, StepSettings) else None
    paths = {"reward model": task.reward_model, "step reward model": of_steps}
    return {name: abstract_scalar(path, settings) for name, path in paths.items() if path is not None}


def _loaded(
    command: str, settings: ModelSettings, limits: LimitSettings | None, name: str, shapes: str
) -> LanguageModel:
    model = _in_shape(shape_of(name), shapes, settings.stored_dtype, settings)
    check_fits(command, settings, limits, model)
    if settings.blocks == FILE_BLOCKS:
        raise ValueError(f"{command}: base_dtype is gguf, and a plan reads no file's blocks; plan nf4 or int8.")
    if settings.blocks is None or shapes != "parameter_shapes":
        return model
    return model._replace(params=jax.eval_shape(lambda params: in_blocks(settings.blocks, params), model.params))


def _in_shape(config: DecoderConfig, shapes: str, dtype: Any, settings: ModelSettings) -> LanguageModel:
    """A model of these shapes in a dtype, computed as the settings say."""
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
        getattr(config, shapes),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    model = LanguageModel(config, params, Tokenizer.characters(ALPHABET))
    return computed_in(settings.dtype, model, settings.attention)


def abstract_learner(make: Callable[[LanguageModel], Learner], model: LanguageModel) -> Learner:
    """What ``make`` makes of a model, without computing it.

    Args:
        make: ``model → learner``.
        model: with abstract parameters.
    """
    made: list[Learner] = []

    def arrays(params: Any) -> tuple[Any, Any]:
        learner = make(model._replace(params=params))
        made.append(learner)
        return learner.params, learner.frozen

    params, frozen = jax.eval_shape(arrays, model.params)
    return made[-1]._replace(params=params, frozen=frozen)
