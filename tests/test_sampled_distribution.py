"""The distribution that is sampled from, by exact enumeration: every completion of two tokens of a small vocabulary.

Sampler, learner, behavior policy and reference speak of one distribution over one kept set, at every setting, layout
and age of the parameters. The oracle is NumPy's, from all logits of a plain forward pass.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from rlax_llm.core.kl import k1, k3
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.types import Groups
from rlax_llm.credit.groups import per_group, z_score
from rlax_llm.generation.automata import Automaton
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.loops.group import group_trpo_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.packing import Packed, packed_log_probs
from rlax_llm.models.scoring import group_log_probs, group_logits, row_log_probs
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.policy.weightings import token_mean

pytestmark = pytest.mark.usefixtures("float64")

V, STOP, WIDTH, G = 7, 0, 3, 4096
CONFIG = DecoderConfig(V, 8, 12, 1, 2, 1, 4, tie_embeddings=False)
PROMPT = np.array([[0, 5, 2]], np.int32), np.array([[False, True, True]])
TEXTS = [(1, STOP), (2, STOP), *((first, second, STOP) for first in (1, 2, 3) for second in (3, 5, 6))]
OF_TEXTS = Automaton(
    np.array([0, 1, 1, 2, 3, 4, 4]),
    np.array([[-1, 1, 4, -1, -1], [3, -1, 2, -1, 2], [3, -1, -1, -1, -1], [3] * 5, [-1, -1, 2, -1, 2]]),
)
CASES = {
    "everything": Request(
        Categorical(1.4, top_k=5, top_p=0.93, min_p=0.1, logit_bias=((3, 0.7), (4, -np.inf))), (STOP,), 2, G, 1
    ),
    "min_p": Request(Categorical(1.2, min_p=0.15), (STOP,), 2, G),
    "minimum": Request(Categorical(1.1), (STOP, 6), 2, G, 2),
    "biased": Request(Categorical(0.9, logit_bias=((1, -np.inf), (2, -0.5))), (STOP,), 2, G),
    "penalties": Request(
        Categorical(1.2, min_p=0.05, logit_bias=((5, 0.9), (3, 0.4))), (STOP,), 2, G, 0, Penalties(1.7, 0.4, 0.3)
    ),
    "repetition": Request(Categorical(2.5), (STOP,), 2, G, 0, Penalties(repetition=0.6)),
    "pattern": Request(Categorical(1.1, top_k=4), (STOP,), 2, G, 0, Penalties(frequency=0.5), (OF_TEXTS,)),
}
each = pytest.mark.parametrize("name", CASES)


def parameters(seed: int):
    random = np.random.default_rng(seed)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.35 + (path[-1].key.endswith("norm")))

    return jax.tree_util.tree_map_with_path(draw, CONFIG.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))


OLD, NEW, REFERENCE = range(3)


@pytest.fixture(scope="module")
def models(float64):
    """Who samples, who learns from it later, and a reference."""
    old = parameters(0)
    return [old, jax.tree.map(lambda x, y: x + 0.3 * y, old, parameters(1)), parameters(2)]


@pytest.fixture(scope="module")
def drawn(models):
    """Of each case, every completion that was drawn, once."""
    found = {}
    for name, request in CASES.items():
        completions = jax.device_get(generate(CONFIG, models[OLD], PROMPT, jax.random.key(3), request))
        _, rows = np.unique(np.where(completions.mask, completions.tokens, -1), axis=0, return_index=True)
        found[name] = jax.tree.map(lambda x, rows=rows: x[rows], completions)
    return found


def conditional(
    request: Request, logits: np.ndarray, prefix: tuple[int, ...], kept: np.ndarray | None = None
) -> np.ndarray:
    """Log-probabilities of one token, −inf where it is cut: by the sampler's rules, or on a given set."""
    sampler = request.sampler
    logits = logits.astype(np.float64)
    if len(prefix) < request.min_new_tokens:
        logits[list(request.stop_ids)] = -np.inf
    if request.automata:
        for token in range(V):
            if not any(text[: len(prefix) + 1] == (*prefix, token) for text in TEXTS):
                logits[token] = -np.inf
    for token, bias in sampler.logit_bias:
        logits[token] += bias
    logits = with_penalties(logits, request.penalties, prefix)
    logits = logits / sampler.temperature
    if kept is None:
        kept = kept_by(sampler, logits)
    return log_softmax(np.where(kept, logits, -np.inf))


