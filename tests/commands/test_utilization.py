"""Model FLOPs by counting pairs and products one by one, and what they are a share of."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rlax_llm.commands import utilization
from rlax_llm.commands.utilization import training_flops
from rlax_llm.core.chips import CHIPS
from rlax_llm.models.config import DecoderConfig, Lora

SHAPE: dict[str, int] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
}
MATRICES = 3 * (8 * 16 + 2 * 8 * 8 + 16 * 8 + 3 * 8 * 6)


def rows(prompts, own, width=4):
    valid = np.array([[i >= width - p for i in range(width)] + [i < o for i in range(6)] for p, o in zip(prompts, own)])
    mask = valid & (np.arange(width + 6) >= width)
    return SimpleNamespace(valid=valid, mask=mask)


LORA = Lora(2, 4.0, ("q",), tokens=(3, 1))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("last", ["embed", "score", "embed_rows"])
def test_products_and_pairs_are_counted(lora, last):
    """Two prompts of 3 and 2 tokens, of two completions each."""
    own = [4, 1, 6, 2]
    found = training_flops(DecoderConfig(**SHAPE, lora=lora), {last: None}, rows([3, 3, 2, 2], own), (2, 4))
    tokens, learned = 3 + 2 + sum(own), sum(own)
    pairs = 3**2 / 2 + 2**2 / 2 + sum(n * p + n**2 / 2 for n, p in zip(own, [3, 3, 2, 2], strict=True))
    passes = 3 if lora is None else 2
    of_head = {"embed": 3, "score": 0, "embed_rows": 2}[last]
    assert found == 2 * (passes * MATRICES * tokens + of_head * 11 * 8 * learned) + 3 * 4 * 3 * 16 * pairs


def test_packed_rows_see_themselves_alone():
    """Three texts in one row take what they take in rows of their own."""
    apart = rows([0, 0, 0], [3, 2, 1])
    packed = rows([0], [6])
    packed.segments = np.array([[0, 0, 0, 0, 1, 1, 1, 2, 2, 3]])
    packed_flops, flops = (training_flops(DecoderConfig(**SHAPE), {"embed": None}, each) for each in (packed, apart))
    assert packed_flops == flops


def test_the_share_of_the_peak_is_told_where_the_chip_is_known(monkeypatch):
    assert utilization.utilization(1e12, 2.0) == {}
    device = SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert utilization.utilization(CHIPS["TPU v5 lite"].flops, 2.0) == {"mfu": 0.5}
