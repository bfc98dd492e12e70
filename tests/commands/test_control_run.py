"""Whole control runs at the smallest size that still does everything."""

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from rlax_llm.commands.control import program as control_config
from rlax_llm.commands.control.chunks import Bad, check_finite, chunk, per_seed
from rlax_llm.commands.control.phase import until_still
from rlax_llm.commands.control.program import ControlSettings
from rlax_llm.commands.control.run import run_control
from rlax_llm.commands.settings import flat
from rlax_llm.envs.registry import make
from rlax_llm.host import checkpoints, closing, control_curves, session
from rlax_llm.host.failures import NotFinite, RunFailed
from rlax_llm.host.interrupts import Stop
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.spread import spread, student_quantile

TINY = ControlSettings.of(
    seeds=2,
    steps=7 * 32,
    environments=2,
    horizon_steps=16,
    epochs=1,
    minibatches=1,
    hidden=(4,),
    log_every=3,
    eval_steps=30,
    eval_episodes=3,
)
CLOCK = "steps_per_second"
CLOCKS = (CLOCK, "wall_seconds")


def numbers(directory):
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in directory.metrics()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_control(TINY.changed(render=True, out=str(tmp_path_factory.mktemp("run") / "whole")))


def test_the_directory_is_complete(whole):
    names = {path.name for path in whole.path.iterdir()}
    assert names == {
        *("config.yaml", "config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", "episode.gif")
    }
    assert json.loads((whole.path / "config.json").read_text()) == whole.config()
    assert whole.config()["learning_rate"] == 2.5e-4 and whole.config()["command"] == "control"
    with Image.open(whole.path / "curves.png") as picture:
        assert picture.size[0] > 500


def test_metrics_have_a_line_a_chunk_with_the_spread_over_seeds(whole):
    rows = whole.metrics()
    assert [(row["step"], row["environment_steps"]) for row in rows] == [(3, 96), (6, 192), (7, 224)]
    for row in rows:
        returns = row["episode_return_seeds"]
        assert len(returns) == 2 and row[CLOCK] > 0
        if None not in returns:
            low, high = row["episode_return_interval"]
            assert row["episode_return"] == pytest.approx(np.mean(returns))
            assert low <= row["episode_return"] <= high
        assert row["entropy_std"] >= 0 and len(row["entropy_interval"]) == 2


def test_the_summary_tells_what_came_out(whole):
    summary = json.loads(whole.summary_path.read_text())
    assert summary["finished"] and summary["stopped"] is None
    assert (summary["iterations"], summary["environment_steps"], summary["seeds"]) == (7, 224, 2)
    assert len(summary["greedy_return_seeds"]) == 2 and summary["greedy_return"] <= TINY.run.eval_steps
    low, high = summary["greedy_return_interval"]
    assert low <= summary["greedy_return"] <= high
    assert summary["final_return_seeds"] == pytest.approx(whole.metrics()[-1]["episode_return_seeds"], nan_ok=True)
    assert summary["compile_seconds"] > 0 and summary[CLOCK] > 0


def test_the_picture_ends_with_the_episode(whole):
    greedy = json.loads(whole.summary_path.read_text())["greedy_return_seeds"]
    with Image.open(whole.path / "episode.gif") as picture:
        assert 1 < picture.n_frames <= TINY.run.eval_steps and max(greedy) > 1


def test_the_episode_of_the_picture_has_no_repetition_at_its_end():
    states = {"x": np.array([0.0, 1.0, 1.0, 2.0, 2.0, 2.0]), "t": np.zeros((6, 2))}
    assert until_still(states)["x"].tolist() == [0.0, 1.0, 1.0, 2.0]
    assert until_still({"x": np.ones(3)})["x"].tolist() == [1.0]


def test_an_interrupted_run_goes_on_and_gives_the_numbers_of_an_unbroken_one(whole, tmp_path, monkeypatch, capsys):
    class Impatient(Stop):
        asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked > 2

    @contextmanager
    def impatient():
        yield Impatient()

    config = TINY.changed(out=str(tmp_path / "a"))
    with monkeypatch.context() as patched:
        patched.setattr(closing, "interruptible", impatient)
        run_control(config)
    halfway = RunDirectory.reopen(tmp_path / "a")
    summary = json.loads(halfway.summary_path.read_text())
    assert (summary["iterations"], summary["finished"]) == (6, False) and "greedy_return" not in summary
    assert f"Go on with: rlax-llm control --resume {tmp_path / 'a'}" in capsys.readouterr().out
    assert halfway.curves_path.exists() and checkpoints.latest(halfway.checkpoints_path) == 6
    halfway.log_metrics(7, {"environment_steps": 999, "left": "by a crash"})

    run_control(config.changed(resume=str(tmp_path / "a")))
    assert numbers(halfway) == numbers(whole)
    assert json.loads(halfway.summary_path.read_text())["finished"]


