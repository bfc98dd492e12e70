"""From settings to what a run is made of: model, learning rate, sampler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_llm.commands.defaults import CHARACTER_WIDTH
from rlax_llm.commands.sampling_settings import DrawSettings, LimitSettings, bias_pairs
from rlax_llm.commands.shared_settings import FILE_BLOCKS, ModelSettings, OptimizerSettings, TrainedModelSettings
from rlax_llm.core.keys import seeded
from rlax_llm.core.logit_bias import bias_vector
from rlax_llm.core.mesh import AXES, devices_along
from rlax_llm.core.platform import platform
from rlax_llm.core.processes import told_to_all
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.generation.automata import Automaton, stop_automaton
from rlax_llm.generation.patterns import pattern_automaton
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, Sampler, greedy
from rlax_llm.host.progress import say
from rlax_llm.models import decoder
from rlax_llm.models.blocks import quantized_base
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.forms import attention_form
from rlax_llm.models.functional import Params
from rlax_llm.models.loading import LanguageModel, check_same_vocabulary, load_blocks, load_model, load_scalar
from rlax_llm.models.sharding import check_divides, placed
from rlax_llm.models.tokenizer import Tokenizer


def build_model(command: str, settings: ModelSettings, seed: int, limits: LimitSettings | None = None) -> LanguageModel:
    """The named model; ``char`` is a small decoder over the characters of the arithmetic task.

    Args:
        command: that a message begins with.
        settings: of the model.
        seed: draws the character model.
        limits: of its rows; None is none.

    Raises:
        ValueError: for a model that cannot be read; as ``check_fits``.
    """
    with _beside_devices(settings.blocks):
        model = told_to_all(lambda: _model(settings, seed))
        check_fits(command, settings, limits, model)
        check_divides(command, model.config)
        params = in_blocks(settings.blocks, model.params)
    _say_attention(settings, limits, model.config)
    return model._replace(params=placed(_on_device(settings.blocks, params)))


def in_blocks(blocks: str | None, params: Params) -> Params:
    """A base with its matrices in a format of blocks; of None, and of blocks from its file, as it is."""
    return params if blocks in (None, FILE_BLOCKS) else quantized_base(params, blocks)


def _apart_from(blocks: str | None) -> bool:
    """Whether a base becomes blocks on the host, since all of it may be more than its one device holds."""
    return blocks is not None and platform() != "cpu" and devices_along(*AXES) == 1


def _beside_devices(blocks: str | None) -> AbstractContextManager[Any]:
    if not _apart_from(blocks):
        return nullcontext()
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError as error:
        raise ValueError(
            f"base_dtype makes blocks on the host, and JAX has no CPU here ({error}); set JAX_PLATFORMS to "
            f"{platform()},cpu, or leave it out."
        ) from error


def _on_device(blocks: str | None, params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params) if _apart_from(blocks) else params


def _say_attention(settings: ModelSettings, limits: LimitSettings | None, config: DecoderConfig) -> None:
    """Say which kernel computes attention; nothing where it is plain XLA, the form of every machine.

    Raises:
        ValueError: for a kernel that was asked for and cannot serve.
    """
    form = attention_form(config, 0 if limits is None else limits.row_tokens, settings.dtype)
    if form != "blockwise":
        say(f"Attention is {form}'s")


def _model(settings: ModelSettings, seed: int) -> LanguageModel:
    dtype = jnp.dtype(settings.stored_dtype)
    if settings.model != "char" or settings.blocks == FILE_BLOCKS:
        load = load_blocks if settings.blocks == FILE_BLOCKS else load_model
        return computed_in(settings.dtype, load(settings.model, dtype), settings.attention)
    tokenizer = Tokenizer.characters(ALPHABET)
    shape = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=CHARACTER_WIDTH,
        intermediate_size=4 * CHARACTER_WIDTH,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=CHARACTER_WIDTH // 4,
        max_positions=128,
    )
    params = jax.jit(decoder.init_decoder, static_argnums=(0, 2))(shape, seeded(seed), dtype)
    return computed_in(settings.dtype, LanguageModel(shape, params, tokenizer), settings.attention)


def check_fits(command: str, settings: ModelSettings, limits: LimitSettings | None, model: LanguageModel) -> None:
    """Raise for settings beyond the model, before anything is sampled or trained: rows longer than its positions
    reach, adapters wider than its matrices, or of tokens that it has not.

    Args:
        command: that the message begins with.
        settings: of the model.
        limits: of its rows; None is none.
        model: as loaded.

    Raises:
        ValueError: naming the setting, and what the model has.
    """
    shape = model.config
    if limits is not None and limits.row_tokens > shape.max_positions:
        raise ValueError(
            f"{command}: max_prompt_tokens {limits.max_prompt_tokens} and max_new_tokens {limits.max_new_tokens} are "
            f"{limits.row_tokens} together, beyond the {shape.max_positions} positions of model {settings.model}; "
            "lower one of them."
        )
    widest = max(shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_dim)
    if isinstance(settings, TrainedModelSettings) and settings.lora_rank > widest:
        raise ValueError(
            f"{command}: lora_rank is {settings.lora_rank}, and model {settings.model} has no matrix wider than "
            f"{widest}; lower it."
        )
    tokens = settings.lora_tokens or () if isinstance(settings, TrainedModelSettings) else ()
    if len(set(tokens)) < len(tokens) or not all(0 <= token < shape.vocab_size for token in tokens):
        raise ValueError(
            f"{command}: lora_tokens is {list(tokens)}, wanted different ids from 0 to {shape.vocab_size - 1} of model "
            f"{settings.model}."
        )


def computed_in(dtype: str, model: LanguageModel, attention: str = "auto") -> LanguageModel:
    """The model with its products in ``dtype`` and its attention in a form; its parameters stay as they are."""
    return model._replace(config=dataclasses.replace(model.config, compute_dtype=dtype, attention=attention))


def scalar_judge(path: str, policy: LanguageModel, settings: ModelSettings) -> LanguageModel:
    """A sequence classifier with the policy's vocabulary.

    Args:
        path: of its directory.
        policy: the model whose tokens it reads.
        settings: of the policy, whose number formats it shares.

    Raises:
        ValueError: for one of another vocabulary.
    """
    loaded = scalar_model(path, settings)
    check_same_vocabulary(policy.tokenizer, loaded.tokenizer)
    return loaded


def scalar_model(path: str, settings: ModelSettings) -> LanguageModel:
    """A sequence classifier.

    Args:
        path: of its directory.
        settings: of the policy, whose number formats it shares.

    Raises:
        ValueError: for one that cannot be read.
    """
    loaded = told_to_all(lambda: load_scalar(path, jnp.dtype(settings.stored_dtype)))
    check_divides(path, loaded.config)
    return computed_in(settings.dtype, loaded._replace(params=placed(loaded.params)), settings.attention)


def build_schedule(settings: OptimizerSettings, peak: float, steps: int) -> optax.Schedule:
    """Learning rate by optimizer step: a linear warm-up, then constant, cosine or linear to 0.

    Args:
        settings: of the shape, and the warm-up in optimizer steps.
        peak: after the warm-up.
        steps: optimizer steps of the run.
    """
    decay_steps = max(steps - settings.warmup_steps, 1)
    shapes: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
    }
    if not settings.warmup_steps:
        return shapes["constant"] if settings.schedule == "constant" else jax.jit(shapes[settings.schedule])
    # The first step of a warm-up over n steps takes peak / n, not 0: a step without effect would waste a rollout.
    warmup = optax.linear_schedule(peak / settings.warmup_steps, peak, max(settings.warmup_steps - 1, 1))
    # One program, where the rate of a step is asked for by itself.
    return jax.jit(optax.join_schedules([warmup, shapes[settings.schedule]], [settings.warmup_steps]))


def build_request(
    settings: DrawSettings, tokenizer: Tokenizer, vocabulary: int, limit: int, group_size: int = 1
) -> Request:
    """What completions are drawn by.

    Args:
        settings: of the sampler.
        tokenizer: the model's.
        vocabulary: V, of the model.
        limit: the longest completion, tokens.
        group_size: completions of a prompt.

    Raises:
        ValueError: for a bias or stop ids that do not fit the vocabulary.
    """
    stop_ids = tuple(dict.fromkeys((*tokenizer.eos_ids, *(settings.stop_ids or ()))))
    if max(stop_ids, default=0) >= vocabulary:
        raise ValueError(
            f"stop_ids has {max(stop_ids)}, and the vocabulary has {vocabulary} tokens; give ids below that."
        )
    return Request(
        build_sampler(settings, vocabulary),
        stop_ids,
        limit,
        group_size,
        settings.min_new_tokens,
        settings.penalties,
        _automata(settings, tokenizer.pieces, vocabulary, stop_ids),
        settings.speculation,
    )


def _automata(
    settings: DrawSettings, pieces: Callable[[], list[bytes | None]], vocabulary: int, stop_ids: tuple[int, ...]
) -> tuple[Automaton, ...]:
    """Those of the settings; what tokens write is found out where there is one."""
    if not settings.stops and settings.pattern is None:
        return ()
    written = pieces()[:vocabulary]
    written += [None] * (vocabulary - len(written))
    found = [stop_automaton(settings.stops, written)] if settings.stops else []
    if settings.pattern is not None:
        banned = [token for token, bias in settings.bias if bias == -math.inf]
        found.append(pattern_automaton(settings.pattern, written, stop_ids, banned))
    return tuple(found)


def build_sampler(settings: DrawSettings, vocabulary: int) -> Sampler:
    """``build_greedy`` at temperature 0, else ``Categorical``.

    Raises:
        ValueError: for a bias that does not fit the vocabulary.

    >>> cold, warm = DrawSettings(temperature=0.0), DrawSettings(temperature=0.5)
    >>> build_sampler(cold, 9) is greedy, build_sampler(warm, 9).top_k
    (True, None)
    """
    if settings.temperature == 0:
        return build_greedy(settings, vocabulary)
    bias, top_p = _bias(settings, vocabulary), settings.top_p if settings.top_p < 1 else None
    return Categorical(settings.temperature, settings.top_k or None, top_p, settings.min_p or None, bias)


def build_greedy(settings: DrawSettings, vocabulary: int) -> Sampler:
    """The likeliest token, with the bias of the settings.

    Raises:
        ValueError: for a bias that does not fit the vocabulary.
    """
    bias = _bias(settings, vocabulary)
    return partial(greedy, logit_bias=bias) if bias else greedy


def _bias(settings: DrawSettings, vocabulary: int) -> tuple[tuple[int, float], ...]:
    bias = bias_pairs(settings.logit_bias)
    bias_vector("sampling", bias, vocabulary)
    return bias
