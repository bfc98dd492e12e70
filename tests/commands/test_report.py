"""The page on runs: its data held against the directories', what it must not hold, and itself in a browser."""

import json
import math
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.report.reading import read_run
from rlax_llm.host.run_directory import RunDirectory

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
STEPS = 30
NASTY = "</script><img src=x onerror=alert(1)>"


def made(path, learning_rate=0.1, steps=STEPS, done=True):
    run = RunDirectory.create(path, {"command": "grpo", "learning_rate": learning_rate, "data": None})
    for step in range(1, steps + 1):
        metrics = {"reward": step / steps, "kl": None, "entropy": 2.0, "note": "text"}
        run.log_metrics(step, metrics | ({"held_out_accuracy": 0.5} if step % 10 == 0 else {}))
        texts = {"a": NASTY, "b": "1+2="} if step == 1 else {}
        outcome = {"rewards": [[0.0, 1.0], [None, step / 2]], "lengths": [[3, 4], [5, step]], "solved": [1, step % 3]}
        run.log_details(
            "rollouts", [{"step": step, "prompts": ["a", "b"], "texts": texts, "completions": 4, **outcome}]
        )
        token = {"pieces": ["<b>", NASTY], "log_probs": [-0.5, None], "ratios": [2.0, None], "advantages": [-1.0, None]}
        run.log_details("tokens", [{"step": step, "prompt": NASTY, "reward": 1.0, "left_out": 3, **token}])
    if done:
        run.write_summary({"command": "grpo", "steps": steps, "versions": {"jax": "0"}})
    run.release()
    return RunDirectory.reopen(path)


def data_of(page):
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "two runs"
    made(root / "a")
    made(root / "b", learning_rate=0.2, done=False)
    assert main(["report", str(root / "a"), str(root / "b")]) == 0
    return root / "a" / "report.html"


