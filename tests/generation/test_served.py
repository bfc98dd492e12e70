"""Completions that a server draws: what is asked of it, what is read of its answers, and what is wrong with them."""

from __future__ import annotations

import threading
from functools import partial

import jax
import numpy as np
import pytest
from engine_server import EngineServer, serving

from rlax_llm.core.penalties import Penalties
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.generation.served import Answered, Asked, Served, read_answer, sampling_fields
from rlax_llm.generation.server import Server
from rlax_llm.generation.turns import Tool, calculate, with_tools
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.models.tokenizer import Tokenizer

FEW = Tokenizer.characters("12+[]{}")
LIMIT, GROUP = 8, 3
SHAPE = DecoderConfig(FEW.vocab_size, 16, 24, 1, 4, 2, 4, max_positions=8 + LIMIT)
MODEL = LanguageModel(SHAPE, decoder.init_decoder(SHAPE, jax.random.key(2)), FEW)
PROMPTS = pad_prompts([FEW.encode(text) for text in ("1", "1+2")], FEW.pad_id, FEW.vocab_size)
KEY = jax.random.key(4)
NOW = {"waits": (), "sleep": lambda _: None}


PLAIN = Categorical()


def request(sampler=PLAIN, limit=LIMIT, group=GROUP):
    return Request(sampler, FEW.eos_ids, limit, group)


@pytest.mark.parametrize("sampler", [Categorical(), Categorical(1.7, logit_bias=((3, 1.5),))])
def test_the_learner_recomputes_what_a_server_drew(sampler):
    with serving(EngineServer(MODEL)) as url:
        served = Served(Server(url))
        served.version = 7
        drawn = served(SHAPE, {}, PROMPTS, KEY, request(sampler))
        again = served(SHAPE, {}, PROMPTS, KEY, request(sampler), slots=1)
    read = jax.jit(group_log_probs(SHAPE, (GROUP, 8), sampler.temperature, False, sampler.logit_bias))
    log_probs, _ = read(MODEL.params, drawn)
    np.testing.assert_allclose(log_probs, drawn.log_probs, rtol=0, atol=2e-5)
    assert drawn.mask.any(-1).all() and not drawn.mask[:, :8].any() and (drawn.versions == 7).all()
    ends = [row[there][-1] for row, there in zip(drawn.tokens, drawn.mask, strict=True)]
    np.testing.assert_array_equal(np.isin(ends, FEW.eos_ids), ~drawn.truncated)
    # A row's seed follows from its key alone: how many are asked for at a time changes nothing.
    jax.tree.map(np.testing.assert_array_equal, drawn, again)
    assert len({tuple(row) for row in drawn.tokens}) > 3


def test_turns_with_tools_are_drawn_by_a_server_too():
    tool, answers = Tool("sum", "[", "]", calculate), ("{", "}")
    asking = Categorical(logit_bias=tuple((FEW.encode(one)[0], 2.5) for one in "1[]"))
    with serving(EngineServer(MODEL)) as url:
        over_turns = with_tools(FEW, [tool], 2, answers, Served(Server(url)))
        drawn = over_turns(SHAPE, {}, PROMPTS, KEY, request(asking, group=8))
    log_probs, _ = jax.jit(group_log_probs(SHAPE, (8, 8), 1.0, False, asking.logit_bias))(MODEL.params, drawn)
    np.testing.assert_allclose(log_probs, drawn.log_probs, rtol=0, atol=2e-5)
    assert (drawn.valid[:, 8:] & ~drawn.mask[:, 8:]).any()  # a tool has answered


@pytest.mark.parametrize(
    ("sampler", "named"), [(Categorical(1.7), "temperature"), (Categorical(logit_bias=((3, 1.0),)), "logit_bias")]
)
def test_log_probabilities_of_another_distribution_are_found_out(sampler, named):
    told = pytest.raises(ValueError, match=f"are those before {named}, .*processed_logprobs")
    with serving(EngineServer(MODEL, raw=True)) as url:
        served = Served(Server(url))
        served(SHAPE, {}, PROMPTS, KEY, request(greedy))  # asks of nothing
        served(SHAPE, {}, PROMPTS, KEY, request())
        with told:
            served(SHAPE, {}, PROMPTS, KEY, request(sampler))


