"""Each tracker against its real package: a run, and one that goes on with it, as the package reads them."""

import json
import sqlite3
import struct

import jax.numpy as jnp
import pytest
from google.protobuf.message import Message
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from rlax_llm.host.curves import draw_curves
from rlax_llm.host.phase import Done, Phase
from rlax_llm.host.run import Plan, run_phases
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import Keeping, Session
from rlax_llm.host.tracking import trackers
from rlax_llm.host.tracking.registry import TRACKERS, Named, tracker_names
from rlax_llm.host.tracking.tracker import TrackedRun

WARM, STEPS = 2, 4
SETTINGS = {"command": "grpo", "learning_rate": 0.5, "data": None}


class Counting(Phase):
    """Adds 1 at every step; writes a model that is a file."""

    columns = ()

    def __init__(self, title):
        self.title = title

    def init(self, params):
        return {"params": params}

    def step(self, state, index):
        value = state["params"] + 1
        metrics = {"reward": float(value), "completions/mean_length": 3, "kl": float("nan"), "pass@4": 0.5}
        row = {"prompt": [{"role": "user", "content": "1+2="}], "completion": "3|\n", "reward": float(value)}
        return Done({"params": value}, metrics, [{**row, "length": 1, "truncated": False}])

    def policy(self, state):
        return state["params"]

    def export(self, state, path):
        path.mkdir(exist_ok=True)


def run(place, names, steps=STEPS, resume=False, fail=False):
    where = {"resume": str(place)} if resume else {"out": str(place)}
    keeping = Keeping(track=names)
    session = Session("grpo", SETTINGS, save_every=1, warm_start_steps=WARM, keeping=keeping, **where)

    def draw(path, metrics):
        draw_curves(path, metrics, "grpo")

    with session.running(lambda: {"command": "grpo", "reward": session.step}, draw) as stop:
        run_phases(session, Counting("main"), Plan(steps, None), jnp.zeros(()), stop, Counting("warm"))
        if fail:
            raise ValueError("a reason")
    return session


