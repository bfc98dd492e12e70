from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from rlax_llm.models import decoder, shared_prompts
from rlax_llm.models.attention import rotary
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.ropes import LinearRope, Llama3Rope, Rope, YarnRope

pytestmark = pytest.mark.usefixtures("float64")

V = 13
CONFIGS = {
    "llama": DecoderConfig(V, 16, 24, 2, 4, 2, 4),
    "qwen2": DecoderConfig(V, 16, 24, 2, 2, 2, 8, biases=("q", "k", "v")),
    "qwen3": DecoderConfig(V, 16, 24, 2, 4, 1, 6, qk_norm="head", tie_embeddings=False, rope_scaling=LinearRope(2.0)),
    "every switch": DecoderConfig(
        V,
        16,
        24,
        3,
        4,
        2,
        8,
        rope_scaling=YarnRope(4.0, 64, magnitude=1.25),
        rotary_dim=6,
        rope_pairs=True,
        local_rope=Rope(100.0),
        rotated=(True, True, False),
        window=3,
        sliding=(True, False, True),
        norm_offset=1.0,
        norms="both",
        qk_norm="head",
        biases=("q", "o", "gate", "down"),
        activation="gelu_tanh",
        embedding_scale=2.0,
        residual_scale=0.7,
        attention_scale=0.5,
        attention_cap=2.0,
        sinks=True,
        logit_divisor=3.0,
        logit_cap=2.5,
    ),
    "norms after": DecoderConfig(V, 16, 24, 2, 4, 2, 4, norms="after", qk_norm="width", activation="gelu", window=4),
}
LLAMA = CONFIGS["llama"]
each = pytest.mark.parametrize("name", CONFIGS)


def random_params(config: DecoderConfig, dtype=jnp.float64):
    """Parameters with noise on all of them, so that biases and norms count too."""
    random = np.random.default_rng(0)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.3 + (path[-1].key.endswith("norm")), dtype)

    return jax.tree_util.tree_map_with_path(draw, config.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))


