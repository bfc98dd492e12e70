"""The figure: which panels it has, and that few or odd rows do not stop it."""

import math

import pytest

from rlax_llm.host import curves

PNG = b"\x89PNG\r\n\x1a\n"


def _rows(count):
    return [{"step": step, "reward": step / 30, "kl": None if step == 3 else 0.01} for step in range(count)]


@pytest.mark.parametrize(
    "rows", [[], _rows(1), _rows(30), [{"step": 1, "reward": math.nan}], [{"step": 1, "text": "a"}]]
)
def test_any_number_of_rows_gives_a_png(tmp_path, rows):
    curves.draw_curves(tmp_path / "curves.png", rows, "grpo · char")
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_only_what_was_measured_gets_a_panel(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(curves, "_draw_panel", lambda axes, panel, points: drawn.update({panel.key: points}))
    rows = [*_rows(5), {"step": 4, "held_out_accuracy": 0.5}]
    curves.draw_curves(tmp_path / "curves.png", rows, "grpo")
    assert list(drawn) == ["reward", "held_out_accuracy", "kl"]
    assert [step for step, _ in drawn["kl"]] == [0, 1, 2, 4]
    assert drawn["held_out_accuracy"] == [(4, 0.5)]


def test_the_trend_of_a_line_is_the_line_and_it_tames_noise():
    line = [float(step) for step in range(100)]
    assert curves._smoothed(line)[10:90] == pytest.approx(line[10:90])
    assert max(map(abs, curves._smoothed([(-1.0) ** step for step in range(100)]))) < 0.25


def test_no_global_figure_is_left(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    curves.draw_curves(tmp_path / "curves.png", _rows(30), "grpo")
    assert pyplot.get_fignums() == before
