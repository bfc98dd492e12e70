"""The shape of the one decoder: what distinguishes the families of models that it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlax_llm.core.checks import at_least_one, not_negative, positive
from rlax_llm.core.names import did_you_mean
from rlax_llm.models.ropes import LongRope, Rope, RopeScaling

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
NARROW = ("bfloat16", "int8")
ATTENTIONS = ("auto", "blockwise", "splash", "cudnn")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
NORMS = ("before", "after", "both")
QK_NORMS = ("head", "width")
ROWS_OF = {"embed": "tokens", "head": "head_tokens"}
"""The field of ``Lora`` that says which rows of a table are trained."""
_ORDER = ("attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down")


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (arXiv 2106.09685): ``x·W + (alpha / rank) · (x·A)·B`` in place of ``x·W``.

    Limiting case: B = 0, where training starts, is the base model.

    Attributes:
        rank: columns of A and rows of B, r; at least 1.
        alpha: the update's scale times the rank; greater than 0.
        targets: the projections that have an adapter, in any order: q, k, v, o, gate, up, down.
        stabilized: alpha / √rank in place of alpha / rank (rsLoRA, arXiv 2312.03732).
        dora: columns keep a length of their own, which is trained too (DoRA, arXiv 2402.09353).
        dropout: the share of its inputs that an adapter leaves out where a gradient is taken, p; from 0 to below 1. It
            is applied to rows with numbers for it (``models.dropout``), and so never to a sampler's or a reference's.
        tokens: ids whose rows of the embedding are trained too, PEFT's ``trainable_token_indices``; of a tied one the
            head's rows are the same.
        head_tokens: the same of a head of its own.

    >>> Lora(8, 16.0).scale, Lora(16, 16.0, stabilized=True).scale
    (2.0, 4.0)
    >>> Lora(8, 16.0, ("q", "gate_proj"))
    Traceback (most recent call last):
    ValueError: Lora: target 'gate_proj' is unknown; did you mean 'gate'? There are q, k, v, o, gate, up, down.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS
    stabilized: bool = False
    dora: bool = False
    dropout: float = 0.0
    tokens: tuple[int, ...] = ()
    head_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least_one("Lora", rank=self.rank)
        positive("Lora", alpha=self.alpha)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Lora: dropout is {self.dropout}, wanted at least 0 and below 1.")
        if not isinstance(self.targets, tuple) or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"Lora: targets is {self.targets!r}, wanted a tuple of different names, at least one.")
        for name in self.targets:
            if name not in TARGETS:
                hint = did_you_mean(name.removesuffix("_proj"), TARGETS)
                raise ValueError(f"Lora: target {name!r} is unknown{hint} There are {', '.join(TARGETS)}.")

    @property
    def scale(self) -> float:
        """What ``(x·A)·B`` is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilized else self.rank)

    def alpha_of(self, rank: int) -> float:
        """The alpha of another rank with the same scale.

        >>> Lora(8, 16.0).alpha_of(24), Lora(4, 6.0, stabilized=True).alpha_of(16)
        (48.0, 12.0)
        """
        if rank == self.rank:
            return self.alpha
        return self.alpha * (math.sqrt(rank / self.rank) if self.stabilized else rank / self.rank)


class Balance(NamedTuple):
    """What a training step adds to its loss for a router, and that it tells how tokens are shared out.

    Attributes:
        aux_coef: ≥ 0, of ``balance_loss``.
        z_coef: ≥ 0, of the mean squared log-normalizer of a router's logits (arXiv 2202.08906).
    """

    aux_coef: float = 0.0
    z_coef: float = 0.0


