"""Kernels against the literal form, the memory of a model's update, and which form is chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from literal_attention import CASES, Case, Numbers, assert_literal, drawn, form_of, parts

from rlax_llm.core.platform import targeting
from rlax_llm.models import decoder, shared_prompts
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.forms import _behind_window, attention_form
from rlax_llm.models.kernels import cudnn_attention, splash_attention
from rlax_llm.models.segments import EVERYTHING, PLAIN

LONG = {
    "after a prompt": Case([0] * 9 + [1] * 20, [[1] * 140, [1] * 90 + [0] * 50]),
    "packed": Case([], [[1] * 140, [0] * 10 + [1] * 130], [[1] * 30 + [2] * 110, [0] * 10 + [5] * 100 + [6] * 30]),
    "in a window, capped": Case([0] * 3 + [1] * 7, [[1] * 130, [1] * 60 + [0] * 70], window=33, soft_cap=5.0),
    "with sinks": Case([0] * 3 + [1] * 7, [[1] * 130, [1] * 60 + [0] * 70], window=33, sinks=True),
}


def in_a_group(case: Case, compute, numbers: Numbers) -> jax.Array:
    """A form over groups, of two groups that are alike; the first one's."""
    two = jax.tree.map(lambda x: jnp.stack([x, x]), parts(case, numbers))
    return compute(form_of(case), *two, numbers.sinks)[0].reshape(numbers.q.shape)


@pytest.mark.parametrize("name", LONG)
def test_splash_is_the_literal_form(name):
    case = LONG[name]
    numbers = drawn(case, dim=8, dtype=np.float32)
    compute = partial(in_a_group, case, partial(splash_attention, interpret=True))
    assert_literal(case, compute, numbers, 1e-5)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if not (case.sequences or case.soft_cap or case.sinks)]
)
def test_cudnn_is_given_the_literal_form(name):
    """Its arguments, computed by the plain form of the same function."""
    case = CASES[name]
    plain = partial(jax.nn.dot_product_attention, implementation="xla")
    compute = partial(in_a_group, case, partial(cudnn_attention, dot=plain))
    assert_literal(case, compute, drawn(case, dtype=np.float32), 1e-5)


SHAPE = DecoderConfig(13, 16, 24, 2, 4, 2, 4)


@pytest.fixture
def small_blocks(monkeypatch):
    form = PLAIN._replace(query_block=16, key_block=16)
    for module in ("forms", "decoder"):
        monkeypatch.setattr(f"rlax_llm.models.{module}.blocks", lambda: form)


def update(kind: str, length: int):
    """The slopes of a model's states of two rows, as a lowered program: whole rows, packed, or a group."""
    tokens = jax.ShapeDtypeStruct((4, length), jnp.int32)
    params = jax.eval_shape(partial(decoder.init_decoder, SHAPE), jax.random.key(0))

    def total(params, tokens):
        valid = tokens > 0
        if kind == "group":
            return jnp.sin(shared_prompts.completion_states(SHAPE, params, tokens, valid, (2, length // 4), True)).sum()
        sequences = tokens if kind == "packed" else None
        return jnp.sin(decoder.hidden_states(SHAPE, params, tokens, valid, True, sequences)).sum()

    return jax.jit(jax.grad(total)).lower(params, tokens)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["rows", "packed", "group"])
def test_memory_is_linear_in_length(kind):
    once, twice = (update(kind, length).compile().memory_analysis().temp_size_in_bytes for length in (256, 512))
    assert twice <= 2.2 * once


@pytest.mark.parametrize(
    ("here", "asked", "length", "dtype", "form", "expected"),
    [
        ("cpu", "auto", 4096, "bfloat16", PLAIN, "blockwise"),
        ("tpu", "auto", 4096, "bfloat16", PLAIN, "splash"),
        ("tpu", "auto", 4096, "float32", PLAIN._replace(packed=True, window=8, soft_cap=30.0), "splash"),
        ("tpu", "auto", 64, "bfloat16", PLAIN, "blockwise"),
        ("tpu", "splash", 64, "bfloat16", PLAIN, "splash"),
        ("tpu", "blockwise", 4096, "bfloat16", PLAIN, "blockwise"),
        ("gpu", "auto", 4096, "bfloat16", PLAIN._replace(window=8), "cudnn"),
        ("gpu", "auto", 4096, "float32", PLAIN, "blockwise"),
        ("gpu", "auto", 4096, "bfloat16", PLAIN._replace(packed=True), "blockwise"),
        ("gpu", "auto", 4096, "bfloat16", PLAIN._replace(soft_cap=30.0), "blockwise"),
        ("gpu", "cudnn", 64, "float16", PLAIN, "cudnn"),
    ],
)
def test_the_form_is_of_platform_and_shape(here, asked, length, dtype, form, expected):
    config = DecoderConfig(13, 16, 24, 2, 4, 2, 64, attention=asked)
    with targeting(here):
        assert attention_form(config, length, dtype, form) == expected


@pytest.mark.parametrize(
    ("here", "asked", "dtype", "form", "message"),
    [
        ("cpu", "splash", "float32", PLAIN, "attention: splash runs on a TPU, and this is a CPU; choose auto"),
        ("tpu", "cudnn", "bfloat16", PLAIN, "cudnn runs on a GPU, and this is a TPU"),
        ("gpu", "cudnn", "float32", PLAIN, "in bfloat16 or float16, and the model in float32"),
        ("gpu", "cudnn", "bfloat16", PLAIN._replace(packed=True), "one sequence a row, and rows are packed"),
        ("gpu", "cudnn", "bfloat16", PLAIN._replace(soft_cap=2.0), "no soft cap, and the model has one"),
    ],
)
def test_a_form_that_cannot_serve_is_told(here, asked, dtype, form, message):
    config = DecoderConfig(13, 16, 24, 2, 4, 2, 64, attention=asked)
    with targeting(here), pytest.raises(ValueError, match=message):
        attention_form(config, 4096, dtype, form)


def test_sinks_are_not_for_cudnn():
    config = DecoderConfig(13, 16, 24, 2, 4, 2, 64, sinks=True)
    with targeting("gpu"):
        assert attention_form(config, 4096, "bfloat16") == "blockwise"
        with pytest.raises(ValueError, match="cudnn has no attention sinks, and the model has them; choose auto"):
            attention_form(replace(config, attention="cudnn"), 4096, "bfloat16")
    with targeting("tpu"):
        assert attention_form(config, 4096, "bfloat16") == "splash"


def test_an_odd_head_is_not_for_cudnn():
    config = DecoderConfig(13, 16, 24, 2, 4, 2, 20, attention="cudnn")
    with (
        targeting("gpu"),
        pytest.raises(ValueError, match="heads of at most 128, a multiple of 8, and these are of 20"),
    ):
        attention_form(config, 4096, "bfloat16")


def test_a_kernel_knows_the_window_of_a_layer_that_a_scan_chooses():
    def kernel(form, x):
        return x * (-1 if form.window is None else form.window)

    for window, wanted in ((None, -1), (5, 5)):
        compute, traced = _behind_window(kernel, PLAIN, window, 5)
        assert traced == ()
        assert compute(1) == wanted
    compute, _ = _behind_window(kernel, PLAIN, jnp.int32(5), 5)
    assert jax.lax.map(lambda window: compute(window, 1), jnp.array([5, EVERYTHING])).tolist() == [5, -1]


def test_an_unknown_form_is_told():
    with pytest.raises(ValueError, match="attention 'splach' is unknown; did you mean 'splash'"):
        DecoderConfig(13, 16, 24, 2, 4, 2, 4, attention="splach")
