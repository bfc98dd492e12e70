"""The loop of every run, with phases that add numbers up: whatever ends it, going on gives the same bytes."""

import itertools
import json
import shlex
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from rlax_llm.host import checkpoints, session
from rlax_llm.host.best import Measure
from rlax_llm.host.endings import report
from rlax_llm.host.failures import NotFinite, RunFailed
from rlax_llm.host.phase import Done, Evaluation, Phase
from rlax_llm.host.run import Plan, run_phases
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import KEEPING, Keeping, Session
from rlax_llm.host.time_limit import TimeLimit

WARM, STEPS = 3, 6


class State(NamedTuple):
    params: Any
    moment: Any


def record(completion):
    return {"prompt": "", "completion": completion, "reward": 0.0, "length": 1, "truncated": False}


class Adding(Phase):
    """Adds its number and what it remembers to the parameters; what it remembers lies outside the state."""

    columns = ()

    def __init__(self, title="main", chunk=1):
        self.title, self.chunk = title, chunk
        self.memory = 0
        self.evaluations = 0

    def init(self, params):
        return State(params, jnp.zeros(()))

    def begin(self, state, references):
        self.references = references

    def step(self, state, index):
        reference = self.references(state.params, 2) if self.title == "main" and self.chunk == 1 else 0.0
        self.memory += index
        moment = 0.5 * state.moment + index
        params = state.params + moment + self.memory + 0.1 * reference
        rows = [record(str(index))] if self.title == "main" else []
        return Done(State(params, moment), {"loss": float(params)}, rows, self.chunk)

    def evaluate(self, state):
        self.evaluations += 1
        value = float(state.params)
        return Evaluation({"held_out": value}, lambda: [record(f"held out {value:.6f}")])

    def export(self, state, path):
        path.mkdir(exist_ok=True)
        (path / "numbers.json").write_text(json.dumps([self.title, float(state.params)]))

    def keep(self, place, position):
        place.mkdir(parents=True, exist_ok=True)
        (place / f"memory-{self.title}-{position}").write_text(str(self.memory))

    def load(self, place, position):
        self.memory = int((place / f"memory-{self.title}-{position}").read_text())


PLAN = Plan(STEPS, eval_every=2)


def ran(out, resume=False, warm=True, plan=PLAN, phase=None, save_every=1, keeping=KEEPING):
    phase = Adding() if phase is None else phase
    place = str(out)
    session = Session(
        "grpo",
        {"seed": 0},
        out=place,
        resume=place if resume else None,
        save_every=save_every,
        warm_start_steps=WARM if warm else 0,
        keeping=keeping,
    )
    with session.running(dict, lambda path, metrics: None) as stop:
        run_phases(session, phase, plan, jnp.float32(1), stop, Adding("warm") if warm else None)
    return session.directory


def written(directory):
    """All that a run computes, without its clock."""
    rows = [{name: x for name, x in row.items() if name != "wall_seconds"} for row in directory.metrics()]
    state = checkpoints.read_manifest(directory.checkpoints_path / str(WARM + STEPS))
    model = (directory.model_path / "numbers.json").read_bytes()
    return rows, directory.completions_path.read_bytes(), state, model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(ran(tmp_path_factory.mktemp("whole") / "run"))


def test_what_a_run_writes(whole):
    rows, completions, _, model = whole
    assert [row["step"] for row in rows] == list(range(1 - WARM, STEPS + 1))
    assert [row["step"] for row in rows if "held_out" in row] == [0, 2, 4, 6]
    steps = [json.loads(line)["step"] for line in completions.splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 6], "what was held out is written at the beginning and at the end"
    assert json.loads(model)[0] == "main"


def deaths(save_every):
    """Where a run that checkpoints so often can be killed: the method, and an argument of the call or its count."""
    saved = [step for step in range(1, WARM + STEPS + 1) if step % save_every == 0 or step == WARM + STEPS]
    return [
        *((RunDirectory, "log_metrics", step, save_every) for step in range(1 - WARM, STEPS + 1)),
        *((RunDirectory, "log_completions", count, save_every) for count in range(1, STEPS + 2)),
        *((checkpoints.Writer, "save", position, save_every) for position in saved),
        *((checkpoints, "_write_manifest", position, save_every) for position in saved),
        *((Adding, "keep", position, save_every) for position in saved),
        *((Adding, "step", index, save_every) for index in range(STEPS)),
    ]


@pytest.mark.parametrize(("place", "name", "number", "save_every"), [*deaths(1), *deaths(2)])
def test_a_run_that_is_killed_anywhere_gives_the_bytes_of_an_unbroken_one(
    whole, tmp_path, monkeypatch, place, name, number, save_every
):
    method, calls = getattr(place, name), 0

    def kill(*arguments, **named):
        nonlocal calls
        calls += 1
        if number in arguments or (name == "log_completions" and calls == number):
            raise KeyboardInterrupt
        return method(*arguments, **named)

    out = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, name, kill)
        ran(out, save_every=save_every)
    assert not (out / "summary.json").exists(), "a second signal writes nothing more"
    assert written(ran(out, resume=True, save_every=save_every)) == whole


def test_what_a_phase_keeps_is_read_after_its_own_steps_alone(tmp_path):
    """At the end of a warm start there is nothing of the main phase to read."""

    class Stopped(Adding):
        def step(self, state, index):
            raise ValueError("no luck")

    out = tmp_path / "run"
    with pytest.raises(ValueError, match="no luck"):
        ran(out, phase=Stopped())
    directory = RunDirectory.reopen(out)
    assert checkpoints.latest(directory.checkpoints_path) == WARM
    assert json.loads((directory.model_path / "numbers.json").read_text())[0] == "warm"
    ran(out, resume=True)