def with_penalties(logits: np.ndarray, penalties: Penalties, prefix: tuple[int, ...]) -> np.ndarray:
    """Token by token: repetition of the prompt and the completion, presence and frequency of the completion."""
    found = logits.copy()
    for token in range(V):
        if token in (*PROMPT[0][PROMPT[1]].tolist(), *prefix):
            found[token] *= penalties.repetition if found[token] < 0 else 1 / penalties.repetition
        if token in prefix:
            found[token] -= penalties.presence + penalties.frequency * prefix.count(token)
    return found


def kept_by(sampler: Categorical, tempered: np.ndarray) -> np.ndarray:
    order = np.argsort(-tempered)[: sampler.top_k or V]
    mass = np.cumsum(np.exp(log_softmax(tempered[order])))
    order = order[: 1 + int(np.sum(mass < (sampler.top_p or 2.0)))]
    order = order[tempered[order] >= tempered.max() + np.log(sampler.min_p or 1e-300)]
    return np.isin(np.arange(V), order) & np.isfinite(tempered)


all_logits = jax.jit(partial(decoder.logits, CONFIG))


def enumerated(request: Request, models, which=(OLD,)) -> dict[tuple[int, ...], list[np.ndarray]]:
    """Every possible completion of the sampler, with its tokens' log-probabilities under models, on the sampler's sets.

    The first model is who samples.
    """
    found, begun = {}, [()]
    for position in range(2):
        rows = np.array([[*PROMPT[0][0], *prefix] for prefix in begun], np.int32)
        valid = np.ones(rows.shape, bool)
        valid[:, 0] = False
        logits = [np.asarray(all_logits(models[i], rows, valid))[:, -1] for i in which]
        further = []
        for row, prefix in enumerate(begun):
            old = conditional(request, logits[0][row], prefix)
            kept = np.isfinite(old)
            each = [conditional(request, x[row], prefix, kept) for x in logits]
            for token in np.flatnonzero(kept):
                before = found.get(prefix, [np.zeros(0)] * len(which))
                told = [np.append(x, y[token]) for x, y in zip(before, each, strict=True)]
                found[*prefix, int(token)] = told
                further += [(*prefix, int(token))]
        for prefix in begun if position else ():
            found.pop(prefix)
        begun = [prefix for prefix in further if prefix[-1] not in request.stop_ids]
    return found


def laid_out(found: dict, completions, model: int) -> np.ndarray:
    """The oracle's log-probabilities in the layout of completions."""
    expected = np.zeros(completions.mask.shape)
    for row, (tokens, mask) in enumerate(zip(completions.tokens, completions.mask, strict=True)):
        expected[row, mask] = found[tuple(tokens[mask].tolist())][model]
    return expected


def learners(request: Request, completions) -> dict:
    """The layouts: groups, rows, and two completions side by side in a packed row."""
    sampler = request.sampler
    given = {"temperature": sampler.temperature, "logit_bias": sampler.logit_bias, "penalties": request.penalties}
    return {
        "group": group_log_probs(CONFIG, (len(completions.tokens), WIDTH), **given),
        "row": row_log_probs(CONFIG, **given),
        "packed": lambda params, rows: side_by_side(packed_log_probs(CONFIG, **given), params, rows),
    }


def side_by_side(log_probs, params, rows):
    """Each row beside a copy of the next one, whose log-probabilities are thrown away."""
    both = jax.tree.map(lambda x: jnp.concatenate([jnp.roll(x, -1, 0), x], 1) if x.ndim > 1 else x, rows)
    segments = jnp.repeat(jnp.array([[1, 2]]), rows.tokens.shape[1], 1) * both.valid
    return tuple(x[:, rows.tokens.shape[1] :] for x in log_probs(params, Packed(*both, segments=segments)))


@each
def test_the_captured_log_probs_are_a_distribution_and_the_oracles(name, drawn, models):
    request, completions, found = CASES[name], drawn[name], enumerated(CASES[name], models)
    own = {tuple(tokens[mask].tolist()) for tokens, mask in zip(completions.tokens, completions.mask, strict=True)}
    assert own == found.keys()
    assert len(own) > 8
    np.testing.assert_allclose(np.exp(completions.log_probs.sum(-1)).sum(), 1, atol=2e-6)
    np.testing.assert_allclose(completions.log_probs, laid_out(found, completions, 0), rtol=0, atol=2e-6)
    cuts = name not in ("biased", "repetition")
    assert (completions.kept is not None) == cuts
    assert completions.mask.sum(-1).min() >= max(request.min_new_tokens, 1)
    if request.min_new_tokens:
        early = completions.tokens[:, WIDTH : WIDTH + request.min_new_tokens]
        assert not np.isin(early, request.stop_ids).any()