def saved_bytes(directory):
    """Names, shapes and checksums of the leaves of the last checkpoint."""
    place = directory.checkpoints_path
    return checkpoints.read_manifest(place / str(checkpoints.latest(place)))


def dies_at(step):
    """Of a method that is given a step, one that dies there instead."""

    def killed(method):
        def kill(*arguments, **named):
            if step in arguments:
                raise KeyboardInterrupt
            return method(*arguments, **named)

        return kill

    return killed


@pytest.mark.parametrize(
    ("place", "name", "step", "kept"),
    [
        (RunDirectory, "log_metrics", 3, []),  # after the first chunk, before anything of it is written
        (checkpoints.Writer, "save", 3, []),  # its line is written, its checkpoint is not
        (RunDirectory, "log_metrics", 6, [3]),
        (checkpoints.Writer, "save", 6, [3]),
        (RunDirectory, "log_metrics", 7, [3, 6]),
        (checkpoints.Writer, "save", 7, [3, 6]),  # all is done and logged
    ],
)
def test_a_run_that_is_killed_anywhere_goes_on_from_its_last_checkpoint(
    whole, tmp_path, monkeypatch, place, name, step, kept
):
    settings = {"save_every": 2, "eval_steps": 0, "out": str(tmp_path / "a")}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, name, dies_at(step)(getattr(place, name)))
        run_control(TINY.changed(**settings))
    directory = RunDirectory.reopen(tmp_path / "a")
    assert checkpoints.steps(directory.checkpoints_path) == kept and not directory.summary_path.exists()
    run_control(TINY.changed(**settings, resume=str(tmp_path / "a")))
    assert numbers(directory) == numbers(whole)
    assert saved_bytes(directory) == saved_bytes(whole)
    assert json.loads(directory.summary_path.read_text())["finished"]


