from __future__ import annotations

import re
from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation.automata import Automaton, stop_automaton
from rlax_llm.generation.draws import first_memory, sampled
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig

# Tokens of several letters, parts of a character (é), one that is no text, and a stop token.
PIECES = [None, b"a", b"b", b"ab", b"ba", b"\xc3", b"\xa9", "é".encode(), b"b\xc3", None, b" ", b"aab"]
STOP, V = 0, len(PIECES)
CONFIG = DecoderConfig(V, 16, 24, 2, 2, 1, 8)
PROMPTS = jnp.array([[0, 5, 2], [3, 1, 4]], jnp.int32), jnp.array([[False, True, True], [True] * 3])
LIMIT, G, KEY = 12, 24, jax.random.key(7)


@cache
def params():
    return decoder.init_decoder(CONFIG, jax.random.key(3))


def drawn(*automata: Automaton, slots: int | None = None, least: int = 0, stop_ids=(STOP,)):
    request = Request(Categorical(1.5), stop_ids, LIMIT, G, least, automata=automata)
    return jax.device_get(generate(CONFIG, params(), PROMPTS, KEY, request, slots))


def written(tokens) -> bytes:
    return b"".join(PIECES[token] or b"" for token in tokens)


def walked(automaton: Automaton, tokens) -> int:
    state = 0
    for token in tokens:
        state = automaton.moves[state % len(automaton.moves), automaton.classes[token]] if state >= 0 else -1
    return int(state)


@pytest.mark.parametrize("texts", [["ab"], ["aab", "éa", "b b"], ["a", "ba"], ["bab", "abba"]])
def test_after_every_sequence_of_tokens_the_last_one_ends_it_where_it_completes_a_stop_text(texts):
    automaton = stop_automaton(texts, PIECES)
    for tokens in product(range(V), repeat=4):
        ends = walked(automaton, tokens) >= len(automaton.moves)
        assert ends == completes(list(tokens), 4, texts), tokens


@pytest.mark.parametrize(("slots", "least"), [(None, 0), (24, 0), (None, 6)])
def test_a_stop_text_cuts_what_would_have_been_drawn_without_it(slots, least):
    """The draws up to the token that completes it are the same, its token is learned from, and nothing is truncated."""
    texts = ["aba", "éb", "b\u00e9"]
    whole, cut = drawn(least=least), drawn(stop_automaton(texts, PIECES), slots=slots, least=least)
    width, stopped = PROMPTS[0].shape[1], 0
    for row in range(len(cut.tokens)):
        tokens = whole.tokens[row, width:][whole.mask[row, width:]].tolist()
        ends = [count for count in range(max(least, 1), len(tokens) + 1) if completes(tokens, count, texts)]
        count = min(ends, default=len(tokens))
        stopped += bool(ends)
        np.testing.assert_array_equal(cut.tokens[row][cut.mask[row]], tokens[:count])
        wanted = whole.log_probs[row][whole.mask[row]][:count]
        np.testing.assert_allclose(cut.log_probs[row][cut.mask[row]], wanted, rtol=0, atol=2e-6 if slots else 0)
        assert cut.truncated[row] == (whole.truncated[row] and not ends)
    assert 10 < stopped < len(cut.tokens)
    assert cut.kept is None or least


def completes(tokens: list[int], count: int, texts: list[str]) -> bool:
    """Whether a text ends within the last of so many tokens."""
    before, now = written(tokens[: count - 1]), written(tokens[:count])
    return any(text.encode() in now[max(len(before) - len(text.encode()) + 1, 0) :] for text in texts)


def test_the_sets_of_first_tokens_are_not_worked_out_while_a_program_compiles():
    automaton = Automaton([0, 1, 1, 0], [[0, -1], [1, 1]])
    request = Request(Categorical(), (STOP,), 2, automata=(automaton,))

    def first(tokens, keys, logits):
        memory = first_memory(request, tokens, tokens >= 0, 4)
        return sampled(request, jnp.zeros(2, jnp.int32), memory, keys, logits).kept

    of = jnp.zeros((2, 1), jnp.int32), jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 4))
    compiled = jax.jit(first).lower(*of).compile()
    assert compiled(*of).tolist() == [[0b1001], [0b1001]]
    assert not re.search(r"ROOT \S+ = u32\[2,1\]\S* (constant|broadcast)", compiled.as_text())


def test_equal_tables_are_one_program():
    one, same = (stop_automaton(["ab"], PIECES) for _ in range(2))
    assert one == same and hash(one) == hash(same) and one != stop_automaton(["ba"], PIECES)


def test_a_stop_text_is_never_empty():
    with pytest.raises(ValueError) as caught:
        stop_automaton(["a", ""], PIECES)
    assert str(caught.value) == "stop_automaton: the texts are ['a', ''], wanted one at least and none empty."
