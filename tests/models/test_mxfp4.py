"""MXFP4 as its specification has it, number by number, and files in it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rlax_llm.models.mxfp4 import mxfp4_numbers
from rlax_llm.models.shards import model_tensors
from rlax_llm.models.tensors import check_tensor, read_finite

NAME = "model.layers.0.mlp.experts.down_proj"


def level(code: int) -> float:
    """A sign, two bits of exponent with a bias of 1, one of fraction; without exponent it is subnormal."""
    sign, exponent, fraction = code >> 3, (code >> 1) & 3, code & 1
    size = fraction / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction / 2)
    return -size if sign else size


def literal(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    found = np.zeros((*scales.shape, 32), np.float32)
    for *place, byte in np.ndindex(codes.shape):
        for half in range(2):
            code = (int(codes[(*place, byte)]) >> (4 * half)) & 15
            found[(*place, 2 * byte + half)] = level(code) * 2.0 ** (int(scales[tuple(place)]) - 127)
    return found.reshape(*scales.shape[:-1], -1)


def drawn(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    scales = random.integers(100, 150, shape).astype(np.uint8)
    return random.integers(0, 256, (*shape, 16)).astype(np.uint8), scales


def test_numbers_are_those_of_the_specification():
    codes, scales = drawn(3, 5, 2)
    np.testing.assert_array_equal(mxfp4_numbers(codes, scales), literal(codes, scales))
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    edges = np.repeat(np.array([0, 127, 252], np.uint8), [5, 6, 5])
    np.testing.assert_array_equal(mxfp4_numbers(every, edges), literal(every, edges))
    assert mxfp4_numbers(every[:1], np.array([127], np.uint8))[1::2].tolist() == [0.0] * 16  # bytes below 16


def held(directory: Path, stack: ExitStack, **changed):
    codes, scales = drawn(3, 4, 2)
    tensors = {f"{NAME}_blocks": codes, f"{NAME}_scales": scales} | changed
    save_file({name: x for name, x in tensors.items() if x is not None}, directory / "model.safetensors")
    return model_tensors(directory, stack), mxfp4_numbers(codes, scales).swapaxes(-1, -2)


@pytest.mark.parametrize(
    "bounds",
    [
        (slice(0, 3), slice(0, 64), slice(0, 4)),
        (slice(1, 2), slice(0, 64), slice(1, 4, 2)),
        (slice(0, 3), slice(40, 64), slice(2, 3)),
        (slice(2, 3), slice(5, 33), slice(0, 4)),
    ],
)
def test_a_part_of_a_tensor_is_that_part_of_its_numbers(tmp_path, bounds):
    with ExitStack() as stack:
        tensors, wanted = held(tmp_path, stack)
        (tensor,) = tensors.values()
        assert list(tensors) == [NAME]
        check_tensor(tensor, (3, 64, 4))
        np.testing.assert_array_equal(tensor.part(bounds), wanted[bounds])


def test_a_scale_that_is_no_number_is_refused(tmp_path):
    with ExitStack() as stack:
        scales = np.full((3, 4, 2), 255, np.uint8)
        tensors, _ = held(tmp_path, stack, **{f"{NAME}_scales": scales})
        part = tensors[NAME].part((slice(0, 1), slice(0, 1), slice(0, 1)))
        with pytest.raises(ValueError, match="down_proj holds 1 numbers that are not finite"):
            read_finite(part, np.float32, tmp_path, NAME)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({f"{NAME}_scales": None}, "_blocks is there and .*_scales is not, wanted both"),
        ({f"{NAME}_blocks": None}, "_scales is there and .*_blocks is not, wanted both"),
        ({f"{NAME}_scales": np.ones((3, 4, 2), np.float32)}, "_scales has dtype F32, wanted U8"),
        ({f"{NAME}_scales": np.ones((3, 4, 1), np.uint8)}, r"shape \(3, 4, 2, 16\), wanted \(3, 4, 1, 16\)"),
    ],
)
def test_codes_and_scales_that_do_not_belong_together_are_named(tmp_path, changed, words):
    with ExitStack() as stack, pytest.raises(ValueError, match=words):
        held(tmp_path, stack, **changed)