def test_a_page_needs_nothing_else_and_is_no_one_s_markup(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(
        r"""(?:src|href)=["']|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", text.replace(NASTY, "")
    )
    assert "default-src 'none'" in text and text.count("</script>") == 2 and NASTY not in text
    assert "{{" not in text
    assert len(text) < 60_000


def test_half_of_a_surrogate_pair_is_written(tmp_path):
    made(tmp_path / "half").log_details("tokens", [{"step": STEPS + 1, "prompt": "\\\ud800", "pieces": []}])
    assert main(["report", str(tmp_path / "half")]) == 0
    text = (tmp_path / "half" / "report.html").read_text(encoding="utf-8")
    assert data_of(text)["runs"][0]["completions"][-1]["rows"][0]["prompt"] == "\\\ud800"


def test_curves_are_those_of_the_metrics(page):
    one, other = data_of(page.read_text(encoding="utf-8"))["runs"]
    assert (one["name"], other["name"], one["state"]) == ("a", "b", "")
    assert other["state"].startswith("Not ended: it still runs, or was killed. If it does no more, rlax-llm grpo ")
    assert f" --resume '{page.parent.parent}/b' goes on" in other["state"]
    assert other["summary"] == {"command": "grpo", "steps so far": STEPS, "reward": 1.0}
    assert one["axes"]["step"] == list(range(1, STEPS + 1)) and one["together"] == 1
    np.testing.assert_allclose(one["curves"]["reward"], np.arange(1, STEPS + 1) / STEPS, rtol=1e-4)
    assert [index for index, value in enumerate(one["curves"]["held_out_accuracy"]) if value == 0.5] == [9, 19, 29]
    assert set(one["curves"]) == {"reward", "entropy", "held_out_accuracy"}
    assert (one["settings"]["learning_rate"], other["settings"]["learning_rate"]) == ("0.1", "0.2")
    assert one["summary"] == {"command": "grpo", "steps": STEPS}


def test_distributions_prompts_and_groups_are_those_of_the_rollouts(page):
    run = data_of(page.read_text(encoding="utf-8"))["runs"][0]
    score, length = run["spreads"]
    assert score["shares"] is None and score["steps"] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(length["deciles"][9], np.quantile([3, 4, 5, 10], np.linspace(0, 1, 11)), rtol=1e-4)
    assert length["looks"][0] == [1, [3, 4, 5, 1]]
    first, second = sorted(run["prompts"]["lines"], key=lambda line: line["text"])
    assert (first["text"], first["completions"], first["mean"]) == ("1+2=", 2 * STEPS, 0.5)
    assert (second["text"], second["visits"][0]) == (NASTY, [1, 0.5])
    assert run["groups"]["none"][:3] == [0, 0, 0.5] and run["groups"]["all"][:3] == [0, 0.5, 0]
    look = run["completions"][-1]
    assert look["step"] == STEPS and look["rows"][0]["pieces"] == ["<b>", NASTY]


def test_a_long_run_is_thinned_by_means(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {"command": "sft"})
    with run.metrics_path.open("w") as file:
        file.writelines(json.dumps({"step": step, "loss": float(step % 2)}) + "\n" for step in range(1, 2001))
    run.log_completions(
        [{"step": 2000, "prompt": [{"role": "user", "content": "hi"}], "completion": "ho", "reward": 1.0}]
    )
    found = read_run(run, "a")
    assert found["together"] == 2 and found["curves"]["loss"] == [0.5] * 1000
    assert found["axes"]["step"][-1] == 2000
    assert found["completions"] == [{"step": 2000, "rows": [{"prompt": "user: hi", "reward": 1.0, "pieces": ["ho"]}]}]
    assert (found["spreads"], found["groups"], found["prompts"]["lines"]) == ([], None, [])


def test_control_s_seeds_are_a_distribution_and_its_interval_a_band(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {"command": "control"})
    row = {"environment_steps": 64, "episode_return": 2.0, "episode_return_interval": [1.0, 3.0]}
    run.log_metrics(1, row | {"episode_return_seeds": [1.0, None, 3.0]})
    found = read_run(run, "a")
    assert found["axes"]["environment_steps"] == [64]
    band = {"low": [1], "high": [3], "what": "95 % interval of the mean of the seeds"}
    assert found["bands"] == {"episode_return": band} and list(found["curves"]) == ["episode_return"]
    assert [(one["title"], one["looks"]) for one in found["spreads"]] == [("Return", [[1, [1, 3]]])]


def test_what_is_wrong_is_said_in_a_sentence(page, tmp_path, capsys):
    run = str(page.parent)
    assert main(["report", run, run]) == 2
    assert capsys.readouterr().err == f"error: report: {run} is given twice; give each run once.\n"
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run (no config.yaml in it)" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "there is no RUN_DIR; give one or more." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "doctor"])
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.yaml", "- 1", "holds no values by name"),
        ("config.yaml", "a: 'b", r"cannot be read \(ScannerError\)"),
        ("summary.json", '{"a": ', r"cannot be read \(JSONDecodeError\)"),
        (
            "completions.jsonl",
            '{"step": 1, "prompt": [3]}\n',
            r"of another form .*Error: .*; move it away",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, capsys, command, name, text, said):
    run = made(tmp_path / "a")
    run.details_path("tokens").unlink()
    (run.path / name).write_text(text)
    assert main([command, str(run.path)]) == 2
    assert re.fullmatch(rf"error: {run.path / name} .*{said}.*\n", capsys.readouterr().err)


def test_nan_of_another_program_is_a_gap_and_records_of_another_form_are_named(tmp_path, capsys):
    run = made(tmp_path / "a", steps=2)
    run.metrics_path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n')
    assert read_run(run, "a")["curves"]["loss"] == [None, 0.5]
    run.details_path("rollouts").write_text('{"step": 1}\n')
    assert main(["report", str(run.path)]) == 2
    assert re.search(r"rollouts.jsonl holds records of another form .*KeyError", capsys.readouterr().err)


def with_gaps(path):
    """A loss that is not finite at steps 3, 4 and 6 of 8, a KL that never is, an accuracy measured at times."""
    run = RunDirectory.create(path, {"command": "control"})
    for step in range(1, 9):
        loss = math.nan if step in (3, 4, 6) else float(step)
        band = {"episode_return": loss, "episode_return_interval": [loss - 1, loss + 1]}
        run.log_metrics(
            step, {"loss": loss, "kl": math.inf, **band} | ({"held_out_accuracy": 0.5} if step % 4 == 0 else {})
        )
    run.release()
    return run


def test_values_that_are_not_finite_are_gaps_and_counted(tmp_path):
    found = read_run(with_gaps(tmp_path / "a"), "a")
    assert found["curves"]["loss"] == [1, 2, None, None, 5, None, 7, 8]
    assert found["gaps"]["loss"] == found["gaps"]["episode_return_high"] == {"count": 3, "of": 8, "at": [2, 3, 5]}
    assert found["gaps"]["kl"] == {"count": 8, "of": 8, "at": []}
    assert set(found["gaps"]) == {"loss", "kl", "episode_return", "episode_return_low", "episode_return_high"}


OPEN_REST = 'document.getElementById("rest").open = true;'


def drawn_by_browser(page, size="1280,2000", doing=""):
    """The page's elements as a browser makes them, after some clicks; no script of it may fail."""
    failing = 'addEventListener("error", (it) => document.body.append("FAILED " + it.message));'
    script = f'<script>{failing} addEventListener("load", () => {{ {doing} }});</script>'
    data = '<script id="data"'
    page.write_text(page.read_text(encoding="utf-8").replace(data, script + data, 1), encoding="utf-8")
    how = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}", "--virtual-time-budget=3000"]
    done = subprocess.run([BROWSER, *how, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "FAILED" not in done.stdout.replace(failing, "")
    return done.stdout


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
def test_a_line_breaks_where_a_value_is_not_finite(tmp_path):
    with_gaps(tmp_path / "a")
    assert main(["report", str(tmp_path / "a")]) == 0
    two_steps = 'frame(scale([1, 2], 0, 9), scale([0, 1], 0, 9)).querySelectorAll("[text-anchor=middle]")'
    doing = f'{OPEN_REST} if ({two_steps}.length !== 2) throw Error("marks between steps");'
    drawn = drawn_by_browser(tmp_path / "a" / "report.html", doing=doing)
    assert "kl has no curve. 8 of 8 values not finite." in drawn
    assert drawn.count("3 of 8 values not finite") == 2
    lines = re.findall(r'<path d="([^"]*)" stroke', drawn)
    # In three pieces, of which one is a dot; what was measured now and then is one.
    assert sorted(line.count("M") for line in lines) == [1, 3, 3]
    assert sorted(line.count("h0") for line in lines) == [0, 1, 1]
    (band,) = re.findall(r'<path class="band" d="([^"]*)"', drawn)
    assert band.count("Z") == 3


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
@pytest.mark.parametrize("size", ["1280,2000", "390,2000"])
def test_the_page_draws_itself_in_a_browser(page, size):
    drawn = drawn_by_browser(page, size)
    # Three metrics, and of each run two distributions, its groups and two histograms.
    assert drawn.count('class="card panel"') == 3 + 2 * 5
    assert "Held-out accuracy" in drawn and drawn.count('class="card completion"') == 1
    assert "&lt;/script&gt;&lt;img src=x" in drawn and "<img" not in drawn
    assert "background: rgba(var(--low), 0.300)" in drawn
    settings = drawn[drawn.index('id="settings"') :]
    assert settings.index("Those that differ:") < settings.index("learning_rate") < settings.index("All 3 settings")


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
def test_long_names_stay_within_the_page_and_names_of_objects_are_names(tmp_path):
    run = made(tmp_path / ("long" * 40))
    run.log_metrics(STEPS + 1, {"reward": math.nan, "constructor": 2.0, "__proto__": 3.0})
    assert main(["report", str(run.path)]) == 0
    wide = 'if (document.documentElement.scrollWidth > innerWidth) throw Error("wide");'
    drawn = drawn_by_browser(run.path / "report.html", "390,2000", f"{OPEN_REST} {wide}")
    assert ">constructor<" in drawn and ">__proto__<" in drawn and ">undefined<" not in drawn


def of_control(path, seeds, steps=40):
    run = RunDirectory.create(path, {"command": "control", "seeds": seeds})
    for step in range(1, steps + 1):
        value: dict[str, Any] = {
            "episode_return": 100.0 + step,
            "clip_fraction": 0.0,
            "explained_variance": 0.5 - step / steps,
        }
        for name in list(value):
            value |= {f"{name}_std": 2.0, f"{name}_interval": [value[name] - 300, value[name] + 300]}
        run.log_metrics(
            step, {"environment_steps": 64 * step, **value, "value_loss": 10.0 ** (step % 20 - 10), "kl": 1e-3}
        )
    run.release()
    return run


def test_a_name_is_what_its_command_means_by_it(tmp_path):
    made(tmp_path / "a")
    of_control(tmp_path / "b", seeds=2)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    panels = data_of((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))["panels"]
    assert panels["grpo"]["kl"] == {"title": "KL to the reference", "unit": "nats per token"}
    assert panels["control"]["kl"] == {"title": "KL to the old policy", "unit": "nats"}
    assert "kl_old" not in panels["grpo"] and "reward" not in panels["control"]


def test_a_band_of_few_seeds_is_their_deviation(tmp_path):
    few, many = (read_run(of_control(tmp_path / str(n), n, 1), "a")["bands"]["episode_return"] for n in (2, 4))
    assert few == {"low": [99], "high": [103], "what": "one standard deviation of 2 seeds to each side"}
    assert many == {"low": [-199], "high": [401], "what": "95 % interval of the mean of 4 seeds"}


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
def test_a_logarithm_is_drawn_where_there_is_one(tmp_path):
    made(tmp_path / "a")
    of_control(tmp_path / "b", seeds=2)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    click = 'document.getElementById("logarithmic").click();'
    drawn = drawn_by_browser(tmp_path / "a" / "report.html", doing=click)
    assert drawn.count(">no value above 0<") == 1  # the clip fraction
    assert ">1e-10<" in drawn and ">1e-9<" not in drawn  # 20 powers of ten have not all a label
    # Nothing is below the axis, at 190 − 22, or above the box.
    curves = drawn[drawn.index('id="curves"') : drawn.index('id="spreads"')]
    assert "NaN" not in curves and "Infinity" not in curves
    lines = re.findall(r'<path[^>]* d="([^"]*)"', curves)
    heights = [float(y) for line in lines for y in re.findall(r"[ML][\d.]+ ([\d.-]+)", line)]
    assert heights and min(heights) >= 4 and max(heights) <= 168
    # Two of one name are two boxes, and what no name has is said.
    assert drawn.count("Shade: one standard deviation of 2 seeds to each side.") == 2
    nowhere = 'const it = document.getElementById("find"); it.value = "xyz"; it.dispatchEvent(new Event("input"));'
    assert "No metric is called xyz." in drawn_by_browser(tmp_path / "a" / "report.html", doing=nowhere)
