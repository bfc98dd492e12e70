"""Every family trains and draws: groups, pairs, adapters; alike behind shared prompts, in packed rows, with a cache."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import Completions, Room
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.config import TARGETS, DecoderConfig, Lora
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.fields import told
from rlax_llm.models.huggingface_config import family_of
from rlax_llm.models.packing import Packed, packed_log_probs
from rlax_llm.models.scoring import group_log_probs, in_room
from rlax_llm.policy.trust_regions import clip
from rlax_llm.preference.links import logistic

V, WIDTH, OWN = 13, 3, 4
LIMIT = 12  # tokens of what is drawn: a ring of 8 columns is used again
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "sliding_window": 3,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
EXPERTS |= {"shared_expert_intermediate_size": 12}
ON = {
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "attention_bias": True},
    "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": True},
    "gemma2": {"query_pre_attn_scalar": 9},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 2.0},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0, "attention_bias": True},
}


def of_family(kind: str) -> DecoderConfig:
    config = DecoderConfig(**FAMILIES[kind].shape(told(SIZES | EXPERTS | ON.get(kind, {}))))
    targets = tuple(name for name in TARGETS if name in config.parameter_shapes["layers"])
    return replace(config, lora=Lora(2, 4.0, targets))


def random_params(config: DecoderConfig):
    """Base and adapter, with noise on all of them."""
    random = np.random.default_rng(0)
    shapes = config.parameter_shapes
    shapes = shapes | {"layers": shapes["layers"] | config.adapter_shapes["layers"]}

    def draw(path, shape):
        ones = path[-1].key.endswith("norm") * (1 - config.norm_offset)
        return jnp.asarray(random.normal(size=shape) * 0.3 + ones, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def rows() -> Completions:
    """Two prompts, one of them padded, with two completions each, of which some end early."""
    random = np.random.default_rng(1)
    prompts, own = random.integers(2, V, (2, WIDTH)), random.integers(2, V, (4, OWN))
    there = np.array([[True] * WIDTH, [False] + [True] * (WIDTH - 1)])
    lengths = np.array([OWN, 2, 3, OWN])[:, None]
    valid = np.concatenate([np.repeat(there, 2, 0), np.arange(OWN) < lengths], 1)
    mask = valid & (np.arange(WIDTH + OWN) >= WIDTH)
    tokens = np.concatenate([np.repeat(prompts, 2, 0), own], 1).astype(np.int32)
    return Completions(tokens, valid, mask, np.zeros(tokens.shape, np.float32), np.zeros(4, bool))


def prompts() -> tuple[np.ndarray, np.ndarray]:
    """The two, one of them padded."""
    given = rows()
    return given.tokens[::2, :WIDTH], given.valid[::2, :WIDTH]


def packed(given: Completions) -> Packed:
    """Two rows in one, without padding between them."""

    def joined(name):
        return np.stack([_row(given, name, pair) for pair in ((0, 1), (2, 3))])

    fields = {name: joined(name) for name in ("tokens", "valid", "mask", "log_probs")}
    segments = joined("segments")
    absent = dict.fromkeys(("kept", "versions", "given", "teacher", "dropout", "routed", "room"))
    return Packed(**fields, **absent, truncated=np.zeros(2, bool), segments=segments)


def _row(given: Completions, name: str, pair: tuple[int, int]) -> np.ndarray:
    each = [np.full(given.valid[row].sum(), 1 + number) for number, row in enumerate(pair)]
    if name != "segments":
        each = [getattr(given, name)[row][given.valid[row]] for row in pair]
    joined = np.concatenate(each)
    return np.pad(joined, (0, 2 * (WIDTH + OWN) - len(joined))).astype(joined.dtype)


@partial(jax.jit, static_argnums=0)
def computed(config: DecoderConfig, params, layouts):
    """Log-probabilities of groups, of their tokens without padding, and of packed rows; and the gradient of a group's
    and a pair's loss."""

    def loss(params):
        log_probs = group_log_probs(config, (2, WIDTH))(params, layouts[0])[0]
        advantages = jnp.array([1.0, -1.0, 1.0, -1.0])[:, None]
        ratio = log_probs - jax.lax.stop_gradient(log_probs)
        of_group = jnp.where(layouts[0].mask, clip(0.2)(ratio, jnp.broadcast_to(advantages, ratio.shape)), 0.0).sum()
        sums = log_probs.sum(-1)
        return of_group + logistic(sums[::2], sums[1::2]).sum(), log_probs

    gradient, shared = jax.grad(loss, has_aux=True)(params)
    unpadded = group_log_probs(config, (2, WIDTH))(params, in_room(layouts[0], Room(2 * OWN + 5)))[0]
    return gradient, shared, unpadded, packed_log_probs(config)(params, layouts[1])[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_learns_alike_in_all_layouts(kind):
    config, given = of_family(kind), rows()
    assert family_of(replace(config, lora=None)) == kind or kind in ("mistral", "phi3")
    params, layouts = random_params(config), (given, packed(given))
    gradient, shared, unpadded, together = computed(config, params, layouts)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-7, path
    wanted = np.asarray(shared)[given.mask]
    np.testing.assert_allclose(np.asarray(unpadded)[given.mask], wanted, atol=2e-5)
    np.testing.assert_allclose(np.asarray(together)[layouts[1].mask], wanted, atol=2e-5)


@partial(jax.jit, static_argnums=0)
def drawn(config: DecoderConfig, params):
    return generate_at_once(config, params, prompts(), jax.random.key(2), Request(Categorical(), (), LIMIT, 2))


@partial(jax.jit, static_argnums=0)
def recomputed(config: DecoderConfig, params, given: Completions):
    return group_log_probs(config, (2, WIDTH))(params, given)[0]


def errors(config: DecoderConfig, sampler: DecoderConfig) -> np.ndarray:
    """By how much captured log-probabilities differ from those of full forward passes."""
    params = random_params(config)
    found = drawn(sampler, params)
    return np.abs(found.log_probs - recomputed(config, params, found))[np.asarray(found.mask)]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_draws_with_a_cache_what_its_learner_computes_without(kind):
    """Layers with a window keep a ring."""
    config = of_family(kind)
    assert errors(config, config).max() < 2e-5


# The others attend as llama does.
@pytest.mark.parametrize("kind", ["llama", *(kind for kind in FAMILIES if of_family(kind).window)])
def test_keys_and_values_of_int8_are_near(kind):
    """In rings too: one that overlooked the window, or a sink, would be off by half a nat."""
    config = of_family(kind)
    assert errors(config, replace(config, cache_dtype="int8")).mean() < 0.03
