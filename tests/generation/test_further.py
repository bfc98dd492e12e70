"""Completions that go on inside a program are those of one generation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from rlax_llm.core.penalties import Penalties
from rlax_llm.generation.automata import stop_automaton
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.further import begun_anew, generate_further, goes_on
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder

CONFIG = DecoderConfig(11, 16, 24, 2, 4, 2, 4)
PARAMS = jax.tree.map(lambda x: 1.5 * x, init_decoder(CONFIG, jax.random.key(0)))
PROMPTS = pad_prompts([[2, 3, 4, 5, 6], [7], [3, 8, 9]], pad_id=0, vocab_size=11)
LIMIT, SIZE, KEY = 9, 2, jax.random.key(1)
ENDS = (stop_automaton(["abc"], [b"abcdefghij"[token % 10 :][:1] for token in range(11)]),)
REQUESTS = {
    "plain": Request(Categorical(), (3, 7), LIMIT, SIZE),
    "cut": Request(Categorical(0.9, top_k=6), (3,), LIMIT, SIZE, 2),
    "remembering": Request(Categorical(), (3,), LIMIT, SIZE, 2, Penalties(1.2, 0.3, 0.4), ENDS),
}


@pytest.mark.parametrize(("name", "window"), [*((name, None) for name in REQUESTS), ("cut", 3)])
def test_interrupted_or_not_the_completions_are_the_same(name, window):
    """Three tokens at a time, until none goes on, and all at once; with layers that keep a window's keys too."""
    request, config = REQUESTS[name], replace(CONFIG, window=window)
    whole = generate_at_once(config, PARAMS, PROMPTS, KEY, request)
    begun = begun_anew(PROMPTS, request, whole)
    assert goes_on(begun, LIMIT).all() and not begun.mask.any()
    further = jax.jit(partial(generate_further, config, PARAMS, request=request))
    keys = row_keys(KEY, len(begun.tokens))
    lengths = np.asarray(whole.mask.sum(1))
    assert lengths.min() < 4 and lengths.max() > 6
    for budgets in ((3, 3, 3), (LIMIT,)):
        found, drawn = begun, 0
        for budget in budgets:
            found, drawn = further(begun=found, keys=keys, most=budget), drawn + budget
            np.testing.assert_array_equal(found.mask.sum(1), np.minimum(lengths, drawn))
        for field in ("tokens", "mask", "valid", "truncated"):
            np.testing.assert_array_equal(getattr(found, field), getattr(whole, field), err_msg=field)
        np.testing.assert_allclose(found.log_probs, whole.log_probs, rtol=0, atol=1e-5)
        assert (found.kept is None) == (whole.kept is None)
        if found.kept is not None and whole.kept is not None:
            np.testing.assert_array_equal(found.kept, whole.kept)
    np.testing.assert_array_equal(goes_on(whole, LIMIT), False)


def test_what_cannot_go_on_is_told():
    request = REQUESTS["plain"]
    begun = generate_at_once(CONFIG, PARAMS, PROMPTS, KEY, request)
    for most, rows, told in (
        (0, begun, "most is 0"),
        (1, jax.tree.map(lambda x: x[..., :LIMIT], begun), "wanted max_"),
    ):
        with pytest.raises(ValueError, match=f"generate_further: .*{told}"):
            generate_further(CONFIG, PARAMS, rows, row_keys(KEY, 6), request, most)
