"""Model FLOPs utilization: what a model's products need, over what the devices could have done in the time."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rlax_llm.core.chips import CHIPS
from rlax_llm.core.mesh import AXES, devices_along
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.lora import trains_head


def training_flops(config: DecoderConfig, trained: Params, completions: Any, shared: tuple[int, int] = (1, 0)) -> float:
    """Floating-point operations of one update on some rows, forward and backward, as the model's shape wants them.

    A product with a matrix of n weights takes 2·n operations per token forward, as many backward for its input, and as
    many for the weights where they are trained. Attention takes 4·H·head_dim per layer and pair of a query and a key
    that it sees, and twice that backward. What is computed anew (``remat``) does not count, nor does padding. A prompt
    that rows share counts once; the head counts where a token is learned.

    Limiting case: of short rows of a model that is trained whole, 6 · weights · tokens (arXiv:2001.08361).

    Args:
        config: the decoder's shape; with ``lora``, the weights of the layers are frozen.
        trained: what is trained: all, or adapters and what is trained whole beside them. With a ``score`` that is in
            the head's place.
        completions: ``valid`` and ``mask`` ``[B, T]``, and ``segments`` where rows are packed.
        shared: the rows in a row that share a prompt, and the columns that hold prompts.

    >>> shape = DecoderConfig(vocab_size=5, hidden_size=2, intermediate_size=3, num_layers=1, num_heads=1,
    ...     num_kv_heads=1, head_dim=2)
    >>> from rlax_llm.core.types import Completions
    >>> rows = Completions(*[np.ones((1, 1), bool)] * 5)
    >>> training_flops(shape, {"embed": None}, rows)  # 4 matrices of 2 · 2, 3 of 2 · 3, a head of 5 · 2; half a pair
    276.0
    """
    group, width = shared
    valid = np.asarray(completions.valid).astype(np.int64)
    prompts, own = valid[:, :width].sum(1), valid[:, width:].sum(1)
    tokens = prompts[::group].sum() + own.sum()
    pairs = (prompts[::group] ** 2).sum() / 2 + (own * prompts).sum() + _within(completions, own) / 2
    layers = config.num_layers * sum(into * out for _, into, out in config.active_matrices())
    head = _head_passes(config, trained) * config.vocab_size * config.hidden_size * np.asarray(completions.mask).sum()
    passes = 3 if config.lora is None else 2
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * pairs
    return float(2 * (passes * layers * tokens + head) + 3 * attention)


def _head_passes(config: DecoderConfig, trained: Params) -> int:
    """Products with the head of a token that is learned; a scalar in its place is none."""
    if "score" in trained:
        return 0
    return 3 if trains_head(config, trained) else 2


def _within(completions: Any, own: np.ndarray) -> float:
    """Σ of the squared lengths of what sees itself: a row's own tokens, or each segment of a packed row."""
    segments = getattr(completions, "segments", None)
    if segments is None:
        return (own**2).sum()
    numbered = np.asarray(segments)
    lengths = [np.unique(row[row > 0], return_counts=True)[1] for row in numbered]
    return sum((length.astype(np.int64) ** 2).sum() for length in lengths)


def utilization(flops: float, seconds: float) -> dict[str, float]:
    """``mfu``: the share of the peak of the ambient mesh's devices, in bfloat16; nothing where it is not known.

    Args:
        flops: of the model.
        seconds: that they took.
    """
    chip = CHIPS.get(jax.devices()[0].device_kind)
    return {} if chip is None else {"mfu": flops / seconds / chip.flops / devices_along(*AXES)}
