"""Turns whose keys are held are those that read everything again."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from rlax_llm.core.penalties import Penalties
from rlax_llm.generation import engine, ladders, rollout
from rlax_llm.generation.histories import Held, Later, _GoingOn, _Keeping
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request, Speculation
from rlax_llm.generation.rollout import Telling, generate
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.generation.turns import Tool, calculate, with_tools
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.models.tokenizer import Tokenizer

FEW = Tokenizer.characters("12+[]{}")
SUM = Tool("sum", "[", "]", calculate)
GROUP, LIMIT, WIDTH, TURNS = 8, 64, 8, 3
CONFIG = DecoderConfig(FEW.vocab_size, 16, 24, 2, 4, 2, 4, max_positions=WIDTH + LIMIT)
PARAMS = init_decoder(CONFIG, jax.random.key(2))
PROMPTS = pad_prompts([FEW.encode(text) for text in ("1", "1+2", "2+[", "{1}22+11")], FEW.pad_id, FEW.vocab_size)
KEY = jax.random.key(9)
REQUESTS = {
    "plain": Request(Categorical(), FEW.eos_ids, LIMIT, GROUP),
    "cut": Request(Categorical(1.6, top_k=8, top_p=0.95), FEW.eos_ids, LIMIT, GROUP),
    "penalties": Request(Categorical(1.4), FEW.eos_ids, LIMIT, GROUP, 2, Penalties(1.2, 0.5, 0.3)),
}


def anew(*args, **kwargs):
    """The engine's generation as somebody else's, which holds nothing between turns."""
    return generate(*args, **kwargs)


def turns(request, complete=generate, slots=None, config=CONFIG, prompts=PROMPTS):
    """The completions, and how many tokens each turn read."""
    told = []
    with_sums = with_tools(FEW, [SUM], TURNS, ("{", "}"), complete, told.append)
    return with_sums(config, PARAMS, prompts, KEY, request, slots), told


@pytest.fixture(scope="module", autouse=True)
def rows_leave():
    """Rows that have ended are left out, a few at a time, and the cache grows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladders, "LEAST", 0.0)
        patch.setattr(ladders, "FIRST_ROOM", 16)
        yield


@pytest.fixture(scope="module")
def plain():
    """What turns draw whose keys are held, and what they do when all is read again."""
    return turns(REQUESTS["plain"]), turns(REQUESTS["plain"], anew)


def assert_same(found, again) -> None:
    for field in ("tokens", "mask", "valid", "truncated", "kept"):
        np.testing.assert_array_equal(getattr(found, field), getattr(again, field), err_msg=field)
    np.testing.assert_allclose(found.log_probs, again.log_probs, rtol=0, atol=2e-5)
    assert sum(spans(mask) > 1 for mask in found.mask) > 2


def spans(mask: np.ndarray) -> int:
    """Runs of chosen tokens in a row: its turns."""
    return int((np.diff(mask.astype(int), prepend=0) == 1).sum())


def test_held_or_read_again_the_completions_are_the_same(plain):
    assert_same(plain[0][0], plain[1][0])
    assert sum(spans(mask) == TURNS for mask in plain[0][0].mask) > 1


@pytest.mark.parametrize("name", ["cut", "penalties"])
def test_with_other_samplers_too(name):
    assert_same(turns(REQUESTS[name])[0], turns(REQUESTS[name], anew)[0])


def test_layers_with_a_window_hold_all_keys():
    """In a ring those of rows that have ended would be written over; read again they are in one."""
    slides = replace(CONFIG, window=10, sliding=(True, False))
    assert_same(turns(REQUESTS["plain"], config=slides)[0], turns(REQUESTS["plain"], anew, config=slides)[0])


def test_rows_that_stay_to_the_end_of_their_turn_draw_the_same(plain, monkeypatch):
    monkeypatch.setattr(ladders, "LEAST", 1e30)
    found, told = turns(REQUESTS["plain"])
    assert_same(found, plain[0][0])
    assert told == plain[0][1]


def test_the_learner_recomputes_what_was_drawn_behind_held_keys(plain):
    """By full forward passes over whole rows."""
    found = plain[0][0]
    log_probs, _ = row_log_probs(CONFIG)(PARAMS, found)
    np.testing.assert_allclose(log_probs, found.log_probs, rtol=0, atol=2e-5)