@each
def test_every_layout_recomputes_what_was_sampled_from(name, drawn, models):
    """The ratio is 1 before any update, and any other model is renormalized on the sampler's sets."""
    request, completions = CASES[name], drawn[name]
    found = enumerated(request, models, (OLD, NEW))
    for layout, log_probs in learners(request, completions).items():
        program = jax.jit(log_probs)
        old, new = (np.asarray(program(models[i], completions)[0]) for i in (OLD, NEW))
        np.testing.assert_allclose(old, completions.log_probs, rtol=0, atol=2e-6, err_msg=layout)
        for model, values in enumerate((old, new)):
            # The rounding is that of attention over other segments: its angles are float32.
            np.testing.assert_allclose(values, laid_out(found, completions, model), rtol=0, atol=5e-7, err_msg=layout)


@each
def test_ratios_and_divergences_are_those_of_one_set(name, drawn, models):
    """Of a stale batch: the mean ratio is 1, and k1 and k3 are unbiased for the exact KL, all finite."""
    request, completions = CASES[name], drawn[name]
    found = enumerated(request, models, (OLD, NEW, REFERENCE))
    program = jax.jit(learners(request, completions)["row"])
    old, new, reference = (np.asarray(program(params, completions)[0]) for params in models)
    assert np.isfinite([old, new, reference]).all()
    chance = np.exp(old.sum(-1))
    np.testing.assert_allclose(chance.sum(), 1, atol=1e-9)
    for current in (new, reference):
        np.testing.assert_allclose((chance * np.exp((current - old).sum(-1))).sum(), 1, atol=1e-9)
    for model, current in ((1, new), (2, reference)):
        exact = sum(np.exp(x[0].sum()) * (x[0] - x[model]).sum() for x in found.values())
        assert exact > 0.01
        for estimator in (k1, k3):
            estimated = np.where(completions.mask, estimator(old, current), 0.0).sum(-1)
            np.testing.assert_allclose((chance * estimated).sum(), exact, rtol=1e-6, err_msg=estimator.__name__)


@pytest.mark.parametrize("name", [name for name, request in CASES.items() if request.penalties.repetition == 1])
def test_a_constant_added_to_all_logits_changes_nothing(name, drawn, models):
    """A vector added to every row of the head adds a number to all logits of a token, another for each token.

    A repetition penalty reads the sign of logits, and is left out.
    """
    request, completions = CASES[name], drawn[name]
    shifted = models[NEW] | {"head": models[NEW]["head"] + np.linspace(-3, 3, CONFIG.hidden_size)}
    program = jax.jit(learners(request, completions)["group"])
    for value, wanted in zip(program(shifted, completions), program(models[NEW], completions), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["penalties", "repetition"])
def test_the_gradient_through_penalties_is_that_of_all_logits(name, drawn, models):
    """Of chunks, by their own derivative, and of dense logits; the temperature's too."""
    request, completions = CASES[name], drawn[name]
    mask, tokens = completions.mask[:, WIDTH:], completions.tokens[:, WIDTH:]
    layout, given = (len(tokens), WIDTH), (False, request.sampler.logit_bias, request.penalties)

    def chunked(params, temperature):
        log_probs, entropy = group_log_probs(CONFIG, layout, temperature, *given)(params, completions)
        return (jnp.sin(log_probs) + entropy).sum()

    def dense(params, temperature):
        log_p = jax.nn.log_softmax(group_logits(CONFIG, layout, temperature, *given)(params, completions))
        finite = jnp.where(jnp.isfinite(log_p), log_p, 0.0)
        own = jnp.take_along_axis(finite, tokens[..., None], -1)[..., 0]
        return jnp.where(mask, jnp.sin(own) - (jnp.exp(log_p) * finite).sum(-1), 0.0).sum()

    found, wanted = (jax.jit(jax.grad(f, (0, 1)))(models[NEW], 1.3) for f in (chunked, dense))
    for value, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-4)  # dense logits are float32