def test_the_command_that_goes_on_is_one_for_a_shell(tmp_path):
    new = Session("reward", {}, out=str(tmp_path / "my run"), warm_start_steps=0)
    with new.running(dict, lambda *_: None):
        assert shlex.split(report(new, 5))[-2:] == ["--resume", str(tmp_path / "my run")]


def test_the_last_line_says_a_graded_reward_beside_the_accuracy(tmp_path):
    new = Session("grpo", {}, out=str(tmp_path / "run"), warm_start_steps=0)
    with new.running(dict, lambda *_: None):
        new.directory.log_metrics(0, {"held_out_accuracy": 0.5, "held_out_reward": 0.5})
        assert report(new, 5).startswith("held-out accuracy 0.500 → 0.500, 0 steps in ")
        new.directory.log_metrics(1, {"held_out_accuracy": 0.5, "held_out_reward": -1.0})
        assert report(new, 5).startswith("held-out accuracy 0.500 → 0.500, held-out reward 0.500 → -1.000, 0 steps in ")


def test_chunks_go_on_where_they_ended_and_nothing_is_evaluated_unless_asked(tmp_path):
    phase = Adding(chunk=4)
    directory = ran(tmp_path / "run", warm=False, plan=Plan(8, eval_every=None), phase=phase, save_every=3)
    assert [row["step"] for row in directory.metrics()] == [4, 8] and phase.evaluations == 0
    assert checkpoints.steps(directory.checkpoints_path) == [4, 8], "the first look after a multiple of save_every"


def test_a_number_that_is_not_finite_names_command_and_files(tmp_path):
    class Diverging(Adding):
        def step(self, state, index):
            if index == 2:
                raise NotFinite("the loss of step 3 is not finite.")
            return super().step(state, index)

    with pytest.raises(
        RunFailed, match=r"^grpo: the loss of step 3 is not finite\. .*is the model after step 2, the l"
    ):
        ran(tmp_path / "run", phase=Diverging())
    assert [row["step"] for row in RunDirectory.reopen(tmp_path / "run").metrics()][-1] == 2


class Peaking(Adding):
    """Measures of its steps are best at step 3, and again as good at step 5."""

    def step(self, state, index):
        done = super().step(state, index)
        return done._replace(metrics={**done.metrics, "score": [0.0, 2.0, 4.0, float("nan"), 4.0, 1.0][index]})


def exported(directory):
    return json.loads((directory.model_path / "numbers.json").read_text())[1]


@pytest.mark.parametrize("killed_at", [None, 3, 4, 5])
def test_the_best_is_kept_and_written_as_the_model(tmp_path, killed_at):
    """Among the first of equals, beside as many of the last as are asked for, also over a kill and a resume."""

    class Killed(Peaking):
        def step(self, state, index):
            if index == killed_at:
                raise KeyboardInterrupt
            return super().step(state, index)

    keeping, out = Keeping(1, Measure.of("score")), tmp_path / "run"
    if killed_at is not None:
        with pytest.raises(KeyboardInterrupt):
            ran(out, phase=Killed(), keeping=keeping, save_every=2)
        assert WARM + 3 in checkpoints.steps(out / "checkpoints")
    directory = ran(out, killed_at is not None, phase=Peaking(), keeping=keeping, save_every=2)
    assert checkpoints.steps(directory.checkpoints_path) == [WARM + 3, WARM + STEPS]
    loss = {row["step"]: row["loss"] for row in directory.metrics() if row["step"] > 0}
    assert exported(directory) == loss[3]
    assert exported(ran(tmp_path / "other", phase=Peaking(), save_every=2)) == loss[STEPS]


def test_a_best_that_nothing_measures_is_told_after_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"grpo: best is 'held_oot', and no metric .* did you mean 'held_out'\?"):
        ran(tmp_path / "run", keeping=Keeping(best=Measure.of("held_oot")))
    assert RunDirectory.reopen(tmp_path / "run").metrics()[-1]["step"] == 1


@pytest.mark.parametrize("warm", [True, False])
def test_a_held_out_best_that_nothing_measures_is_told_before_the_first_step(tmp_path, warm):
    class Named(Adding):
        def evaluate(self, state):
            return Evaluation({"held_out_score": float(state.params)})

    with pytest.raises(ValueError, match=r"best is 'held_out_scor', .* did you mean 'held_out_score'\?"):
        ran(tmp_path / "run", warm=warm, phase=Named(), keeping=Keeping(best=Measure.of("held_out_scor")))
    assert max(row["step"] for row in RunDirectory.reopen(tmp_path / "run").metrics()) == 0


def test_a_run_without_a_whole_checkpoint_begins_anew_and_says_so(tmp_path, capsys):
    class Ending(Adding):
        def step(self, state, index):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "run", warm=False, phase=Ending(), save_every=0)
    assert not checkpoints.steps(tmp_path / "run" / "checkpoints")
    ran(tmp_path / "run", resume=True, warm=False)
    assert "has no whole checkpoint yet: the run begins anew." in capsys.readouterr().out


def test_a_time_limit_ends_with_a_checkpoint_to_go_on_from(whole, tmp_path, monkeypatch, capsys):
    """Before the step that would end behind it; a process that goes on has the whole time again."""
    hours = itertools.count()
    monkeypatch.setattr(session, "TimeLimit", lambda limit: TimeLimit(limit, lambda: 3600.0 * next(hours)))
    out, keeping, reached = tmp_path / "run", Keeping(max_hours=4.0), []
    for resume in (False, True, True):
        directory = ran(out, resume, keeping=keeping, save_every=0)
        reached.append(checkpoints.latest(directory.checkpoints_path))
    assert reached[-1] > reached[0] > 0 and "Time limit: max_hours is 4.0" in capsys.readouterr().err
    assert written(ran(out, True)) == whole
