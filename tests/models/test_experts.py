"""Mixtures of experts: the routing of the papers, and products of sorted tokens that are those of a loop."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from rlax_llm.models import experts, sorted_products
from rlax_llm.models.blocks import int8, nf4
from rlax_llm.models.config import Clamped, DecoderConfig, Experts, Lora
from rlax_llm.models.experts import Biases, Weights, clamped, gated_by, mixture
from rlax_llm.models.narrow import narrowed, widened
from rlax_llm.models.routers import Routed, replay, route
from rlax_llm.models.sorted_products import block_of, sorted_product

pytestmark = pytest.mark.usefixtures("float64")
D, F, COUNT = 5, 7, 6
SILU = gated_by(jax.nn.silu)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("normalized", [True, False])
def test_tokens_go_where_their_probability_is_largest(normalized):
    logits = drawn(9, COUNT)
    found = route(jnp.asarray(logits), Experts(COUNT, 3, F, normalized))
    for row, chosen, weights in zip(logits, found.experts, found.weights, strict=True):
        p = softmax(row)
        wanted = np.argsort(-p, kind="stable")[:3]
        assert chosen.tolist() == wanted.tolist()
        np.testing.assert_allclose(weights, p[wanted] / (p[wanted].sum() if normalized else 1))


def test_normalized_weights_are_the_softmax_of_the_chosen_logits():
    logits = jnp.asarray(drawn(4, COUNT))
    found = route(logits, Experts(COUNT, 2, F))
    taken = jnp.take_along_axis(logits, found.experts, -1)
    np.testing.assert_allclose(found.weights, jax.nn.softmax(taken, -1))


def literal_replay(logits, given, k, normalized):
    """As the paper on R3 has it, token by token: the sampler's mask over the learner's own logits."""
    chosen, weights = [], []
    for row, own in zip(logits, given, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        experts = [number - 1 for number in own] if own.any() else np.argsort(-p, kind="stable")[:k]
        taken = [p[expert] for expert in experts]
        chosen.append(experts)
        weights.append([share / sum(taken) for share in taken] if normalized else taken)
    return np.array(chosen), np.array(weights)


@pytest.mark.parametrize("normalized", [True, False])
def test_replayed_tokens_go_where_the_sampler_sent_them(normalized):
    kind, logits = Experts(COUNT, 3, F, normalized), 2 * drawn(12, COUNT)
    random = np.random.default_rng(0)
    given = np.array([1 + random.permutation(COUNT)[:3] for _ in logits], np.uint8)
    given[4:6] = 0  # of which nobody says
    found = replay(jnp.asarray(logits), jnp.asarray(given), kind)
    wanted = literal_replay(logits, given, 3, normalized)
    assert found.experts.tolist() == wanted[0].tolist()
    np.testing.assert_allclose(found.weights, wanted[1], rtol=1e-12)
    x, _, weights = case(6, 3)
    by_row = jax.tree.map(lambda leaf: leaf.reshape(2, 6, 3), found)
    other = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(2, 6, 3), Routed(*wanted))
    np.testing.assert_allclose(mixture(jnp.asarray(x), by_row, weights, SILU), literal(x, other, weights), atol=1e-10)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_routers_own_choice_replayed_is_the_router_with_its_slope(normalized):
    kind, logits = Experts(COUNT, 2, F, normalized), jnp.asarray(drawn(9, COUNT))
    own = route(logits, kind)
    x, _, weights = case(9, 2)

    def mixed(routing, logits):
        routed = jax.tree.map(lambda leaf: leaf[None], routing(logits))
        return mixture(jnp.asarray(x[:1]), routed, weights, SILU)

    ways = [lambda logits: route(logits, kind), lambda logits: replay(logits, own.experts + 1, kind)]
    found = [jax.vjp(partial(mixed, way), logits) for way in ways]
    np.testing.assert_array_equal(found[1][0], found[0][0])
    slope = jnp.asarray(drawn(1, 9, D))
    np.testing.assert_array_equal(found[1][1](slope)[0], found[0][1](slope)[0])


def test_a_replayed_expert_teaches_the_router_of_itself():
    """By differences, of an expert that the router would not have taken."""
    x, _, weights = case(12, 1)
    router, given = jnp.asarray(drawn(D, COUNT)), np.tile([COUNT, 2], (2, 12, 1))

    def loss(router):
        routed = replay(jnp.asarray(x) @ router, jnp.asarray(given), Experts(COUNT, 2, F, normalized=False))
        return jnp.sin(mixture(jnp.asarray(x), routed, weights, SILU)).sum()

    slope, width = jax.grad(loss)(router), 1e-6
    for index in ((0, COUNT - 1), (3, 1), (2, 0)):
        moved = (loss(router.at[index].add(width)) - loss(router.at[index].add(-width))) / (2 * width)
        np.testing.assert_allclose(slope[index], moved, rtol=1e-5, atol=1e-8)


def literal_clamp(gate, up):
    """As the paper on gpt-oss and transformers have it."""
    gate, up = np.where(gate > 0.7, 0.7, gate), np.where(np.abs(up) > 0.7, 0.7 * np.sign(up), up)
    return (up + 1) * gate / (1 + np.exp(-1.702 * gate))


def literal(x, routed, weights, gated=lambda gate, up: silu(gate) * up):
    """Token by token, expert by expert."""
    found = np.zeros_like(x)
    biases = weights.biases or Biases(*(np.zeros((COUNT, matrix.shape[-1])) for matrix in weights[:3]))
    for b, s in np.ndindex(x.shape[:2]):
        for expert, share in zip(routed.experts[b, s], routed.weights[b, s], strict=True):
            gate, up, down = (np.asarray(matrix)[expert] for matrix in weights[:3])
            of_gate, of_up, of_down = (bias[expert] for bias in biases)
            found[b, s] += share * (gated(x[b, s] @ gate + of_gate, x[b, s] @ up + of_up) @ down + of_down)
    return found


def case(tokens: int, per_token: int):
    routed = route(jnp.asarray(3 * drawn(2, tokens, COUNT)), Experts(COUNT, per_token, F))
    weights = Weights(drawn(COUNT, D, F), drawn(1, COUNT, D, F)[0], drawn(COUNT, F, D))
    return drawn(2, tokens, D), routed, weights


@pytest.mark.parametrize(("tokens", "per_token"), [(1, 2), (40, 1), (150, 3), (7, COUNT)])
def test_a_mixture_is_that_of_a_loop(tokens, per_token):
    x, routed, weights = case(tokens, per_token)
    found = mixture(jnp.asarray(x), routed, weights, SILU)
    np.testing.assert_allclose(found, literal(x, routed, weights), atol=1e-10)


def test_experts_with_biases_and_a_clamp_are_those_of_a_loop():
    x, routed, weights = case(40, 3)
    weights = weights._replace(biases=Biases(drawn(COUNT, F), 2 * drawn(COUNT, F), drawn(COUNT, D)))
    found = mixture(jnp.asarray(x), routed, jax.tree.map(jnp.asarray, weights), clamped(Clamped(limit=0.7)))
    np.testing.assert_allclose(found, literal(x, routed, weights, literal_clamp), atol=1e-10)


def test_without_a_limit_a_clamp_is_silu_of_the_gate():
    gate, up = jnp.asarray(drawn(9)), jnp.asarray(drawn(9))
    np.testing.assert_allclose(clamped(Clamped(1.0, 1e9))(gate, up), SILU(gate, up + 1), atol=1e-12)


def test_one_expert_is_a_gated_mlp():
    x, _, weights = case(9, 1)
    one = Weights(*(matrix[:1] for matrix in weights[:3]))
    routed = Routed(jnp.zeros((2, 9, 1), jnp.int32), jnp.ones((2, 9, 1)))
    gate, up, down = (matrix[0] for matrix in one[:3])
    np.testing.assert_allclose(mixture(jnp.asarray(x), routed, one, SILU), (silu(x @ gate) * (x @ up)) @ down)


def by_ragged_dot(x, weights, sizes):
    return jax.lax.ragged_dot(x, weights, sizes)


def by_taken_weights(x, weights, sizes):
    expert = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(x.shape[0]), side="right")
    there = expert < sizes.shape[0]
    found = jnp.einsum("nd,ndf->nf", x, weights[jnp.minimum(expert, sizes.shape[0] - 1)])
    return jnp.where(there[:, None], found, 0)


@pytest.fixture(params=["cpu", "gpu"])
def machine(request, monkeypatch):
    """The way of a CPU, and that of accelerators, which a CPU can go too."""
    for module in (experts, sorted_products):
        monkeypatch.setattr(module, "platform", lambda: request.param)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("sizes", [[3, 0, 40, 1, 0, 9], [0, 0, 0, 0, 0, 70], [70, 0, 0, 0, 0, 0], [0] * 6])
def test_products_are_ragged_dot_with_its_gradients(sizes):
    x, weights, sizes = jnp.asarray(drawn(70, D)), jnp.asarray(drawn(COUNT, D, F)), jnp.array(sizes, jnp.int32)
    slope = drawn(70, F)
    both = []
    for product in (sorted_product, by_ragged_dot):
        value, pull = jax.vjp(lambda x, weights, product=product: product(x, weights, sizes), x, weights)
        both.append((value, pull(jnp.asarray(slope))))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), *both)


@pytest.mark.usefixtures("machine")
def test_narrow_experts_are_off_by_at_most_half_a_step_of_each_weight():
    x, weights = jnp.asarray(drawn(70, D)), jnp.asarray(drawn(COUNT, D, F))
    sizes = jnp.array([3, 0, 40, 1, 0, 9], jnp.int32)
    small = narrowed(weights, "int8", -2)
    found, exact = sorted_product(x, small, sizes), by_taken_weights(x, weights, sizes)
    np.testing.assert_allclose(found, by_taken_weights(x, widened(small), sizes), atol=1e-10)
    bound = by_taken_weights(jnp.abs(x), jnp.broadcast_to(small.scales / 2, weights.shape), sizes)
    off = jnp.abs(found - exact)
    assert bool((off <= bound + 1e-12).all()) and float(off.max()) > 0.01


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("blocks", [int8, nf4])
@pytest.mark.parametrize("sizes", [[3, 0, 40, 1, 0, 9], [0, 0, 0, 0, 0, 70], [0] * 6])
def test_experts_in_blocks_are_the_wide_ones_and_so_are_the_slopes_of_what_they_read(blocks, sizes):
    x, sizes = jnp.asarray(drawn(70, 8)), jnp.array(sizes, jnp.int32)
    weights = blocks(jnp.asarray(drawn(COUNT, 8, F)))
    found, pull = jax.vjp(lambda x: sorted_product(x, weights, sizes), x)
    wanted, wide_pull = jax.vjp(lambda x: by_taken_weights(x, weights.wide(), sizes), x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    slope = jnp.asarray(drawn(70, F))
    np.testing.assert_allclose(pull(slope)[0], wide_pull(slope)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("blocks", [int8, nf4])
def test_a_mixture_in_blocks_is_that_of_a_loop_over_its_numbers(blocks):
    _, routed, _ = case(20, 2)
    x = drawn(2, 20, 8)
    weights = [blocks(jnp.asarray(drawn(*shape))) for shape in ((COUNT, 8, 6), (COUNT, 8, 6), (COUNT, 6, 8))]
    found = mixture(jnp.asarray(x), routed, Weights(*weights), SILU)
    wide = Weights(*(np.asarray(matrix.wide(), float) for matrix in weights))
    np.testing.assert_allclose(found, literal(x, routed, wide), rtol=0, atol=1e-10)
    # As seeds that are mapped over read it.
    several = jax.vmap(lambda x: mixture(x, routed, Weights(*weights), SILU))(jnp.stack([jnp.asarray(x)] * 2))
    np.testing.assert_allclose(several[1], found, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("machine")
def test_a_gradient_may_be_differentiated_again():
    """As Fisher products do, through the pullback."""
    x, weights = jnp.asarray(drawn(30, D)), jnp.asarray(drawn(COUNT, D, F))
    sizes, ways = jnp.array([3, 0, 20, 1, 0, 2], jnp.int32), jnp.asarray(drawn(2, 30, F))

    def second(product):
        def once(x, weights, way):
            value, pull = jax.vjp(lambda x, weights: jnp.sin(product(x, weights, sizes)), x, weights)
            return sum(jnp.cos(leaf).sum() for leaf in pull(way)) + value.sum()

        return jax.grad(once, (0, 1, 2))(x, weights, ways[0])

    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-9), second(sorted_product), second(by_taken_weights))


def by_all_experts(x, routed, weights, gated):
    """Every token passes every expert, most of them for a share of 0."""
    share = (jax.nn.one_hot(routed.experts, COUNT) * routed.weights[..., None]).sum(-2)
    gate, up = (jnp.einsum("bsd,edf->bsef", x, weights[i]) + weights.biases[i] for i in range(2))
    found = jnp.einsum("bsef,efd->bsed", gated(gate, up), weights.down) + weights.biases.down
    return jnp.einsum("bsed,bse->bsd", found, share)


@pytest.mark.usefixtures("machine")
def test_slopes_of_a_mixture_are_those_of_all_experts_and_so_are_the_slopes_of_those():
    x, routed, weights = case(25, 2)
    weights = weights._replace(biases=Biases(drawn(COUNT, F), 2 * drawn(COUNT, F), drawn(COUNT, D)))
    given = jax.tree.map(jnp.asarray, (x, routed.weights, weights))
    way, ways = jnp.asarray(drawn(2, 25, D)), jax.tree.map(lambda leaf: jnp.cos(3 * leaf), given)

    def both(form):
        def value(x, shares, weights):
            return jnp.sin(form(x, routed._replace(weights=shares), weights, SILU))

        def slopes(given, way):
            return jax.vjp(value, *given)[1](way)

        found, pull = jax.vjp(slopes, given, way)
        return found, pull(ways)

    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-9), jax.jit(both, static_argnums=0)(mixture), both(by_all_experts)
    )


def test_the_router_learns_through_the_weights():
    x, _, weights = case(12, 1)
    router = jnp.asarray(drawn(D, COUNT))

    def loss(router):
        routed = route(jnp.asarray(x) @ router, Experts(COUNT, 2, F))
        return jnp.sin(mixture(jnp.asarray(x), routed, weights, SILU)).sum()

    slope, width = jax.grad(loss)(router), 1e-6
    for index in ((0, 0), (3, 4)):
        moved = (loss(router.at[index].add(width)) - loss(router.at[index].add(-width))) / (2 * width)
        np.testing.assert_allclose(slope[index], moved, rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("machine")
def test_seeds_may_be_mapped_over():
    x, routed, weights = case(6, 2)
    several = jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)])
    found = jax.vmap(lambda x: mixture(x, routed, weights, SILU))(several)
    for i in range(2):
        np.testing.assert_allclose(found[i], mixture(several[i], routed, weights, SILU), atol=1e-12)


def test_blocks_have_little_padding():
    assert [block_of(rows, COUNT) for rows in (1, 100, 10**5)] == [sorted_products.SMALLEST, 8, sorted_products.LARGEST]


def test_what_has_experts_has_no_such_matrix():
    with pytest.raises(ValueError, match="lora names 'gate', and the layers have experts in place of it; name q, k, v"):
        DecoderConfig(5, 4, 8, 1, 2, 1, 2, experts=Experts(4, 2, 8), lora=Lora(2, 4.0))
    with pytest.raises(ValueError, match="per_token is 5, wanted at most count 4"):
        Experts(4, 5, 8)