def test_the_greedy_sampler_keeps_the_minimum_too(models):
    """Its log-probability is that of all tokens that could come."""
    found = generate(CONFIG, models[OLD], PROMPT, jax.random.key(0), Request(greedy, (STOP, 1, 2, 3), 2, 1, 2))
    assert not np.isin(found.tokens[0, WIDTH:], (STOP, 1, 2, 3)).any()
    own = row_log_probs(CONFIG)(models[OLD], found)[0]
    np.testing.assert_allclose(own, found.log_probs, rtol=0, atol=2e-6)


def test_trpo_moves_on_the_kept_sets(drawn, models):
    """Its logits are −inf on what was cut, its divergence is the exact one over what was kept, its step is finite."""
    request, completions = CASES["everything"], drawn["everything"]
    sampler, rows = request.sampler, len(completions.tokens)
    logits = group_logits(CONFIG, (rows, WIDTH), sampler.temperature, False, sampler.logit_bias)
    dense = jax.jit(logits)
    old, mask = dense(models[OLD], completions), completions.mask[:, WIDTH:]
    own = jnp.take_along_axis(jax.nn.log_softmax(old), completions.tokens[:, WIDTH:, None], -1)[..., 0]
    np.testing.assert_allclose(np.where(mask, own, 0.0), completions.log_probs[:, WIDTH:], rtol=0, atol=2e-6)
    search = backtracking_search(improves_within(0.01))
    init, step = group_trpo_loop(logits, per_group(z_score), token_mean, natural_direction(0.01), search)
    scores = jax.random.normal(jax.random.key(0), (1, rows))
    state, metrics = jax.jit(step)(init(models[OLD]), Groups(completions, scores))
    before, after = (np.asarray(jax.nn.log_softmax(x)) for x in (old, dense(state.params, completions)))
    possible = np.isfinite(before)
    assert not possible.all()
    gaps = np.where(possible, before, 0.0) - np.where(possible, after, 0.0)
    divergences = np.where(possible, np.exp(before) * gaps, 0.0).sum(-1)
    assert metrics["accepted"] == 1 and 0 < metrics["kl"] <= 0.01
    np.testing.assert_allclose(metrics["kl"], divergences[mask].mean(), rtol=1e-4)


def test_errors_of_a_request(models):
    def drawing(request):
        return lambda: generate(CONFIG, models[OLD], PROMPT, jax.random.key(0), request)

    def no_bits(key, logits):
        return Categorical()(key, logits)._replace(kept=jnp.zeros(len(logits)))

    for call, message in (
        (
            drawing(Request(greedy, (STOP,), 2, 1, 3)),
            "generate: min_new_tokens is 3, wanted a number from 0 to max_new_tokens, 2; change one of them.",
        ),
        (
            drawing(Request(greedy, tuple(range(V)), 2, 1, 1)),
            "generate: min_new_tokens is 1 and all 7 tokens are stop tokens; leave it out.",
        ),
        (
            drawing(Request(no_bits, (STOP,), 2, 1)),
            "Request: the sampler's kept is float64 of shape (1,), wanted uint32 (1, 1), or None where it never cuts; "
            "pack the set that it drew from by to_bits.",
        ),
        (
            drawing(Request(greedy, (STOP, 7), 2)),
            "generate: stop_ids has 7, the vocabulary has 7; give ids below that.",
        ),
        (
            drawing(Request(greedy, (STOP,), 2, penalties=Penalties(presence=np.nan))),
            "generate: presence penalty is nan, wanted a number from -1000 to 1000; 0 is none.",
        ),
        (
            drawing(Request(no_bits, (STOP,), 2, penalties=Penalties(0.5))),
            "generate: there are penalties, and the sampler takes none; give it a parameter penalize, a function of "
            "logits that it calls before its temperature.",
        ),
        (
            drawing(Request(greedy, (STOP,), 2, 1, 1, automata=(OF_TEXTS,))),
            "generate: a pattern and min_new_tokens may leave no token to draw; give one of them.",
        ),
        (
            drawing(Request(greedy, (STOP,), 2, automata=(Automaton(np.zeros(3), np.zeros((1, 1))),))),
            "generate: an automaton reads 3 tokens, the vocabulary has 7; make it of the bytes of all of them.",
        ),
        (
            lambda: row_log_probs(CONFIG, logit_bias=((9, 1.0),)),
            "log_probs: logit_bias names token 9, the vocabulary has 7; give ids below that.",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message