@dataclass(frozen=True)
class Clamped:
    """What an expert does with its gate and its up projection, in place of ``activation(gate) · up`` (gpt-oss).

    ``(up + 1) · gate · σ(slope · gate)``, where the gate is at most ``limit``, and up is from −limit to limit.

    Attributes:
        slope: of the sigmoid; 1 is that of SiLU.
        limit: greater than 0.

    >>> Clamped(limit=0.0)
    Traceback (most recent call last):
    ValueError: Clamped: limit is 0.0, wanted a number greater than 0.
    """

    slope: float = 1.702
    limit: float = 7.0

    def __post_init__(self) -> None:
        positive("Clamped", slope=self.slope, limit=self.limit)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP (arXiv 2101.03961, 2401.04088).

    Attributes:
        count: experts, E.
        per_token: of them that a token is sent to, k.
        width: of an expert, F.
        normalized: the weights of a token's experts sum to 1.
        shared: the decoder's own MLP, of ``intermediate_size``, is added, times the sigmoid of a gate (Qwen2-MoE).
        biased: the router and the projections of the experts have biases (gpt-oss).
        clamped: their hidden numbers are clamped (gpt-oss); None is the decoder's activation.
        balance: what training adds to its loss for the router; None adds and tells nothing.

    >>> Experts(4, 5, 8)
    Traceback (most recent call last):
    ValueError: Experts: per_token is 5, wanted at most count 4.
    """

    count: int
    per_token: int
    width: int
    normalized: bool = True
    shared: bool = False
    biased: bool = False
    clamped: Clamped | None = None
    balance: Balance | None = None

    def __post_init__(self) -> None:
        at_least_one("Experts", count=self.count, per_token=self.per_token, width=self.width)
        not_negative("Experts", **(Balance() if self.balance is None else self.balance)._asdict())
        if self.per_token > self.count:
            raise ValueError(f"Experts: per_token is {self.per_token}, wanted at most count {self.count}.")


@dataclass(frozen=True)
class DecoderConfig:
    """Static shape of a decoder; hashable, so it can be a static argument of ``jit``.

    The defaults are Llama's: what another family does otherwise is a field.

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
        rotary_dim: numbers of a head that turn, the first ones; None is all (GLM-4, Phi-4-mini turn some).
        rope_pairs: neighbors turn together (GLM-4), and not the two halves.
        local_rope: of the layers with a window, where it is another (Gemma 3, OLMo 3); None is the same.
        rotated: of each layer, whether it turns at all (SmolLM3); empty is all of them.
        window: tokens that a layer with a window reads at most, the query's own included; None is all (Mistral).
        sliding: of each layer, whether it has the window (Gemma, OLMo 3); empty is all of them.
        norm_eps: epsilon of the RMS norms.
        norm_offset: added to the weights of the norms: 1 where files hold their distance from 1 (Gemma).
        norms: "before" attention and MLP, "after" them (OLMo 2), or "both" (Gemma 2, GLM-4).
        qk_norm: RMS norm over each query and key "head" (Qwen3), over the whole "width" of them (OLMo 2), or None.
        tie_embeddings: the head is the embedding.
        biases: the projections with a bias: q, k and v (Qwen2), or any others.
        activation: of the MLP's gate: "silu", "gelu_tanh" (Gemma) or "gelu".
        embedding_scale: what embeddings are multiplied by (Gemma, Granite).
        residual_scale: what attention and MLP are multiplied by before they are added (Granite).
        attention_scale: what scores are multiplied by; None is ``head_dim^(−1/2)`` (Gemma 2, Granite).
        attention_cap: scores s become ``cap · tanh(s / cap)`` (Gemma 2); None leaves them.
        sinks: each head has one more logit in its softmax, which is trained, and whose share is dropped (gpt-oss).
        logit_divisor: what the logits are divided by (Granite).
        logit_cap: as ``attention_cap``, of the logits (Gemma 2).
        experts: a mixture of experts in place of the MLP, or None.
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
    rotary_dim: int | None = None
    rope_pairs: bool = False
    local_rope: Rope | None = None
    rotated: tuple[bool, ...] = ()
    window: int | None = None
    sliding: tuple[bool, ...] = ()
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    norms: str = "before"
    qk_norm: str | None = None
    tie_embeddings: bool = True
    biases: tuple[str, ...] = ()
    activation: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    sinks: bool = False
    logit_divisor: float = 1.0
    logit_cap: float | None = None
    experts: Experts | None = None
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
        scales = ("rope_theta", "norm_eps", "embedding_scale", "residual_scale", "logit_divisor")
        positive("DecoderConfig", **{name: getattr(self, name) for name in scales})
        optional = {name: getattr(self, name) for name in ("attention_scale", "attention_cap", "logit_cap")}
        positive("DecoderConfig", **{name: value for name, value in optional.items() if value is not None})
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"DecoderConfig: num_kv_heads is {self.num_kv_heads}, wanted a divisor of num_heads {self.num_heads}."
            )
        self._check_words()
        self._check_layers()
        self._check_experts()
        self._check_tokens()
        if self.head_dim % 2 or self.rotated_width % 2 or not 0 < self.rotated_width <= self.head_dim:
            name = "head_dim" if self.head_dim % 2 or self.rotary_dim is None else "rotary_dim"
            wanted = "an even number (rotary halves)" if name == "head_dim" else f"an even number up to {self.head_dim}"
            raise ValueError(f"DecoderConfig: {name} is {getattr(self, name)}, wanted {wanted}.")

        self._check_divisors()

    def _check_divisors(self) -> None:
        if not isinstance(self.rope_scaling, LongRope):
            return
        wanted = self.rotated_width // 2
        for name in ("short", "long"):
            count = len(getattr(self.rope_scaling, name))
            if count != wanted:
                raise ValueError(
                    f"DecoderConfig: rope_scaling has {count} {name} factors, wanted {wanted}, one for each frequency "
                    "of a head."
                )

    def _check_words(self) -> None:
        words = (
            ("attention", ATTENTIONS),
            ("activation", ACTIVATIONS),
            ("norms", NORMS),
            ("qk_norm", (None, *QK_NORMS)),
        )
        for name, known in words:
            value = getattr(self, name)
            if value not in known:
                named = [word for word in known if word is not None]
                hint = did_you_mean(str(value), named)
                raise ValueError(f"DecoderConfig: {name} {value!r} is unknown{hint} There are {', '.join(named)}.")
        for name in ("sampler_dtype", "cache_dtype"):
            if getattr(self, name) not in (None, *NARROW):
                wanted = f"{' or '.join(NARROW)}, or None"
                raise ValueError(f"DecoderConfig: {name} is {getattr(self, name)!r}, wanted {wanted}.")
        for name in self.biases:
            if name not in TARGETS:
                hint = did_you_mean(name, TARGETS)
                raise ValueError(
                    f"DecoderConfig: biases names {name!r}, which is unknown{hint} There are {', '.join(TARGETS)}."
                )

    def _check_experts(self) -> None:
        if self.experts is None or self.experts.shared:
            return
        for what, named in (("lora", self.lora.targets if self.lora else ()), ("biases", self.biases)):
            absent = [name for name in ("gate", "up", "down") if name in named]
            if absent:
                raise ValueError(
                    f"DecoderConfig: {what} names {absent[0]!r}, and the layers have experts in place of it; name q, "
                    "k, v or o."
                )

    def _check_tokens(self) -> None:
        if self.lora is None:
            return
        for field in ROWS_OF.values():
            ids = getattr(self.lora, field)
            if len(set(ids)) < len(ids) or not all(0 <= token < self.vocab_size for token in ids):
                raise ValueError(
                    f"DecoderConfig: lora_{field} is {list(ids)}, wanted different ids from 0 to {self.vocab_size - 1}."
                )
        if self.lora.head_tokens and self.tie_embeddings:
            raise ValueError(
                "DecoderConfig: lora_head_tokens is given and the head is the embedding; give lora_tokens, whose rows "
                "are both."
            )

    def _check_layers(self) -> None:
        if self.window is not None:
            at_least_one("DecoderConfig", window=self.window)
        elif self.sliding or self.local_rope is not None:
            name = "sliding" if self.sliding else "local_rope"
            raise ValueError(f"DecoderConfig: {name} is of layers with a window, and window is None; give the window.")
        for name in ("sliding", "rotated"):
            value = getattr(self, name)
            if len(value) not in (0, self.num_layers):
                raise ValueError(
                    f"DecoderConfig: {name} has {len(value)} entries, wanted one for each of the {self.num_layers} "
                    "layers, or none."
                )

    @property
    def rotated_width(self) -> int:
        """Numbers of a head that turn."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def rope(self) -> Rope:
        """The rotary embedding of layers without a window."""
        return Rope(self.rope_theta, self.rope_scaling)

    def slides(self, layer: int) -> bool:
        """Whether a layer reads a window only."""
        return self.window is not None and (self.sliding[layer] if self.sliding else True)

    def window_of(self, layer: int) -> int | None:
        """Tokens that a layer reads at most; None is all."""
        return self.window if self.slides(layer) else None

    def turns(self, layer: int) -> bool:
        """Whether a layer's queries and keys turn with their position."""
        return self.rotated[layer] if self.rotated else True

    @property
    def projections(self) -> tuple[str, ...]:
        """The ``TARGETS`` that a layer has: a mixture without a shared expert has no gate, up and down of its own."""
        return tuple(name for name in TARGETS if name in self.parameter_shapes["layers"])

    @property
    def parameter_shapes(self) -> dict[str, Any]:
        """The parameter tree as shapes: ``layers`` stacked on axis 0, kernels ``[in, out]``, embeddings ``[V, D]``."""
        d = self.hidden_size
        f = self.intermediate_size
        q = self.num_heads * self.head_dim
        kv = self.num_kv_heads * self.head_dim
        matrices = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)}
        if self.experts is None or self.experts.shared:
            matrices |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
        biases = {f"{name}_bias": matrices[name][1:] for name in self.biases}
        whole = self._vector_shapes() | matrices | self._expert_shapes() | biases
        # In the order of the computation, which files keep.
        block = {name: whole[name] for name in _ORDER if name in whole}
        block |= {name: shape for name, shape in whole.items() if name not in block}
        layers = {name: (self.num_layers, *shape) for name, shape in block.items()}
        head = {} if self.tie_embeddings else {"head": (self.vocab_size, d)}
        return {"embed": (self.vocab_size, d), "layers": layers, "norm": (d,)} | head

    def active_matrices(self) -> list[tuple[str, int, int]]:
        """Name, ins and outs of each matrix of a layer that a token passes: of experts those that it is sent to.

        >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, experts=Experts(8, 2, 6))
        >>> [name for name, _, _ in config.active_matrices()].count("expert_down")
        2
        """
        layers = self.parameter_shapes["layers"]
        plain = [(name, *layers[name][1:]) for name in (*self.projections, "router", "shared_gate") if name in layers]
        times = 0 if self.experts is None else self.experts.per_token
        sent = [(name, *layers[name][2:]) for name in ("expert_gate", "expert_up", "expert_down") if name in layers]
        return plain + sent * times

    def _expert_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one layer."""
        if self.experts is None:
            return {}
        d, count, width = self.hidden_size, self.experts.count, self.experts.width
        wide = dict.fromkeys(("expert_gate", "expert_up"), (count, d, width))
        shared = {"shared_gate": (d, 1)} if self.experts.shared else {}
        shapes = {"router": (d, count)} | wide | {"expert_down": (count, width, d)} | shared
        if not self.experts.biased:
            return shapes
        biased = dict.fromkeys(("expert_gate_bias", "expert_up_bias"), (count, width))
        return shapes | {"router_bias": (count,)} | biased | {"expert_down_bias": (count, d)}

    def _vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one layer: norms, and sinks."""
        before = ("attention_norm", "mlp_norm") if self.norms != "after" else ()
        after = ("attention_post_norm", "mlp_post_norm") if self.norms != "before" else ()
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(before + after, (self.hidden_size,))
        if self.qk_norm is not None:
            heads = {"q": self.num_heads, "k": self.num_kv_heads}
            together = {name: 1 if self.qk_norm == "head" else count for name, count in heads.items()}
            shapes |= {f"{name}_norm": (count * self.head_dim,) for name, count in together.items()}
        return shapes | ({"sinks": (self.num_heads,)} if self.sinks else {})

    @property
    def scalar_shapes(self) -> dict[str, Any]:
        """The tree of a model with a scalar in place of the head: ``parameter_shapes``, ``score [D]`` for ``head``."""
        rest = {name: shape for name, shape in self.parameter_shapes.items() if name != "head"}
        return rest | {"score": (self.hidden_size,)}

    @property
    def adapter_shapes(self) -> dict[str, Any]:
        """The adapter's tree: ``layers/q_lora_a [L, in, r]`` and ``layers/q_lora_b [L, r, out]`` for each target.

        With DoRA ``layers/q_lora_m [L, out]`` too; with tokens ``embed_rows`` and ``head_rows [n, D]``.
        """
        rank, targets = (self.lora.rank, self.lora.targets) if self.lora else (0, ())
        layers: dict[str, tuple[int, ...]] = {}
        for target in targets:
            count, into, out = self.parameter_shapes["layers"][target]
            layers |= {f"{target}_lora_a": (count, into, rank), f"{target}_lora_b": (count, rank, out)}
            layers |= {f"{target}_lora_m": (count, out)} if self.lora and self.lora.dora else {}
        tokens = {leaf: getattr(self.lora, field) for leaf, field in ROWS_OF.items()} if self.lora else {}
        rows = {f"{leaf}_rows": (len(ids), self.hidden_size) for leaf, ids in tokens.items() if ids}
        return {"layers": layers} | rows
