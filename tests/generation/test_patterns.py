from __future__ import annotations

import re
import sys
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation.automata import Automaton
from rlax_llm.generation.patterns import bytes_of_pattern, pattern_automaton
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.generation.turns import Tool, with_tools
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.models.tokenizer import Tokenizer

# Tokens of several letters, parts of a character (é), one that is no text, and a stop token.
PIECES = [None, b"a", b"b", b"ab", b"ba", b"\xc3", b"\xa9", "é".encode(), b"b\xc3", None, b" ", b"aab"]
STOP, V = 0, len(PIECES)
CONFIG = DecoderConfig(V, 16, 24, 2, 2, 1, 8)
PARAMS = decoder.init_decoder(CONFIG, jax.random.key(3))
PROMPTS = jnp.array([[0, 5, 2], [3, 1, 4]], jnp.int32), jnp.array([[False, True, True], [True] * 3])
PATTERNS = [r"a|aab", r"(ab){1,3}é?", r"[^b]*b", r"a*?(b|é)+", r" ?(?i:AB)", r".{2,3}", "", r"(a|ba)+\s[ab]"]


def written(tokens) -> bytes:
    return b"".join(PIECES[token] or b"" for token in tokens)


def walked(automaton: Automaton, tokens) -> int:
    state = 0
    for token in tokens:
        state = automaton.moves[state, automaton.classes[token]] if state >= 0 else -1
    return int(state)


def matches(language: re.Pattern[str], text: bytes) -> bool:
    try:
        return language.fullmatch(text.decode()) is not None
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_sequence_of_tokens_that_can_be_drawn_goes_on_to_a_text_of_the_pattern(pattern):
    """And it may end exactly where it is one: by Python's own regular expressions, over all sequences of tokens."""
    automaton, language = pattern_automaton(pattern, PIECES, [STOP]), re.compile(pattern)
    begun, drawable = set(), set()
    for tokens in product(range(1, V), repeat=3):
        for count in range(4):
            own = tokens[:count]
            drawable |= {own} if walked(automaton, own) >= 0 else set()
            accepted = None not in [PIECES[token] for token in own] and matches(language, written(own))
            assert (walked(automaton, [*own, STOP]) >= 0) == accepted, own
            begun |= {own[:shorter] for shorter in range(count + 1)} if accepted else set()
    assert begun <= drawable
    # What can be drawn is the beginning of a text: of one of three tokens at most, or of a longer one.
    longer = {own[:count] for own in drawable if len(own) == 3 for count in range(3)}
    assert {own for own in drawable if len(own) < 3} == {own for own in begun | longer if len(own) < 3}


@pytest.mark.parametrize("slots", [None, 24])
def test_completions_are_texts_of_the_pattern_and_the_learner_takes_the_same_sets(slots):
    pattern = r"(ab|é){1,4} ?b?"
    automata = (pattern_automaton(pattern, PIECES, [STOP, 9]),)
    request = Request(Categorical(1.5), (STOP, 9), 12, 24, automata=automata)
    found = jax.device_get(generate(CONFIG, PARAMS, PROMPTS, jax.random.key(7), request, slots))
    texts = {written(tokens[mask]) for tokens, mask in zip(found.tokens, found.mask, strict=True)}
    assert all(matches(re.compile(pattern), text) for text in texts) and len(texts) > 5
    assert not found.truncated.any()
    again = jax.jit(row_log_probs(CONFIG, temperature=1.5))(PARAMS, found)[0]
    np.testing.assert_allclose(again, found.log_probs, rtol=0, atol=5e-6)


def test_a_tool_and_a_package_that_is_not_there_are_told(monkeypatch):
    few = Tokenizer.characters("ab[]{}")
    request = Request(Categorical(), few.eos_ids, 4, automata=(pattern_automaton("a", few.pieces(), few.eos_ids),))
    with pytest.raises(
        ValueError, match="with_tools: a pattern is one of completions without calls and answers; leave"
    ):
        with_tools(few, [Tool("sum", "[", "]", str)], 2, ("{", "}"))(
            CONFIG, PARAMS, PROMPTS, jax.random.key(0), request
        )
    monkeypatch.setitem(sys.modules, "interegular", None)
    with pytest.raises(ModuleNotFoundError, match="pattern: needs the package interegular; pip install"):
        bytes_of_pattern("a")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pattern_automaton("c", PIECES, [STOP]), "pattern: the tokens that can be drawn write no text of 'c';"),
        (lambda: pattern_automaton("a", PIECES, [STOP], [STOP]), "pattern: there is no stop token that could end a"),
        (lambda: pattern_automaton("(ab|ba)", PIECES, [STOP], [1, 2, 3, 4]), "pattern: the tokens that can be drawn"),
        (lambda: bytes_of_pattern("(a"), "pattern: '(a' cannot be read; give a regular expression of whole texts,"),
        (lambda: bytes_of_pattern("(a{1,9999})*"), "pattern: '(a{1,9999})*' counts 9,999 characters, wanted at most"),
        (lambda: bytes_of_pattern("(a{1,99}){99}"), "pattern: '(a{1,99}){99}' counts 9,801 characters, wanted at most"),
        (lambda: bytes_of_pattern("a{2,1}"), "pattern: 'a{2,1}' cannot be read (Can't multiply an FSM by -1); give"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