EVERY_STEP = [(step, float(step + WARM)) for step in range(1 - WARM, STEPS + 1)]
TABLES = STEPS + 1  # of step 0 and of all that follow


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Two steps, and then the rest in a session that goes on, with all four trackers."""
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(root / "trackio"))
        for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
            patch.delenv(name, raising=False)
        run(root / "a", tuple(TRACKERS), steps=2)
        session = run(root / "a", tuple(TRACKERS), resume=True)
    return root / "a", session


def test_tensorboard_s_event_files_hold_every_step_once_and_the_texts(tracked):
    place, _ = tracked
    found = EventAccumulator(str(place / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    found.Reload()
    tags = found.Tags()
    assert {"reward", "completions/mean_length", "pass@4", "wall_seconds"} <= set(tags["scalars"])
    assert "kl" not in tags["scalars"]
    assert [(event.step, event.value) for event in found.Scalars("reward")] == EVERY_STEP
    assert tags["images"] == ["curves"]
    texts = {
        tag: [event.tensor_proto.string_val[0].decode() for event in found.Tensors(tag)]
        for tag in ("settings", "completions", "model_card", "summary")
    }
    assert "| learning_rate | 0.5 |" in texts["settings"][0] and len(texts["settings"]) == 1
    assert len(texts["completions"]) == TABLES
    assert texts["completions"][-1].splitlines()[0] == "| prompt | completion | reward | length | truncated |"
    assert "| 3\\| ⏎  |" in texts["completions"][-1]
    assert texts["model_card"][-1] == (place / "model" / "README.md").read_text()


def records(path):
    """The records of a ``.wandb`` file: parts with a header of 7 bytes, none across a block of 32 KiB."""
    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            record: Message = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_wandb_is_offline_and_its_two_parts_are_one_run(tracked):
    place, _ = tracked
    files = sorted(place.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    rows, settings = [], {}
    for file in files:
        for record in records(file):
            if record.HasField("history"):
                items = record.history.item
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                rows.append(values)
            if record.HasField("run"):
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert record.run.project == "rlax_llm" and record.run.display_name == "a"
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == EVERY_STEP
    assert settings["learning_rate"] == 0.5
    tables = [table for file in files for table in file.parent.glob("files/media/table/*.json")]
    assert len(tables) == TABLES
    assert json.loads(tables[0].read_text())["columns"][:2] == ["prompt", "completion"]
    assert list(files[1].parent.glob("files/media/images/curves*.png"))
    assert (files[1].parent / "files" / "model_card.md").is_file()


def test_trackio_s_store_holds_every_step(tracked):
    place, _ = tracked
    with sqlite3.connect(place.parent / "trackio" / "rlax_llm.db") as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _, _ in rows}) == 1 and rows[0][0].startswith("a-")
    known = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, found["reward"]) for step, found in known if "reward" in found] == EVERY_STEP
    for name in ("completions", "curves", "model_card"):
        assert any(name in found for _, found in known)


def test_mlflow_s_files_hold_every_step_settings_tables_and_the_end(tracked, monkeypatch):
    place, _ = tracked
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=(place / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("rlax_llm")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "reward")
    assert [(metric.step, metric.value) for metric in history] == EVERY_STEP
    assert found.data.params["learning_rate"] == "0.5" and "pass_4" in found.data.metrics
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a")
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"completions", "curves.png", "README.md", "summary.json"} <= names
    listed = json.loads(found.data.tags["mlflow.loggedArtifacts"])
    assert len(listed) == TABLES and {entry["type"] for entry in listed} == {"table"}


def test_a_run_says_where_it_can_be_seen(tracked):
    place, session = tracked
    lines = session.trackers.lines
    assert lines[0] == f"tensorboard: tensorboard --logdir {place}/tensorboard"
    assert [line.split(":")[0] for line in lines] == ["tensorboard", "wandb", "trackio", "mlflow"]
    assert set(json.loads((place / "tracking.json").read_text())) == set(TRACKERS)


def scalars(place):
    found = EventAccumulator(str(place / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars("reward")]


def test_a_tracker_that_a_resumed_run_adds_is_told_all_steps(tmp_path):
    run(tmp_path / "a", (), steps=2)
    assert not (tmp_path / "a" / "tracking.json").exists()
    run(tmp_path / "a", ("tensorboard",), resume=True)
    assert scalars(tmp_path / "a") == EVERY_STEP


def test_a_resumed_run_can_go_on_without_and_its_tracker_misses_nothing_when_it_is_back(tmp_path):
    run(tmp_path / "a", ("tensorboard",), steps=1)
    before = scalars(tmp_path / "a")
    run(tmp_path / "a", tracker_names(["none"]), steps=2, resume=True)
    assert scalars(tmp_path / "a") == before
    assert json.loads((tmp_path / "a" / "tracking.json").read_text()) == {}
    run(tmp_path / "a", ("tensorboard",), resume=True)
    assert sorted({*scalars(tmp_path / "a")}) == EVERY_STEP


def test_a_damaged_tracking_file_ends_no_run(tmp_path, capsys):
    run(tmp_path / "a", ("tensorboard",), steps=1)
    (tmp_path / "a" / "tracking.json").write_text('{"tensorboard": ')
    run(tmp_path / "a", ("tensorboard",), resume=True)
    assert "tracking.json cannot be read; the trackers begin anew, with all steps." in capsys.readouterr().err
    assert sorted({*scalars(tmp_path / "a")}) == EVERY_STEP


class Failing:
    """Fails at one of its functions, by its name."""

    identity, where = "x", "nowhere"

    def __init__(self, run: TrackedRun, at: str):
        self.at = at
        self._fail("begin")

    def _fail(self, name):
        if name == self.at:
            raise RuntimeError("no\nnetwork")

    def log(self, step, scalars):
        self._fail("log")

    def table(self, step, rows):
        self._fail("table")

    def end(self, ended):
        self._fail("end")


@pytest.mark.parametrize("at", ["begin", "log", "table", "end"])
def test_a_failing_tracker_is_told_once_and_the_run_and_the_others_go_on(at, tmp_path, monkeypatch, capsys):
    class Broken(Named):
        def open(self, run):
            return Failing(run, at)

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Broken("wandb", ""))
    session = run(tmp_path / "a", ("wandb", "tensorboard"))
    warning = "warning: the tracker wandb failed (no network); the run goes on without it.\n"
    assert capsys.readouterr().err == warning
    assert session.failed is None and session.step == STEPS
    assert [line.split(":")[0] for line in session.trackers.lines] == ["tensorboard"]
    # The next process begins it anew, with all steps.
    assert json.loads((tmp_path / "a" / "tracking.json").read_text()) == {"tensorboard": "tensorboard"}
    assert scalars(tmp_path / "a") == EVERY_STEP


def test_a_run_that_fails_is_marked_so(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="a reason"):
        run(tmp_path / "a", ("mlflow",), steps=1, fail=True)
    client = MlflowClient(tracking_uri=(tmp_path / "a" / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("rlax_llm").experiment_id])
    assert found.info.status == "FAILED"


def test_a_run_without_trackers_leaves_nothing_of_them(tmp_path):
    session = run(tmp_path / "a", ())
    assert session.trackers.lines == []
    assert not {entry.name for entry in (tmp_path / "a").iterdir()} & {"tracking.json", "tensorboard", "wandb"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("tensorbord",), "track is 'tensorbord', which is no tracker; did you mean 'tensorboard'?"),
        (("wandb", "wandb"), "track has wandb twice; give it once."),
        (("none", "wandb"), "track has none beside wandb; give one or the other."),
        (("comet",), "track is 'comet', which is no tracker; there are tensorboard, wandb, trackio, mlflow."),
    ],
)
def test_names_that_are_wrong(names, said):
    with pytest.raises(ValueError, match="track") as error:
        tracker_names(names)
    assert str(error.value) == said


def test_a_package_that_is_absent_is_told_before_the_run_begins(tmp_path, monkeypatch):
    # What W&B leaves where it ran is a folder of the package's name.
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr("sys.path_importer_cache", {})
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="not installed") as error:
        tracker_names(["wandb"])
    assert str(error.value) == (
        "track is 'wandb', whose package is not installed; pip install 'rlax-llm[wandb]', or leave it out."
    )


def test_names_may_stand_in_one_word():
    assert tracker_names(("mlflow", "wandb, tensorboard")) == ("mlflow", "wandb", "tensorboard")
    assert tracker_names(("none",)) == tracker_names(None) == ()
    assert tracker_names(None) == ()


def test_metrics_of_a_directory_are_what_trackers_read(tmp_path):
    directory = RunDirectory.create(tmp_path / "a", SETTINGS)
    directory.log_metrics(1, {"episode_return_interval": [1.0, float("nan")]})
    assert trackers.scalars(directory.metrics()[0]) == {"episode_return_low": 1.0}