def test_a_checkpoint_is_written_once_a_minute_where_none_is_asked_for(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_SECONDS_BETWEEN_SAVES", 0.0)
    directory = run_control(TINY.changed(eval_steps=0, out=str(tmp_path / "a")))
    assert checkpoints.steps(directory.checkpoints_path) == [6, 7], "the last two are kept"
    assert checkpoints.steps(whole.checkpoints_path) == [7]


def broken(which):
    """CartPole whose rewards, or whose states and so the parameters, are not numbers after some steps."""
    environment = make("CartPole-v1")

    def step(key, state, action):
        taken = environment.step(key, state, action)
        late = taken.state.time >= 5
        if which == "reward":
            return taken._replace(reward=jnp.where(late, jnp.nan, taken.reward))
        return taken._replace(observation=jnp.where(late, jnp.nan, taken.observation))

    return environment._replace(step=step)


@pytest.mark.parametrize("which", ["reward", "parameter"])
def test_a_run_that_leaves_the_finite_numbers_stops_and_keeps_what_it_wrote(which, tmp_path, monkeypatch):
    monkeypatch.setattr(control_config, "make", lambda name: broken(which))
    config = TINY.changed(out=str(tmp_path / "a"))
    message = rf"^control: a {which} of seed 0 is not finite after iteration 1; .*written is in"
    with pytest.raises(RunFailed, match=message) as failure:
        run_control(config)
    directory = RunDirectory.reopen(tmp_path / "a")
    summary = json.loads(directory.summary_path.read_text())
    assert summary["stopped"] == str(failure.value) and not summary["finished"]
    assert directory.curves_path.exists() and checkpoints.latest(directory.checkpoints_path) is None


def test_the_first_seed_to_fail_is_named():
    check_finite(Bad(*[np.array([-1, -1])] * 3))
    with pytest.raises(NotFinite, match=r"^a parameter of seed 1 is not finite after iteration 4;"):
        check_finite(Bad(np.array([5, 3]), np.array([5, -1]), np.array([-1, -1])))
    with pytest.raises(NotFinite, match=r"^a reward of seed 0 is not finite after iteration 4; look at the env"):
        check_finite(Bad(np.array([5, 3]), np.array([3, -1]), np.array([-1, -1])))


def test_seeds_are_shared_out_over_devices(whole):
    """The same numbers from two devices, in a process that has them."""
    program = f"""
import jax, sys
jax.config.update("jax_compilation_cache_dir", {str(jax.config.jax_compilation_cache_dir)!r})
from rlax_llm.commands.control.program import ControlSettings
from rlax_llm.commands.control.phase import ControlPhase
from rlax_llm.commands.control.run import run_control
assert len(jax.devices()) == 2
seen = []
init = ControlPhase.init
ControlPhase.init = lambda *a: seen.append(init(*a)) or seen[-1]
run_control(ControlSettings.of(**eval(sys.argv[1])))
assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(seen[0])), "on both devices"
"""
    out = str(whole.path.parent / "two")
    settings = {name: x for name, x in flat(TINY.changed(eval_steps=0, out=out)).items() if x is not None}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, repr(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for got, wanted in zip(numbers(RunDirectory.reopen(out)), numbers(whole), strict=True):
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            if isinstance(value, float):
                assert got[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    assert json.loads(RunDirectory.reopen(out).summary_path.read_text())["devices"] == "2 cpu"


def test_a_chunk_ends_where_it_is_told_and_its_keys_follow_from_the_iteration():
    """Against the loop written out."""
    program = control_config.build(TINY)
    key, start = jax.random.key(3), jax.jit(program.init)(jax.random.key(0))
    advance = jax.jit(chunk(program, 4))
    state, metrics, bad = advance(start, key, jnp.int32(2), jnp.int32(3))
    step, expected, returns = jax.jit(program.step), start, []
    for iteration in (2, 3, 4):
        expected, found = step(expected, jax.random.fold_in(key, iteration))
        returns.append(float(found["episode_return"]))
    for got, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["episode_return"][:3], returns, rtol=1e-5)
    assert metrics["episode_return"][3] == 0 and int(bad.parameters) == int(bad.rewards) == -1


def test_of_a_chunk_episodes_count_alike():
    metrics = {
        "episodes": np.array([[2, 0, 1], [0, 0, 0]]),
        "episode_return": np.array([[1.0, np.nan, 4.0], [np.nan] * 3]),
        "episode_length": np.array([[1.0, np.nan, 4.0], [np.nan] * 3]),
        "accepted": np.array([[True, False, True], [True] * 3]),
    }
    found = per_seed(metrics)
    assert found["episode_return"][0] == 2 and math.isnan(found["episode_return"][1])
    assert found["accepted"].tolist() == pytest.approx([2 / 3, 1.0])
    assert found["episodes"].tolist() == [3, 0]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 30, 127])
def test_student_quantile(degrees, confidence):
    assert student_quantile(degrees, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees))


def test_spread():
    values = np.random.default_rng(0).normal(size=9)
    low, high = stats.t.interval(0.9, 8, values.mean(), stats.sem(values))
    assert spread(values, 0.9).interval == pytest.approx((low, high))
    assert spread([2.0]).mean == 2.0 and math.isnan(spread([2.0]).std)
    assert math.isnan(spread([]).mean) and math.isnan(spread([math.nan]).interval[0])


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("seeds", [1, 3])
def test_any_number_of_rows_and_seeds_gives_a_figure(tmp_path, rows, seeds):
    values = [None, *map(float, range(seeds - 1))]
    row = {"episode_return": 1.0, "episode_return_interval": [None, None], "episode_return_seeds": values}
    row |= {"entropy": None, "entropy_interval": [0.0, 1.0], "kl": 1.0, "kl_interval": [0.5, 1.5], "kl_old": 0.1}
    metrics = [{"step": i, "environment_steps": 10 * i, **row} for i in range(rows)]
    control_curves.draw_control_curves(tmp_path / "curves.png", metrics, "control")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 100


def test_what_cannot_be_drawn_is_said_before_the_run(tmp_path):
    config = ControlSettings.of(env="probe:time_limit", render=True, out=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="cannot render probe:time_limit; leave render out, or take one of"):
        run_control(config)
    assert not (tmp_path / "a").exists()
