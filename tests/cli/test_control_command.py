"""``rlax-llm control`` as a person meets it: mistakes are one sentence, and settings survive the way through files."""

import json

import pytest
import yaml

from rlax_llm.cli.configuration import parse
from rlax_llm.cli.main import main
from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.settings import as_dict
from rlax_llm.host.run_directory import RunDirectory

SMALL = ("--seeds", "1", "--steps", "16", "--environments", "2", "--horizon-steps", "8", "--hidden", "4")


def _parse(*words):
    return parse(ControlSettings, words, "")


def test_flags_of_every_kind():
    config = _parse(
        *("--recipe", "reinforce", "--weight", "gae", "--hidden", "8", "16", "--shared", "4", "--kl-limit", "0.1"),
        *("--no-normalize-rewards", "--render", "--activation", "relu"),
    )
    assert config == ControlSettings.of(
        recipe="reinforce",
        weight="gae",
        hidden=(8, 16),
        shared=(4,),
        kl_limit=0.1,
        normalize_rewards=False,
        render=True,
        activation="relu",
    )


@pytest.mark.parametrize("dump", [yaml.safe_dump, json.dumps])
def test_a_written_configuration_gives_the_same_run(tmp_path, dump):
    config = ControlSettings.of(recipe="trpo", env="Pendulum-v1", hidden=(8,))
    path = tmp_path / "config.txt"
    path.write_text(dump(json.loads(json.dumps(as_dict(config)))))
    assert _parse("--config", str(path), "--out", "x") == config.changed(config=str(path), out="x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hidden: 64", r"hidden is '64', wanted a list of whole numbers, such as \[64, 64\]\."),
        ("hidden: [64, a]", r"hidden is \['64', 'a'\], wanted a list of whole numbers"),
        ("weight: best", "weight is 'best', wanted one of total_return, return_to_go, "),
        ("learning_rate: fast", "learning_rate is 'fast', wanted a number"),
        ("clip: 0.1", "control has no setting 'clip'; did you mean "),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, line, message):
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(ValueError, match=message):
        _parse("--config", str(tmp_path / "a.yaml"))


def test_resuming_keeps_all_settings_but_the_steps(tmp_path):
    saved = ControlSettings.of(env="probe:time_limit")
    out = str(tmp_path / "run")
    RunDirectory.create(out, as_dict(saved))
    config = _parse("--resume", out, "--steps", "1000000")
    assert (config.run.steps, config.run.resume, config.network.hidden) == (1_000_000, out, (64, 64))
    with pytest.raises(ValueError, match=r"--seeds 3 conflicts with the run in .*, where it is 8; only --steps,"):
        _parse("--resume", out, "--seeds", "3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--env", "Cartpole"), "make: there is no environment 'Cartpole'; did you mean 'CartPole-v1'"),
        (("--env", "CartPole-v2"), "'CartPole-v1'"),
        (("--recipe", "trop"), "control: there is no recipe 'trop'; did you mean 'trpo'"),
        (("--seeds", "0"), "control: --seeds is 0, wanted at least 1."),
        (("--minibatches", "3"), "control: --minibatches is 3, wanted a divisor of the 512 steps of a rollout."),
        (("--steps", "1"), "control: --steps is 1, wanted at least one rollout"),
        (("--memory", "8", "--recipe", "trpo"), "control: --memory is 8 with recipe trpo"),
        (("--recipe", "trpo", "--eps", "0.1"), "control: --eps is given, and recipe trpo does not read it"),
        (("--env", "probe:time_limit", "--render"), "control: cannot render probe:time_limit"),
        (("--resume", "no/such/run"), "no/such/run is not a directory"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLAX_LLM_TRACEBACK", raising=False)
    assert main(["control", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and message in shown
    assert not list(tmp_path.iterdir())


def test_a_whole_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    words = ["control", "--env", "probe:time_limit", *SMALL, "--eval-steps", "0", "--out", str(tmp_path / "a")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "ppo · probe:time_limit 1/1" in shown and "1 iterations of 1 seeds" in shown
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["finished"]
    assert main(words) == 2
    assert "already holds a run" in capsys.readouterr().err