def test_what_the_learner_could_not_recompute_is_refused():
    assert sampling_fields(request(greedy))["temperature"] == 0
    assert sampling_fields(request(partial(greedy, logit_bias=((3, 1.0),))))["logit_bias"] == {"3": 1.0}
    plain = request()
    for wrong, named in (
        (request(Categorical(top_k=3)), "top_k"),
        (request(Categorical(min_p=0.1)), "min_p"),
        (plain._replace(min_new_tokens=2), "min_new_tokens"),
        (plain._replace(penalties=Penalties(presence=0.5)), "penalties"),
        (request(Categorical(logit_bias=((3, float("-inf")),))), "bias from −100 to 100"),
        (request(lambda keys, logits: greedy(keys, logits)), "cannot have the sampler"),
    ):
        with pytest.raises(ValueError, match=named):
            sampling_fields(wrong)


ASKED = Asked([4, 5], 0, 3)
GOOD = {
    "token_ids": [6, 7, 1],
    "prompt_token_ids": [4, 5],
    "logprobs": {"token_logprobs": [-1.0, -2.0, -0.5]},
    "finish_reason": "stop",
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"token_ids": None}, "the answer has no token_ids"),
        ({"token_ids": []}, "a completion has no token"),
        ({"token_ids": [6, 9, 1]}, "drew token 9, and the model's vocabulary has 9"),
        ({"prompt_token_ids": [4, 5, 6]}, r"another prompt than was sent \(3 tokens, and 2 were sent\)"),
        ({"logprobs": None}, "has none of the log-probabilities of 3 tokens"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, "has 1 of the log-probabilities of 3 tokens"),
        ({"logprobs": {"token_logprobs": [-1.0, None, -1.0]}}, "log-probability is None"),
        ({"logprobs": {"token_logprobs": [-1.0, float("-inf"), -1.0]}}, "log-probability is -inf"),
        ({"token_ids": [6, 7, 8]}, r"ended by 'stop' after token 8, which is none of .* \[1\]"),
        ({"token_ids": [6, 7, 8], "finish_reason": "abort"}, "ended by 'abort'"),
        (
            {"token_ids": [6, 7], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "finish_reason": "length"},
            "ended after 2 tokens by its length, wanted 3",
        ),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_named(changed, told):
    with pytest.raises(ValueError, match=told):
        read_answer({"choices": [GOOD | changed]}, ASKED, 9, (1,))


def test_an_answer_is_read_up_to_its_stop_token():
    assert read_answer({"choices": [GOOD]}, ASKED, 9, (1,)) == Answered([6, 7, 1], [-1.0, -2.0, -0.5], False)
    assert read_answer({"choices": [GOOD]}, ASKED, 9, (7,)) == Answered([6, 7], [-1.0, -2.0], False)
    cut = GOOD | {"finish_reason": "length"}
    assert read_answer({"choices": [cut]}, ASKED, 9, (2,)).truncated
    for nothing in ({}, None, {"choices": []}):
        with pytest.raises(ValueError, match="does not hold one completion"):
            read_answer(nothing, ASKED, 9, (1,))


def test_a_server_that_is_busy_is_asked_again():
    said, slept = iter([(503, "no"), (429, {"error": {"message": "busy"}}), (200, {"fine": 1})]), []
    with serving(lambda path, body: next(said)) as url:
        assert Server(url, waits=(1.0, 2.0, 4.0), sleep=slept.append).ask("/v1/models") == {"fine": 1}
    assert slept == [1.0, 2.0]


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (
            (500, {"error": {"message": "out of\nmemory"}}),
            ConnectionError,
            r"it answers 500 \(out of memory\), tried 1 times",
        ),
        ((404, {"detail": "Not Found"}), ValueError, r"it answers 404 \(Not Found\)"),
        ((401, ""), ValueError, r"it answers 401 \(Unauthorized\)"),
        ((200, "<html>"), ValueError, "the answer is no JSON .'<html>'"),
    ],
)
def test_what_a_server_answers_instead_is_one_sentence(answer, error, told):
    with serving(lambda path, body: answer) as url, pytest.raises(error, match=told) as raised:
        Server(url, **NOW).ask("/v1/models")
    assert str(raised.value).startswith(f"{url}/v1/models: ")


def test_a_server_that_is_not_there_or_does_not_answer_is_named():
    with serving(lambda path, body: (200, {})) as url:
        pass
    slept = []
    with pytest.raises(ConnectionError, match=r"it cannot be reached .*, tried 3 times; start the server"):
        Server(url, waits=(1.0, 2.0), sleep=slept.append).ask("/v1/models")
    assert slept == [1.0, 2.0]
    held = threading.Event()
    with serving(lambda path, body: (held.wait(5), (200, {}))[1]) as url:
        with pytest.raises(ConnectionError, match=r"no answer in 0\.05 seconds"):
            Server(url, timeout=0.05).ask("/v1/models")
        held.set()
    with pytest.raises(ValueError, match="wanted one as http://localhost:8000"):
        Server("http://")