def literal_rotary(x: np.ndarray, position: int, frequencies: np.ndarray, magnitude: float = 1.0) -> np.ndarray:
    """Rotate each pair (x_i, x_{i + d/2}) as a complex number."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * (np.exp(1j * position * frequencies) * magnitude)
    return np.concatenate([turned.real, turned.imag])


def literal_turn(config: DecoderConfig, rope: Rope, head: np.ndarray, position: int, frequencies) -> np.ndarray:
    """The first numbers of a head turned: halves, or neighbors in the order of halves and back."""
    turning, rest = np.split(head, [2 * len(frequencies)])
    order = np.arange(len(turning)).reshape(-1, 2).T.ravel() if config.rope_pairs else np.arange(len(turning))
    turned = np.empty_like(turning)
    turned[order] = literal_rotary(turning[order], position, frequencies, getattr(rope.scaling, "magnitude", 1.0))
    return np.concatenate([turned, rest])


LITERAL_ACTIVATION = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def literal_norm(config: DecoderConfig, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean() + config.norm_eps) * (weight + config.norm_offset)


def literal_linear(x: np.ndarray, layer: dict, name: str) -> np.ndarray:
    return x @ layer[name] + layer.get(f"{name}_bias", 0)


def literal_heads(config: DecoderConfig, layer: dict, i: int, states: list, name: str) -> list:
    """Queries, keys or values of all tokens."""
    slides = config.window is not None and (not config.sliding or config.sliding[i])
    rope = config.local_rope if slides and config.local_rope else Rope(config.rope_theta, config.rope_scaling)
    frequencies = rope.frequencies(config.rotary_dim or config.head_dim).astype(np.float32)
    found = []
    for position, h in enumerate(states):
        flat = literal_linear(h, layer, name)
        if config.qk_norm == "width" and name != "v":
            flat = literal_norm(config, flat, layer[f"{name}_norm"])
        heads = flat.reshape(-1, config.head_dim)
        if config.qk_norm == "head" and name != "v":
            heads = [literal_norm(config, head, layer[f"{name}_norm"]) for head in heads]
        if name != "v" and (not config.rotated or config.rotated[i]):
            heads = [literal_turn(config, rope, head, position, frequencies) for head in heads]
        found.append(heads)
    return found


def literal_mixture(config: DecoderConfig, i: int, t: int, projected: dict, sinks) -> np.ndarray:
    """What token t reads, of all heads."""
    slides = config.window is not None and (not config.sliding or config.sliding[i])
    first = max(t + 1 - config.window, 0) if slides else 0
    mixed = []
    for h in range(config.num_heads):
        shared = h // (config.num_heads // config.num_kv_heads)
        scores = np.array([projected["q"][t][h] @ projected["k"][s][shared] for s in range(first, t + 1)])
        scores = scores * (config.attention_scale or 1 / math.sqrt(config.head_dim))
        if config.attention_cap:
            scores = config.attention_cap * np.tanh(scores / config.attention_cap)
        weights = softmax(scores if sinks is None else np.append(scores, sinks[h]))[: len(scores)]
        mixed.append(sum(w * projected["v"][first + s][shared] for s, w in enumerate(weights)))
    return np.concatenate(mixed)


def literal_hidden(config: DecoderConfig, params, tokens: list[int]) -> np.ndarray:
    """The decoder on one unpadded row, token by token and head by head."""
    params = jax.tree.map(np.asarray, params)

    def normed(layer, name, x):
        return literal_norm(config, x, layer[name]) if name in layer else x

    states = [config.embedding_scale * params["embed"][token] for token in tokens]
    for i in range(config.num_layers):
        layer = {key: value[i] for key, value in params["layers"].items()}
        before = [normed(layer, "attention_norm", x) for x in states]
        projected = {name: literal_heads(config, layer, i, before, name) for name in "qkv"}
        further = []
        for t, x in enumerate(states):
            found = literal_linear(literal_mixture(config, i, t, projected, layer.get("sinks")), layer, "o")
            x = x + config.residual_scale * normed(layer, "attention_post_norm", found)
            h = normed(layer, "mlp_norm", x)
            gate = LITERAL_ACTIVATION[config.activation](literal_linear(h, layer, "gate"))
            found = literal_linear(gate * literal_linear(h, layer, "up"), layer, "down")
            further.append(x + config.residual_scale * normed(layer, "mlp_post_norm", found))
        states = further
    return np.array([literal_norm(config, x, params["norm"]) for x in states])


hidden_states = jax.jit(decoder.hidden_states, static_argnums=(0, 4))


@each
def test_the_decoder_is_its_formula_under_any_padding(name):
    """Rows of several lengths, padded on the left, on the right and on both sides with any token."""
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    rows, width = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], [12, 0, 3, 3]], 7
    for side in ("left", "right", "both"):
        tokens, valid = np.full((4, width), 11, np.int32), np.zeros((4, width), bool)
        starts = [{"left": width - len(row), "right": 0, "both": (width - len(row)) // 2}[side] for row in rows]
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            tokens[i, start : start + len(row)] = row
            valid[i, start : start + len(row)] = True
        hidden = hidden_states(config, params, tokens, valid, False)
        assert np.all(np.isfinite(hidden))
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            expected = literal_hidden(config, params, row)
            np.testing.assert_allclose(hidden[i, start : start + len(row)], expected, rtol=0, atol=1e-10)


@each
def test_logits_are_the_head_of_the_hidden_states(name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    tokens = np.random.default_rng(0).integers(0, V, (2, 5))
    valid = np.ones((2, 5), bool)
    assert ("head" in params) == (not config.tie_embeddings)
    table = params["embed"] if config.tie_embeddings else params["head"]
    logits = decoder.logits(config, params, tokens, valid)
    assert logits.dtype == jnp.float32
    expected = hidden_states(config, params, tokens, valid, False) @ table.T / config.logit_divisor
    if config.logit_cap is not None:
        expected = config.logit_cap * np.tanh(expected / config.logit_cap)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_future_does_not_touch_the_past():
    tokens, params = np.random.default_rng(0).integers(0, V, (1, 7)), random_params(LLAMA)
    valid = np.ones((1, 7), bool)
    hidden = hidden_states(LLAMA, params, tokens, valid, False)
    for t in range(1, 7):
        changed = tokens.copy()
        changed[0, t:] = (changed[0, t:] + 1) % V
        other = hidden_states(LLAMA, params, changed, valid, False)
        np.testing.assert_array_equal(other[:, :t], hidden[:, :t])
        assert np.all(np.abs(other[:, t:] - hidden[:, t:]).max(-1) > 1e-6)


def group_rows() -> tuple[np.ndarray, np.ndarray]:
    """Two prompts of width 4 (one padded), three completions of 3 each, of several lengths."""
    random = np.random.default_rng(2)
    prompts, own = random.integers(0, V, (2, 4)), random.integers(0, V, (6, 3))
    valid = np.array([[True] * 4, [False, False, True, True]])
    lengths = np.array([3, 1, 2, 3, 3, 1])[:, None]
    return (
        np.concatenate([np.repeat(prompts, 3, 0), own], 1),
        np.concatenate([np.repeat(valid, 3, 0), np.arange(3) < lengths], 1),
    )


@pytest.mark.parametrize(("name", "remat"), [("llama", True), ("qwen3", False), ("every switch", True)])
def test_shared_prompts_give_the_same_values_and_gradients(name, remat):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    tokens, valid = group_rows()
    read = valid[:, 4:, None]  # the state before a token that is there
    weights = np.random.default_rng(3).normal(size=(6, 3, 16)) * read

    def shared(params, layout):
        return shared_prompts.group_hidden_states(config, params, tokens, valid, layout, remat)

    def plain(params):
        return decoder.hidden_states(config, params, tokens, valid, remat)[:, 3:-1]

    def both(function):
        """The gradient of a weighted sum of the states, and the states."""

        def loss(params):
            states = function(params)
            return (states * weights).sum(), states

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (gradient, states), (wanted, plain_states) = both(partial(shared, layout=(3, 4))), both(plain)
    np.testing.assert_allclose(states * read, plain_states * read, rtol=0, atol=1e-10)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-8), gradient, wanted)
    assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(wanted | {"head": np.ones(1)}))


def test_rematerialization_changes_no_gradient():
    tokens, valid = group_rows()
    params = random_params(LLAMA)

    @partial(jax.jit, static_argnums=1)
    def gradient(params, remat):
        return jax.grad(lambda p: jnp.sin(decoder.hidden_states(LLAMA, p, tokens, valid, remat)).sum())(params)

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), gradient(params, True), gradient(params, False))


def test_rotary_is_a_rotation_that_knows_distances_only():
    random = np.random.default_rng(5)
    x, y = random.normal(size=(2, 6))
    frequencies = 100.0 ** (-np.arange(3) / 3)

    def at(x, position):
        return np.asarray(rotary(x.reshape(1, 1, 1, 6), np.full((1, 1), position), frequencies)).ravel()

    np.testing.assert_array_equal(at(x, 0), x)
    for position in (1, 17, 900):
        np.testing.assert_allclose(at(x, position), literal_rotary(x, position, frequencies), rtol=0, atol=1e-12)
    for left, right in ((0, 3), (5, 8), (1000, 1003)):
        np.testing.assert_allclose(at(x, left) @ at(y, right), at(x, 0) @ at(y, 3), rtol=0, atol=1e-9)


def llama3(frequencies, factor, low, high, length):
    """As Meta's and transformers' code has it, by wavelength, one frequency at a time."""
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            scaled.append(frequency)
        elif wavelength > length / low:
            scaled.append(frequency / factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return scaled


@pytest.mark.parametrize(
    ("scaling", "literal"),
    [
        (None, lambda f: f),
        (LinearRope(4.0), lambda f: [x / 4 for x in f]),
        (Llama3Rope(8.0, 1.0, 4.0, 8192), lambda f: llama3(f, 8.0, 1.0, 4.0, 8192)),
        (Llama3Rope(32.0, 1.0, 4.0, 8192), lambda f: llama3(f, 32.0, 1.0, 4.0, 8192)),
    ],
)
def test_frequencies(scaling, literal):
    config = DecoderConfig(V, 16, 24, 1, 1, 1, 64, rope_theta=500_000.0, rope_scaling=scaling)
    base = [500_000.0 ** (-2 * i / 64) for i in range(32)]
    np.testing.assert_allclose(config.rope.frequencies(config.head_dim), literal(base), rtol=1e-6)
    np.testing.assert_allclose(scaling(np.array(base)) if scaling else base, literal(base), rtol=1e-12)


@each
def test_init_makes_the_declared_shapes(name):
    config = CONFIGS[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        params = jax.eval_shape(lambda dtype=dtype: decoder.init_decoder(config, jax.random.key(0), dtype))
        assert jax.tree.map(lambda x: x.shape, params) == config.parameter_shapes
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_bfloat16_runs_near_float64():
    params, (tokens, valid) = random_params(LLAMA), group_rows()
    exact = hidden_states(LLAMA, params, tokens, valid, False)
    narrow = hidden_states(LLAMA, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), tokens, valid, False)
    assert narrow.dtype == jnp.bfloat16
    difference = np.where(valid[..., None], narrow.astype(jnp.float64) - exact, 0)
    assert np.abs(difference).max() < 0.25
    assert np.abs(difference).mean() < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "DecoderConfig: num_kv_heads is 3, wanted a divisor of num_heads 4."),
        ({"head_dim": 5}, "DecoderConfig: head_dim is 5, wanted an even number (rotary halves)."),
    ],
)
def test_errors(changes, message):
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4} | changes
    with pytest.raises(ValueError) as caught:
        DecoderConfig(V, 16, 24, 1, **shape)
    assert str(caught.value) == message