def test_a_later_turn_reads_the_answers_alone(plain):
    """Each with the token before it, the last one that was drawn; counted from the completions."""
    (found, told), (_, everything) = plain
    answers, histories = np.zeros(TURNS, int), np.zeros(TURNS, int)
    for mask, valid in zip(found.mask, found.valid, strict=True):
        begins = np.flatnonzero(np.diff(mask.astype(int)) == 1) + 1  # of turns, but for the first behind an answer
        for turn, begin in enumerate(begins[1:], 1):
            answers[turn] += begin - np.flatnonzero(mask[:begin])[-1]
            histories[turn] += valid[:begin].sum()
    prompts = int(PROMPTS[1].sum())
    assert told == [prompts, *answers[1:]]
    heard = []
    assert_same(turns(REQUESTS["plain"], Telling(heard.append))[0], found)  # and the engine tells the same
    assert heard[0].read == prompts and all(x.read >= y for x, y in zip(heard, told, strict=True))
    assert 3 * sum(each.read for each in heard[1:]) < sum(everything[1:])
    assert everything == [prompts, *histories[1:]]
    assert 3 * sum(told[1:]) < sum(everything[1:])


def test_what_is_held_is_what_a_prefill_makes():
    """The keys of prompts and completions, moved to where a later turn's prompts have them."""
    request = REQUESTS["plain"]
    rows = 4 * GROUP
    first = _Keeping(CONFIG, PARAMS, PROMPTS, (row_keys(KEY, rows), np.full(rows, LIMIT, np.int32)), request)
    while first.advance():
        pass
    drawn = jax.device_get(first.completions())
    chosen = np.array([30, 3, 17, 3, 8])
    texts = [drawn.tokens[row][drawn.valid[row]].tolist() + [5, 6, 7][: index % 4] for index, row in enumerate(chosen)]
    prompts = pad_prompts(texts, 0, CONFIG.vocab_size)
    unread = 1 + np.arange(5, dtype=np.int32) % 4
    later = Later(prompts, chosen, unread, row_keys(KEY, 5), np.full(5, 9, np.int32))
    alone = request._replace(max_new_tokens=9, group_size=1)
    wide = replace(CONFIG, max_positions=256)
    found = _GoingOn(wide, PARAMS, later, alone, first.held)
    wanted, state = engine.prefill(wide, PARAMS, *prompts, later.keys, alone, 9, later.limits)
    np.testing.assert_array_equal(found.prompt.valid, wanted.valid)
    np.testing.assert_array_equal(found.state.tokens[:, 0], state.tokens[:, 0])
    there = np.asarray(wanted.valid)[:, None, None, None, :]
    for (keys, values), (wanted_keys, wanted_values) in zip(found.prompt.cache, wanted.cache, strict=True):
        np.testing.assert_allclose(keys * there, wanted_keys * there, rtol=0, atol=1e-5)
        across = there.swapaxes(-1, -2)
        np.testing.assert_allclose(values * across, wanted_values * across, rtol=0, atol=1e-5)
    assert isinstance(first.held, Held)


def test_where_rows_take_turns_everything_is_read_again(plain):
    found, told = turns(REQUESTS["plain"], slots=12)
    assert_same(found, plain[0][0])
    assert told == plain[1][1]


def test_keys_stay_where_guesses_only_may_pay(plain):
    found, told = turns(REQUESTS["plain"]._replace(speculation=Speculation(2)))
    assert told == plain[0][1]
    assert_same(found, plain[0][0])


def test_guesses_hold_nothing(plain):
    found, told = turns(REQUESTS["plain"]._replace(speculation=Speculation(2, always=True)))
    assert_same(found, plain[0][0])
    assert told == plain[1][1]


def test_what_all_prompts_begin_with_stays_held_once(monkeypatch):
    """Over all turns, in front of what each row has to itself."""
    texts = ["1+2+1" * 7 + text for text in ("1", "[1+2", "2+[", "{1}22+11")]
    prompts = pad_prompts([FEW.encode(text) for text in texts], FEW.pad_id, FEW.vocab_size)
    wide = replace(CONFIG, max_positions=160)
    again, everything = turns(REQUESTS["plain"], anew, config=wide, prompts=prompts)
    monkeypatch.setattr(rollout, "LEAST_READ", 0.0)
    found, told = turns(REQUESTS["plain"], config=wide, prompts=prompts)
    assert_same(found, again)
    assert 3 * sum(told[1:]) < sum(everything[1:])


def test_keys_in_fewer_bits_are_held_as_they_are():
    narrow = replace(CONFIG, cache_dtype="int8")
    found, told = turns(REQUESTS["plain"], config=narrow)
    log_probs, _ = row_log_probs(CONFIG)(PARAMS, found)
    np.testing.assert_allclose(log_probs, found.log_probs, rtol=0, atol=0.1)
    assert len(told) == TURNS
