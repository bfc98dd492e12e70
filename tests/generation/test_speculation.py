"""Guessed tokens change how many passes a generation takes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import chisquare

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.speculation import Speculation
from rlax_llm.generation import ladders, rollout, speculation
from rlax_llm.generation.automata import Automaton
from rlax_llm.generation.partial import generate_partly, not_begun
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import Generation, Telling, Told, generate, stream
from rlax_llm.generation.sampling import Categorical, greedy, row_keys
from rlax_llm.generation.speculation import MARGIN, ORDER, RECENT, cost, foretold, guesses, most_rows
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs

V, WIDTH, LIMIT = 11, 8, 60
CONFIG = DecoderConfig(V, 16, 24, 2, 4, 2, 4, max_positions=512, window=9, sliding=(True, False), attention_cap=3.0)
WITH_SINKS = replace(CONFIG, sinks=True)
PARAMS = jax.tree.map(lambda x: 1.5 * x, init_decoder(CONFIG, jax.random.key(0)))
PROMPTS = pad_prompts(
    [np.random.default_rng(i).integers(2, V, 1 + i % WIDTH).tolist() for i in range(5)], pad_id=0, vocab_size=V
)
KEY = jax.random.key(1)
THREE = Speculation(3, always=True)
ENDS = Automaton(np.arange(V) % 3, np.array([[0, 1, 0], [0, 1, 2 + 1], [2, 2, 2]]))
SETTINGS = {
    "greedy": Request(greedy, (), LIMIT, 2),
    "sampled": Request(Categorical(0.7), (3,), LIMIT, 2),
    "cut": Request(Categorical(0.8, top_k=7, top_p=0.9), (3, 7), LIMIT, 2, 9),
    "penalties": Request(Categorical(0.6), (3,), LIMIT, 2, 0, Penalties(1.2, 0.3, 0.1)),
    "stop text": Request(Categorical(0.6, min_p=0.05), (), LIMIT, 2, 6, automata=(ENDS,)),
}


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch):
    """The cache of the completions is widened on the way."""
    monkeypatch.setattr(ladders, "FIRST_ROOM", 30)


def assert_same(found, plain) -> None:
    np.testing.assert_array_equal(found.mask, plain.mask)
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_allclose(found.log_probs, plain.log_probs, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(found.truncated, plain.truncated)
    assert (found.kept is None) == (plain.kept is None)
    if found.kept is not None:
        np.testing.assert_array_equal(found.kept, plain.kept)


@pytest.mark.parametrize(("name", "slots"), [*((name, None) for name in SETTINGS), ("cut", 4), ("penalties", 4)])
def test_tokens_are_those_that_one_pass_each_draws(name, slots):
    asked = SETTINGS[name]
    plain = jax.device_get(generate(CONFIG, PARAMS, PROMPTS, KEY, asked))
    found = generate(CONFIG, PARAMS, PROMPTS, KEY, asked._replace(speculation=THREE), slots)
    assert_same(jax.device_get(found), plain)


def test_keys_and_values_of_int8_are_written_the_same():
    narrow = replace(CONFIG, cache_dtype="int8")
    asked = SETTINGS["cut"]
    plain = jax.device_get(generate(narrow, PARAMS, PROMPTS, KEY, asked))
    found = jax.device_get(generate(narrow, PARAMS, PROMPTS, KEY, asked._replace(speculation=THREE)))
    assert_same(found, plain)


def test_a_text_that_repeats_itself_takes_few_passes():
    """As greedy drawing does here without a window, within few tokens."""
    asked = SETTINGS["greedy"]._replace(speculation=THREE)
    plain = replace(CONFIG, window=None, sliding=(), attention_cap=None)
    *_, state = stream(plain, PARAMS, PROMPTS, KEY, asked)
    assert int(state.lengths.min()) == LIMIT and int(state.step) < LIMIT * 3 / 4


def test_a_generation_tells_how_many_tokens_took_no_pass_of_their_own():
    """Of one row: all but the first, which the prompt's pass draws, and those of the passes that were counted."""
    one = PROMPTS[0][3:4], PROMPTS[1][3:4]
    asked = SETTINGS["greedy"]._replace(group_size=1, speculation=THREE)
    *_, state = stream(CONFIG, PARAMS, one, KEY, asked)
    told = []
    assert_same(Telling(told.append)(CONFIG, PARAMS, one, KEY, asked), generate(CONFIG, PARAMS, one, KEY, asked))
    assert told == [Told(int(one[1].sum()), LIMIT, LIMIT - int(state.step))] and told[0].guessed > 0
    Telling(told.append)(CONFIG, PARAMS, one, KEY, asked._replace(speculation=None))
    assert told[1] == Told(told[0].read, 0, 0)


def test_a_stream_shows_tokens_pass_by_pass():
    asked = SETTINGS["greedy"]._replace(group_size=1, speculation=THREE)
    lengths = [
        int(state.lengths[0]) for state in stream(CONFIG, PARAMS, (PROMPTS[0][:1], PROMPTS[1][:1]), KEY, asked, 1)
    ]
    assert lengths[0] == 1 and lengths[-1] == LIMIT and 1 <= min(np.diff(lengths)) <= max(np.diff(lengths)) <= 16


def test_the_learner_recomputes_what_was_drawn():
    asked = SETTINGS["cut"]._replace(speculation=THREE)
    params = PARAMS | {"layers": PARAMS["layers"] | {"sinks": jnp.linspace(-1.0, 2.0, 8).reshape(2, 4)}}
    drawn = generate(WITH_SINKS, params, PROMPTS, KEY, asked)
    again = group_log_probs(WITH_SINKS, (2, WIDTH), temperature=0.8)(params, drawn)[0]
    np.testing.assert_allclose(again, drawn.log_probs, rtol=0, atol=2e-5)


