"""Plain attention, at once and in blocks, against a softmax under an explicit mask, values and slopes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from literal_attention import (
    CASES,
    Case,
    Numbers,
    assert_literal,
    drawn,
    form_of,
    literal_attention,
    literal_mask,
    parts,
    whole_rows,
)

from rlax_llm.models.attention import attention, visits
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.forms import grouped_attention
from rlax_llm.models.segments import PLAIN, Form, reach_of, segment

pytestmark = pytest.mark.usefixtures("float64")

SHAPE = DecoderConfig(13, 16, 24, 2, 4, 2, 4)
SMALL = {"query_block": 3, "key_block": 2}
each = pytest.mark.parametrize("name", CASES)


def ours(case: Case, form: Form, numbers: Numbers) -> jax.Array:
    return attention(*parts(case, numbers), form, sinks=numbers.sinks).reshape(numbers.q.shape)


@pytest.mark.parametrize("blocks", [{}, SMALL, {"query_block": 1, "key_block": 5}], ids=str)
@each
def test_attention_is_the_literal_form(name, blocks):
    case = CASES[name]
    numbers = drawn(case)
    assert_literal(case, partial(ours, case, form_of(case, **blocks)), numbers, 1e-12)


@pytest.mark.parametrize("form", [PLAIN, PLAIN._replace(**SMALL)], ids=["at once", "in blocks"])
def test_attention_over_segments_is_attention_over_one(form):
    case = CASES["with a hole"]
    numbers = drawn(case)
    queries, reach, segments = parts(case, numbers)
    rows = len(queries)
    places = jnp.concatenate([jnp.repeat(segments[0].places, rows, 0), segments[1].places], 1)
    one = [segment(*whole_rows(numbers), places)]
    valid = np.array(case.own, bool)
    expected = literal_attention(queries, *whole_rows(numbers), literal_mask(case)).reshape(*valid.shape, -1)
    for split in (one, segments, segments[::-1]):
        found = attention(queries, reach, split, form)
        np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", [PLAIN, PLAIN._replace(**SMALL)], ids=["at once", "in blocks"])
@pytest.mark.parametrize("sinks", [None, jnp.zeros(2)], ids=["", "with sinks"])
def test_a_query_without_keys_gives_numbers(form, sinks):
    keys = jnp.ones((1, 9, 1, 4))
    nothing = reach_of(jnp.full((1, 5), -1))
    mixed = attention(jnp.ones((1, 5, 2, 4)), nothing, [segment(keys, keys, jnp.full((1, 9), -1))], form, sinks=sinks)
    assert np.isfinite(mixed).all()


@pytest.mark.parametrize("form", [PLAIN, PLAIN._replace(**SMALL)], ids=["at once", "in blocks"])
def test_a_sink_of_no_weight_is_none_and_one_like_a_key_takes_its_share(form):
    queries, reach, segments = parts(CASES["after a prompt"], drawn(CASES["after a prompt"]))
    plain = attention(queries, reach, segments, form)
    near = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    near(attention(queries, reach, segments, form, sinks=jnp.full(4, -jnp.inf)), plain)
    nothing = attention(0 * queries, reach, segments, form).reshape(queries.shape)
    shared = attention(0 * queries, reach, segments, form, sinks=jnp.zeros(4)).reshape(queries.shape)
    count = np.asarray(reach.places + 1)  # each key has a score of 0
    near(shared, nothing * (count / (count + 1))[..., None, None])


@each
def test_what_no_query_reads_is_not_computed(name):
    """The blocks of keys that are visited are those from the first to the last that a query of the block reads."""
    case = CASES[name]
    form = form_of(case, query_block=2, key_block=2)
    _, reach, segments = parts(case, drawn(case))
    width = len(case.prompt)
    mask = literal_mask(case)
    masks = [mask[:, :, :width], mask[:, :, width:]] if width else [mask]
    for part, found in zip(masks, visits(reach, segments, form), strict=True):
        rows, length, keys = part.shape
        block = min(2, length)
        padded = np.zeros((rows, length + length % block, keys + keys % 2), bool)
        padded[:, :length, :keys] = part
        read = padded.reshape(rows, -1, block, padded.shape[2] // min(2, keys), min(2, keys)).any((0, 2, 4))
        spans = [(blocks[0], blocks[-1] + 1) if len(blocks) else (0, 0) for blocks in map(np.flatnonzero, read)]
        assert found.tolist() == [list(map(int, span)) for span in spans]


def test_groups_are_each_attention_alone():
    """Several groups of different padding, in blocks that are planned for all of them together."""
    cases = [CASES["after a prompt"], Case([1] * 5, [[1] * 6, [1] * 6, [1, 1, 1, 0, 0, 0]])]
    numbers = [drawn(cases[0]), jax.tree.map(lambda x: 2 * x, drawn(cases[1]))]
    apart = [parts(case, one) for case, one in zip(cases, numbers, strict=True)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *apart)
    found = jax.jit(partial(grouped_attention, SHAPE, form=PLAIN._replace(**SMALL)))(*together)
    for one, case, (queries, reach, segments) in zip(found, cases, apart, strict=True):
        valid = np.array(case.own, bool)
        np.testing.assert_allclose(one[valid], attention(queries, reach, segments)[valid], rtol=0, atol=1e-12)
