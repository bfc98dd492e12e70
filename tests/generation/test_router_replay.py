"""The experts that a sampler chose, kept beside what it drew, and taken by the learner."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_server import EngineServer, as_npy, as_numbers, serving

from rlax_llm.core.speculation import Speculation
from rlax_llm.core.types import Completions
from rlax_llm.generation import ladders, reading
from rlax_llm.generation.engine import for_sampling, generate_at_once
from rlax_llm.generation.further import generate_further
from rlax_llm.generation.mixture import Two, generate_mixed
from rlax_llm.generation.partial import generate_partly, not_begun
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request, check_request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.generation.served import Served
from rlax_llm.generation.served_routes import read_routes
from rlax_llm.generation.server import Server
from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.routing import keeping, routes_of
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.models.tokenizer import Tokenizer

V, GROUP, LIMIT, WIDTH = 29, 2, 24, 16
CONFIG = DecoderConfig(V, 16, 24, 2, 4, 2, 4, max_positions=512, experts=Experts(8, 2, 12))
PARAMS = init_decoder(CONFIG, jax.random.key(0))
PROMPTS = pad_prompts([np.random.default_rng(i).integers(2, V, 3 + 3 * i).tolist() for i in range(5)], 0, V, WIDTH)
KEY = jax.random.key(1)
REQUEST = Request(Categorical(), (24,), LIMIT, GROUP, 2, routed=True)


@pytest.fixture(autouse=True)
def rows_leave_and_the_cache_grows(monkeypatch):
    monkeypatch.setattr(ladders, "FIRST_ROOM", 6)
    monkeypatch.setattr(ladders, "LEAST", 0.0)


def in_one_program(config=CONFIG, params=PARAMS, request=REQUEST):
    return jax.jit(partial(generate_at_once, config, request=request))(params, PROMPTS, key=KEY)


@cache
def without_routes():
    return jax.device_get(in_one_program(request=REQUEST._replace(routed=False)))


def rows_that_enter():
    """Others leave at the end."""
    return generate(CONFIG, PARAMS, PROMPTS, KEY, REQUEST, slots=8)


def guesses():
    guessing = REQUEST._replace(speculation=Speculation(3, always=True))
    return generate(CONFIG, PARAMS, PROMPTS, KEY, guessing)


@partial(jax.jit, static_argnums=0)
def own_routes(config, params, tokens, valid):
    """Where a forward pass over whole rows sends their tokens."""
    sent = reading.read_sending(config, params, (tokens, valid), keeping(config))[2]
    return jnp.where(valid[..., None], routes_of(config, sent), 0)


def read_by_the_sampler(drawn: Completions) -> np.ndarray:
    """All tokens but the last of each row, behind which nothing was drawn."""
    valid = np.asarray(drawn.valid)
    return valid & (np.cumsum(valid[:, ::-1], 1)[:, ::-1] > 1)


@pytest.mark.parametrize("draw", [in_one_program, rows_that_enter, guesses])
def test_routes_are_those_of_a_whole_pass_over_the_rows(draw):
    drawn = jax.device_get(draw())
    lengths = drawn.mask.sum(1)
    assert lengths.min() < LIMIT / 2 and lengths.max() == LIMIT, lengths
    assert drawn.routed.dtype == np.uint8 and drawn.routed.shape == (*drawn.tokens.shape, 4)
    wanted = np.asarray(own_routes(CONFIG, PARAMS, drawn.tokens, drawn.valid))
    known = read_by_the_sampler(drawn)[..., None]
    np.testing.assert_array_equal(drawn.routed, np.where(known, wanted, 0))
    assert without_routes().routed is None
    np.testing.assert_array_equal(drawn.tokens, without_routes().tokens)


def test_prompts_that_are_read_in_parts_say_so_too(monkeypatch):
    monkeypatch.setattr(reading, "AT_ONCE", 20)
    assert reading.parts_of(*PROMPTS[0].shape) == 4
    send = keeping(CONFIG)
    sent = jax.jit(lambda params, prompts: reading.read_sending(CONFIG, params, prompts, send)[2])(PARAMS, PROMPTS)
    found = np.where(PROMPTS[1][..., None], routes_of(CONFIG, sent), 0)
    monkeypatch.undo()
    np.testing.assert_array_equal(found, own_routes(CONFIG, PARAMS, *PROMPTS))


@cache
def learner(config):
    return jax.jit(group_log_probs(config, (GROUP, PROMPTS[0].shape[1])))


def off_by(config, params, drawn: Completions) -> np.ndarray:
    """Between a learner's log-probabilities and those that were drawn with, of each chosen token, nats."""
    own = learner(config)(params, drawn)[0]
    return np.abs(np.asarray(own) - drawn.log_probs)[drawn.mask]


