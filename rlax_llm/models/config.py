"""The shape of the one decoder: what distinguishes Llama, Qwen2, Qwen3 and their relatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlax_llm.core.checks import at_least_one, positive
from rlax_llm.core.names import did_you_mean

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
NARROW = ("bfloat16", "int8")
ATTENTIONS = ("auto", "blockwise", "splash", "cudnn")

RopeScaling = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LinearRope:
    """Position interpolation: every rotary frequency divided by ``factor`` (arXiv 2306.15595).

    >>> LinearRope(2.0)(np.array([1.0, 0.5])).tolist()
    [0.5, 0.25]
    """

    factor: float

    def __post_init__(self) -> None:
        positive("LinearRope", factor=self.factor)

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scale ``[head_dim / 2]`` frequencies, radians per token."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's scaling: long wavelengths divided by ``factor``, short ones kept, a linear blend between.

    >>> scale = Llama3Rope(8.0, 1.0, 4.0, 8192)
    >>> scale(np.array([1.0, 1e-5])).tolist()
    [1.0, 1.25e-06]
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        positive("Llama3Rope", factor=self.factor, low_freq_factor=self.low_freq_factor)
        at_least_one("Llama3Rope", original_max_positions=self.original_max_positions)
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"Llama3Rope: high_freq_factor is {self.high_freq_factor}, wanted more than low_freq_factor "
                f"{self.low_freq_factor}."
            )

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scale ``[head_dim / 2]`` frequencies, radians per token."""
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        blend = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return frequencies * (blend + (1.0 - blend) / self.factor)


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (arXiv 2106.09685): ``x·W + (alpha / rank) · (x·A)·B`` in place of ``x·W``.

    Limiting case: B = 0, where training starts, is the base model.

    Attributes:
        rank: columns of A and rows of B, r; at least 1.
        alpha: the update's scale times the rank; greater than 0.
        targets: the projections that have an adapter, in any order: q, k, v, o, gate, up, down.

    >>> Lora(8, 16.0).scale
    2.0
    >>> Lora(8, 16.0, ("q", "gate_proj"))
    Traceback (most recent call last):
    ValueError: Lora: target 'gate_proj' is unknown; did you mean 'gate'? There are q, k, v, o, gate, up, down.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        at_least_one("Lora", rank=self.rank)
        positive("Lora", alpha=self.alpha)
        if not isinstance(self.targets, tuple) or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"Lora: targets is {self.targets!r}, wanted a tuple of different names, at least one.")
        for name in self.targets:
            if name not in TARGETS:
                hint = did_you_mean(name.removesuffix("_proj"), TARGETS)
                raise ValueError(f"Lora: target {name!r} is unknown{hint} There are {', '.join(TARGETS)}.")

    @property
    def scale(self) -> float:
        """What ``(x·A)·B`` is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class DecoderConfig:
    """Static shape of a decoder; hashable, so it can be a static argument of ``jit``.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream, D.
        intermediate_size: width of the gated MLP, F.
        num_layers: blocks, L.
        num_heads: query heads, H.
        num_kv_heads: key and value heads, K; divides H.
        head_dim: width of a head; H · head_dim need not be D (Qwen3).
        rope_theta: base of the rotary wavelengths.
        rope_scaling: a function of the frequencies, or None.
        norm_eps: epsilon of the RMS norms.
        tie_embeddings: the head is the embedding.
        qkv_bias: biases on q, k and v (Qwen2).
        qk_norm: RMS norm over each query and key head (Qwen3).
        max_positions: longest sequence, tokens.
        lora: an adapter that the layers read with their own weights (``adapter_shapes``), or None.
        compute_dtype: number format of the products and activations, as "bfloat16"; None is that of the parameters.
            Parameters keep theirs, and so do their gradients; norms, softmax and losses are float32 at least.
        sampler_dtype: number format that a sampler reads the matrices in, "bfloat16" or "int8" with a scale for each
            output channel; None is what is computed in.
        cache_dtype: number format of the keys and values that a sampler keeps, "bfloat16" or "int8" with a scale for
            each of them; None is what is computed in.
        attention: what computes it, of the same numbers: plain XLA in blocks ("blockwise"), a kernel of TPUs ("splash")
            or of NVIDIA's GPUs ("cudnn"); "auto" takes the kernel of the platform where it can serve.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 2_048
    lora: Lora | None = None
    compute_dtype: str | None = None
    sampler_dtype: str | None = None
    cache_dtype: str | None = None
    attention: str = "auto"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        sizes += ("head_dim", "max_positions")
        at_least_one("DecoderConfig", **{name: getattr(self, name) for name in sizes})
        positive("DecoderConfig", rope_theta=self.rope_theta, norm_eps=self.norm_eps)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig: num_kv_heads is {self.num_kv_heads}, wanted a divisor of num_heads {self.num_heads}."
            )
        if self.attention not in ATTENTIONS:
            hint = did_you_mean(self.attention, ATTENTIONS)
            raise ValueError(
                f"DecoderConfig: attention {self.attention!r} is unknown{hint} There are {', '.join(ATTENTIONS)}."
            )
        for name in ("sampler_dtype", "cache_dtype"):
            if getattr(self, name) not in (None, *NARROW):
                wanted = f"{' or '.join(NARROW)}, or None"
                raise ValueError(f"DecoderConfig: {name} is {getattr(self, name)!r}, wanted {wanted}.")
        if self.head_dim % 2:
            raise ValueError(f"DecoderConfig: head_dim is {self.head_dim}, wanted an even number (rotary halves).")

    @property
    def parameter_shapes(self) -> dict[str, Any]:
        """The parameter tree as shapes: ``layers`` stacked on axis 0, kernels ``[in, out]``, embeddings ``[V, D]``."""
        d = self.hidden_size
        f = self.intermediate_size
        hd = self.head_dim
        q = self.num_heads * hd
        kv = self.num_kv_heads * hd
        block: dict[str, tuple[int, ...]] = {
            "attention_norm": (d,),
            "q": (d, q),
            "k": (d, kv),
            "v": (d, kv),
            "o": (q, d),
        }
        block |= {"mlp_norm": (d,), "gate": (d, f), "up": (d, f), "down": (f, d)}
        block |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)} if self.qkv_bias else {}
        block |= {"q_norm": (hd,), "k_norm": (hd,)} if self.qk_norm else {}
        layers = {name: (self.num_layers, *shape) for name, shape in block.items()}
        head = {} if self.tie_embeddings else {"head": (self.vocab_size, d)}
        return {"embed": (self.vocab_size, d), "layers": layers, "norm": (d,)} | head

    @property
    def scalar_shapes(self) -> dict[str, Any]:
        """The tree of a model with a scalar in place of the head: ``parameter_shapes``, ``score [D]`` for ``head``."""
        rest = {name: shape for name, shape in self.parameter_shapes.items() if name != "head"}
        return rest | {"score": (self.hidden_size,)}

    @property
    def adapter_shapes(self) -> dict[str, Any]:
        """The adapter's tree: ``layers/q_lora_a [L, in, r]`` and ``layers/q_lora_b [L, r, out]`` for each target."""
        rank, targets = (self.lora.rank, self.lora.targets) if self.lora else (0, ())
        layers: dict[str, tuple[int, ...]] = {}
        for target in targets:
            count, into, out = self.parameter_shapes["layers"][target]
            layers |= {f"{target}_lora_a": (count, into, rank), f"{target}_lora_b": (count, rank, out)}
        return {"layers": layers}

    def frequencies(self) -> jnp.ndarray:
        """Rotary frequencies ``[head_dim / 2]``, radians per token, float32."""
        base = self.rope_theta ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        scaled = base if self.rope_scaling is None else self.rope_scaling(base)
        return jnp.asarray(scaled, jnp.float32)
