"""``rlax-llm grpo`` whose completions a server draws: weights handed over, versions kept, corrections on."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
from engine_server import EngineServer, serving

from rlax_llm.cli.main import main
from rlax_llm.commands import serving as servers
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.generation.server import Server
from rlax_llm.models.loading import load_model

TINY = GrpoSettings.of(
    task="arithmetic,largest=9",
    batch_size=4,
    group_size=4,
    steps=3,
    warm_start_steps=0,
    eval_every=0,
    eval_size=4,
    save_every=1,
    learning_rate=1e-2,
    schedule="constant",
    reward="format=[0-9]*",  # of which an untrained model gives some
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(servers, "Server", partial(Server, waits=()))


def rows_of(directory):
    return [row for row in directory.metrics() if row["step"] > 0]


def policy_steps(directory):
    lines = map(json.loads, (directory.path / "completions.jsonl").read_text().splitlines())
    return {(line["step"], bool(line.get("held_out"))): line["policy_step"] for line in lines}


@pytest.mark.parametrize(
    ("changes", "stale"), [({}, [0, 0, 0]), ({"sampler_every": 2, "lora_rank": 2, "temperature": 0.8}, [0, 1, 0])]
)
def test_a_server_draws_from_the_weights_it_was_given(tmp_path, changes, stale):
    answers = EngineServer()  # it has no weights of its own
    with serving(answers) as url:
        settings = TINY.changed(out=str(tmp_path / "run"), sampler_url=f"{url}/v1/", **changes)
        directory = run_grpo(settings)
    rows = rows_of(directory)
    assert settings.learning.correction == "token"
    assert [row["sampler/staleness"] for row in rows] == stale
    for row, age in zip(rows, stale, strict=True):
        # The learner's numbers are the server's, where it has the learner's weights.
        assert (row["sampler/kl_k3"] < 1e-6) == (age == 0)
        assert (abs(row["sampler/ratio_max"] - 1) < 1e-3) == (age == 0)
        assert row["kl_old"] < 1e-6
    given = policy_steps(directory)
    assert [given[step, False] for step in (1, 2, 3)] == [index - age for index, age in enumerate(stale)]
    assert given[0, True] == 0 and given[3, True] == 3  # an evaluation measures the policy as it is
    lines = map(json.loads, (directory.path / "rollouts.jsonl").read_text().splitlines())
    assert [line["policy_steps"] for line in lines] == [[index - age] * 4 for index, age in enumerate(stale)]
    # What it was given last is what the run has written.
    assert answers.model is not None
    written = load_model(str(directory.path / "model")).params
    np.testing.assert_array_equal(answers.model.params["embed"], written["embed"])
    assert answers.asked.count("/collective_rpc") == answers.asked.count("/reset_prefix_cache") == 2 + (2 - max(stale))


def test_a_run_whose_server_goes_away_is_gone_on_with_elsewhere(tmp_path, capsys):
    answers, path = EngineServer(), str(tmp_path / "run")
    words = ["--task", "arithmetic,largest=9", "--batch-size", "4", "--group-size", "4", "--steps", "2"]
    words += ["--warm-start-steps", "0", "--eval-every", "0", "--eval-size", "0", "--save-every", "1"]

    def answer(where, body):
        gone = where == "/v1/completions" and answers.asked.count("/collective_rpc") == 2
        return (500, {"error": {"message": "gone"}}) if gone else answers(where, body)

    with serving(answer) as url:
        assert main(["grpo", *words, "--sampler-url", url, "--out", path]) == 2
    assert "it answers 500 (gone), tried 1 times" in capsys.readouterr().err
    with serving(EngineServer()) as url:
        assert main(["grpo", "--resume", path, "--sampler-url", url]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-2:] == [1, 2]


def test_any_command_can_make_a_server_read_its_weights(tmp_path):
    answers = EngineServer()
    copy = f"import shutil, sys; shutil.copytree(sys.argv[1], {str(tmp_path / 'copy')!r}, dirs_exist_ok=True)"

    def answer(where, body):
        if where == "/v1/models":
            return 200, {"data": [{"id": "policy", "owned_by": "somebody"}]}
        answers.model = load_model(str(tmp_path / "copy"))
        return answers(where, body)

    with serving(answer) as url:
        settings = TINY.changed(out=str(tmp_path / "run"), sampler_url=url, steps=1, eval_size=0)
        with pytest.raises(ValueError, match="calls itself 'somebody', wanted vllm or sglang"):
            run_grpo(settings)
        reload = f"{shlex.quote(sys.executable)} -c {shlex.quote(copy)} {{path}}"
        place = str(tmp_path / "a place")
        (row,) = rows_of(run_grpo(settings.changed(sampler_reload=reload, sampler_directory=place)))
    assert row["sampler/kl_k3"] < 1e-6 and (tmp_path / "a place" / "model" / "config.json").exists()
    with pytest.raises(ValueError, match=r"the command ended with 3 \(no such server\)"):
        servers.run_reload("echo no such server >&2; exit 3; {path}", tmp_path)


def test_a_server_that_stays_with_its_weights_is_told_of_once(tmp_path, capsys):
    answers = EngineServer()
    first = []

    def answer(where, body):
        if where == "/collective_rpc" and first:
            return 200, {}
        first.extend([where] * (where == "/collective_rpc"))
        return answers(where, body)

    with serving(answer) as url:
        rows = rows_of(run_grpo(TINY.changed(out=str(tmp_path / "run"), sampler_url=url, eval_size=0)))
    assert [row["sampler/kl_k3"] > 0.05 for row in rows] == [False, True, True]
    assert capsys.readouterr().err.count("look whether the server reads the weights that it is given") == 1
    assert rows[1]["sampler/ratio_max"] > 2 > rows[1]["sampler/correction_mean"]


@pytest.mark.parametrize(
    ("maker", "answers", "told"),
    [
        ("vllm", {"/collective_rpc": (404, {"detail": "Not Found"})}, "start it with VLLM_SERVER_DEV_MODE=1"),
        ("vllm", {"/reset_prefix_cache": (200, {"success": False})}, "/reset_prefix_cache: it failed"),
        ("sglang", {"/update_weights_from_disk": (200, {"success": False, "message": "no file"})}, "no file"),
        ("sglang", {}, None),
    ],
)
def test_a_server_that_does_not_take_the_weights_is_named(tmp_path, maker, answers, told):
    with serving(lambda path, body: answers.get(path, (200, {"success": True}))) as url:
        reload = servers.reloading(Server(url), maker)
        with nullcontext() if told is None else pytest.raises(ValueError, match=told):
            reload(tmp_path)


def test_what_is_no_server_is_named_before_anything_is_drawn(tmp_path):
    none = (200, {"data": []})
    with serving(lambda path, body: none) as url, pytest.raises(ValueError, match="/v1/models: it lists no model"):
        run_grpo(TINY.changed(out=str(tmp_path / "run"), sampler_url=url))
    nowhere = "http://localhost:1"
    with pytest.raises(ValueError, match="takes a bias from −100 to 100, got -inf of token 3; change logit_bias"):
        run_grpo(TINY.changed(out=str(tmp_path / "run"), sampler_url=nowhere, logit_bias="3=-inf"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sampler_every": 2}, "sampler_every is given without sampler_url"),
        ({"sampler_url": "localhost:8000"}, "wanted the address of a server, as http://localhost:8000"),
        ({"sampler_url": "http://a", "sampler_reload": "touch it"}, "wanted a command with {path} in it"),
        ({"sampler_url": "http://a", "sampler_every": 0}, "sampler_every is 0, wanted at least 1"),
        ({"sampler_url": "http://a", "sampler_dtype": "bfloat16"}, "sampler_dtype is given with sampler_url"),
        ({"sampler_url": "http://a", "cache_dtype": "int8"}, "cache_dtype is given with sampler_url"),
        ({"sampler_url": "http://a", "recipe": "trpo"}, "recipe trpo has no sampler_url"),
        ({"sampler_url": "http://a", "speculate": "3"}, "speculate is given with sampler_url"),
        ({"sampler_url": "http://a", "top_k": 5}, "top_k is given with sampler_url, whose server does not say what"),
        ({"sampler_url": "http://a", "top_p": 0.9}, "top_p is given with sampler_url"),
        ({"sampler_url": "http://a", "min_p": 0.1}, "min_p is given with sampler_url"),
        ({"sampler_url": "http://a", "presence_penalty": 0.1}, "presence_penalty is given with sampler_url"),
        ({"sampler_url": "http://a", "min_new_tokens": 1}, "min_new_tokens is given with sampler_url"),
        ({"sampler_url": "http://a", "stop": ("a",)}, "stop is given with sampler_url"),
        ({"sampler_url": "http://a", "pattern": "a*"}, "pattern is given with sampler_url"),
    ],
)
def test_settings_of_a_server_that_contradict_each_other_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        GrpoSettings.of(**settings)
    assert GrpoSettings.of(sampler_url="http://a", correction="none").learning.correction == "none"
    assert GrpoSettings.of().learning.correction == "none"