def test_completions_in_several_generations_are_the_same():
    asked = SETTINGS["penalties"]
    plain = jax.device_get(generate(CONFIG, PARAMS, PROMPTS, KEY, asked))
    begun = not_begun(PROMPTS, asked)
    for enough in (2, 5):
        begun = generate_partly(CONFIG, PARAMS, begun, KEY, asked._replace(speculation=THREE), enough)
    assert_same(jax.device_get(begun), plain)


def test_frequencies_are_those_of_the_distribution():
    """Every completion of four of three tokens, by the chain rule from all logits of a plain forward pass."""
    config = DecoderConfig(3, 8, 12, 1, 2, 1, 4, tie_embeddings=False)
    params = init_decoder(config, jax.random.key(2))
    prompt = jnp.array([[1, 2, 1]]), jnp.ones((1, 3), bool)
    texts = np.array(list(product(range(3), repeat=4)), np.int32)
    rows = np.concatenate([np.repeat(prompt[0], len(texts), 0), texts], 1)
    given = log_softmax(np.asarray(decoder.logits(config, params, rows), np.float64)[:, 2:-1] / 0.7, axis=-1)
    wanted = np.exp(np.take_along_axis(given, texts[..., None], -1)[..., 0].sum(-1))
    asked = Request(Categorical(0.7), (), 4, 6000, speculation=Speculation(2, always=True))
    drawn = np.asarray(generate(config, params, prompt, KEY, asked).tokens)[:, 3:]
    counts = np.bincount(drawn @ 3 ** np.arange(3, -1, -1), minlength=len(texts))
    assert chisquare(counts, wanted * len(drawn) / wanted.sum()).pvalue > 0.01


def literal_guess(text: list[int], drafts: int) -> list[int]:
    """The longest ending of a text, up to ORDER tokens, that stood before, where it did so last; what followed it."""
    for order in range(ORDER, 0, -1):
        for end in range(len(text) - 1, order - 1, -1):
            if order < len(text) and text[end - order : end] == text[-order:]:
                follows = text[end:]
                return [follows[i % len(follows)] for i in range(drafts)]
    return [text[-1]] * drafts


def test_a_guess_is_what_followed_where_the_last_tokens_stood_before():
    random = np.random.default_rng(0)
    guess = jax.jit(guesses, static_argnums=3)
    for _ in range(200):
        begin, end = sorted(random.choice(24, 2, replace=False))
        text = random.integers(0, 3, 24)
        found = guess(jnp.asarray(text), jnp.int32(begin), jnp.int32(end), 4)
        assert found.tolist() == literal_guess(text[begin:end].tolist(), 4), text[begin:end]


def test_what_a_pass_draws_is_foretold_from_the_last_tokens():
    asked = SETTINGS["sampled"]._replace(speculation=THREE, stop_ids=())
    *_, state = stream(CONFIG, PARAMS, PROMPTS, KEY, asked._replace(max_new_tokens=50, speculation=None), 49)
    state = state._replace(limits=state.limits + 9)
    tokens, valid = (np.repeat(np.asarray(x), 2, 0) for x in PROMPTS)
    right = []
    for row, (prompt, there) in enumerate(zip(tokens, valid, strict=True)):
        text = prompt[there].tolist() + np.asarray(state.tokens)[row].tolist()
        for end in range(len(text) - 3 - RECENT + 1, len(text) - 3 + 1):
            came = np.array(literal_guess(text[:end], 3)) == text[end : end + 3]
            right.append(np.cumprod(came).sum())
    assert float(foretold(PROMPTS, state, asked)) == pytest.approx(1 + np.mean(right), rel=1e-6)


@pytest.mark.parametrize(("prefers", "temperature"), [(True, 0.05), (False, 8.0)])
def test_tokens_are_guessed_where_the_text_repeats_itself(monkeypatch, prefers, temperature):
    monkeypatch.setattr(ladders, "LEAST", 0.0)
    taken = []
    monkeypatch.setattr(rollout, "speculate", lambda *args: taken.append(1) or speculation.speculate(*args))
    asked = Request(Categorical(temperature), (), 200, 1, speculation=Speculation(4))
    generate(CONFIG, PARAMS, (PROMPTS[0][:2], PROMPTS[1][:2]), KEY, asked)
    assert bool(taken) is prefers


def test_nothing_is_guessed_where_it_would_not_pay():
    limits = np.full(10, LIMIT, np.int32)

    def guesser(speculation: Speculation | None):
        asked = SETTINGS["sampled"]._replace(speculation=speculation)
        return Generation(CONFIG, PARAMS, PROMPTS, (row_keys(KEY, 10), limits), asked).guesser

    assert guesser(None) is None and guesser(Speculation()) is None  # so small a model's passes cost nothing
    assert guesser(THREE) is not None
    assert cost(10, 0) == 1 and cost(1, 4) < 2 < cost(8, 4)
    assert MARGIN * cost(most_rows(4), 4) <= 4 < MARGIN * cost(most_rows(4) + 1, 4)


def test_a_number_of_guesses_that_is_none():
    with pytest.raises(ValueError, match="drafts 0, wanted at least 1"):
        generate(CONFIG, PARAMS, PROMPTS, KEY, SETTINGS["greedy"]._replace(speculation=Speculation(0)))
