"""When a learner takes rows by length, and that a run then learns the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rlax_llm.commands.grpo import tiles as by
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.grpo.tiles import Tiles, tiles, widths_below
from rlax_llm.models.config import DecoderConfig

SMALL = DecoderConfig(64, 16, 32, 2, 2, 1, 8)
LARGE = DecoderConfig(50_000, 576, 1536, 30, 9, 3, 64)


def rows(width: int, limit: int, lengths) -> SimpleNamespace:
    columns = np.arange(width + limit)
    return SimpleNamespace(valid=columns < width + np.asarray(lengths)[:, None])


def log_normal(count: int, mean: float, limit: int) -> np.ndarray:
    drawn = np.exp(np.random.default_rng(0).normal(np.log(mean) - 0.5, 1.0, count))
    return np.minimum(np.ceil(drawn), limit).astype(int)


@pytest.mark.parametrize(
    ("config", "width", "lengths", "taken", "parts"),
    [
        (LARGE, 64, log_normal(64, 300, 1024), (1, 1), 8),
        (LARGE, 64, log_normal(64, 300, 1024), (1, 8), 16),
        (LARGE, 64, log_normal(64, 300, 1024), (2, 1), 8),
        (LARGE, 64, log_normal(64, 300, 1024), (1, 32), None),  # a part would hold fewer rows than are worth it
        (LARGE, 64, np.full(64, 1024), (1, 1), None),  # nothing is short
        (LARGE, 2048, log_normal(64, 300, 1024), (1, 1), None),  # prompts weigh more than completions
        (SMALL, 64, log_normal(64, 300, 1024), (1, 1), None),  # nothing to save
    ],
)
def test_rows_go_by_length_where_that_computes_fewer_columns(config, width, lengths, taken, parts):
    found = tiles(config, rows(width, 1024, lengths), (8, width), taken)
    assert found == (None if parts is None else Tiles(parts, widths_below(width + 1024)))


def test_a_run_by_length_learns_what_it_would(tmp_path, monkeypatch):
    """Every step of it, to what sums in another order leave."""
    config = GrpoSettings.of(
        task="arithmetic,largest=9", batch_size=4, group_size=4, steps=3, warm_start_steps=8, eval_every=0, eval_size=4,
        max_new_tokens=12, save_every=0, learning_rate=1e-3, kl_coef=0.05,
    )  # fmt: skip
    wanted = run_grpo(config.changed(out=str(tmp_path / "shared"))).metrics()
    chosen = []

    def watched(*arguments):
        chosen.append(tiles(*arguments))
        return chosen[-1]

    monkeypatch.setattr(by, "LEAST", 0)
    monkeypatch.setattr(by, "FEWEST", 2)
    monkeypatch.setattr(by, "WORTH", 10.0)
    monkeypatch.setattr("rlax_llm.commands.grpo.update.tiles", watched)
    found = run_grpo(config.changed(out=str(tmp_path / "by length"))).metrics()
    assert all(one is not None and one.parts == 8 for one in chosen) and len(chosen) == 3
    names = ("grad_norm", "kl", "entropy", "reward")
    learned, again = ([[row[name] for name in names] for row in told if "kl" in row] for told in (wanted, found))
    assert len(learned) == 3
    np.testing.assert_allclose(again, learned, rtol=1e-4, atol=1e-5)