def test_the_ratio_is_one_where_a_sampler_chose_otherwise():
    """One expert of weight 1, so that a router decides on nothing but who it is; the sampler has another router."""
    config = replace(CONFIG, experts=Experts(8, 1, 12))
    other = PARAMS["layers"] | {"router": jnp.roll(PARAMS["layers"]["router"], 1, -1)}
    drawn = jax.device_get(in_one_program(config, PARAMS | {"layers": other}))
    assert off_by(config, PARAMS, drawn).max() < 1e-5
    assert off_by(config, PARAMS, drawn._replace(routed=None)).mean() > 0.1
    # Those of the row beside, or of the token before, are of no use.
    for axis in (0, 1):
        assert off_by(config, PARAMS, drawn._replace(routed=np.roll(drawn.routed, 1, axis))).mean() > 0.1


def test_a_narrow_sampler_is_nearer_where_its_choice_is_taken():
    config = replace(CONFIG, sampler_dtype="int8")
    drawn = jax.device_get(in_one_program(config, for_sampling(config, PARAMS)))
    wanted = np.asarray(own_routes(CONFIG, PARAMS, drawn.tokens, drawn.valid))
    apart = (np.sort(drawn.routed, -1) != np.sort(wanted, -1)).any(-1)[read_by_the_sampler(drawn)]
    replayed, anew = off_by(CONFIG, PARAMS, drawn), off_by(CONFIG, PARAMS, drawn._replace(routed=None))
    assert apart.mean() > 0.02
    assert replayed.mean() < 0.7 * anew.mean()


def test_what_does_not_keep_them_says_so():
    begun = not_begun(PROMPTS, REQUEST)
    for draw, told in (
        (lambda: generate_partly(CONFIG, PARAMS, begun, KEY, REQUEST, 2), "generate_partly: routed is asked for"),
        (lambda: generate_further(CONFIG, PARAMS, begun, KEY, REQUEST, 2), "generate_further: routed is asked for"),
        (lambda: generate_mixed(CONFIG, Two(PARAMS, PARAMS), PROMPTS, KEY, REQUEST, 0.5), "generate_mixed: routed is"),
        (lambda: check_request(replace(CONFIG, experts=None), 4, REQUEST), "the model has no experts to tell of"),
    ):
        with pytest.raises(ValueError, match=told):
            draw()


@pytest.mark.parametrize("told", [as_npy, as_numbers])
def test_a_server_says_where_its_tokens_were_sent(told):
    model = LanguageModel(CONFIG, PARAMS, Tokenizer.characters("+"))
    few = Request(Categorical(), (24,), 6, 2, routed=True)
    prompts = pad_prompts([[5, 7, 9], [3, 4, 6, 8]], 0, V, 8)
    with serving(EngineServer(model, routes=told)) as url:
        drawn = Served(Server(url))(CONFIG, {}, prompts, KEY, few)
    wanted = np.asarray(own_routes(CONFIG, PARAMS, drawn.tokens, drawn.valid))
    assert drawn.routed.dtype == np.uint8 and drawn.mask.sum() > 8
    np.testing.assert_array_equal(drawn.routed, np.where(read_by_the_sampler(drawn)[..., None], wanted, 0))


SENT = np.zeros((4, 2, 2), np.int16)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "has no routed_experts, .* start the server with --enable-return-routed-experts"),
        ({"routed_experts": [[[0]]]}, "has no routed_experts"),
        ({"routed_experts": "no?"}, "no array of integers in base64"),
        (as_npy(SENT[:, :1]), r"have \(1, 2\) layers .* wanted \(2, 2\) and less than 8;"),
        (as_npy(SENT + 8), "numbers up to 8, wanted"),
        (as_npy(SENT[:2]), "of 2 tokens, wanted 4 of the 5"),
        (as_npy(SENT * 0.5), "are float64 of 3 axes"),
    ],
)
def test_what_a_server_says_of_another_model_is_named(choice, message):
    with pytest.raises(ValueError, match=message):
        read_routes(choice, (5, 5), CONFIG)
