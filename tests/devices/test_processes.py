"""Two processes of four devices leave what one of eight leaves, fail together, and none waits for one that is gone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlax_llm.commands import processes
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.sft.run import run_sft
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.core.processes import check_alike, done_by_all, gathered, share
from rlax_llm.host import checkpoints
from rlax_llm.host.peers import PEERS
from tests.devices import together
from tests.devices.run_records import TOLERANCE, check_same, numbers

SECONDS = 300


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def begun(words: list[str], index: int, **more: str) -> subprocess.Popen[str]:
    shared = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    flags = {"XLA_FLAGS": shared, "JAX_PLATFORMS": "cpu"}
    environment = os.environ | flags | {"PROCESS_INDEX": str(index)} | more
    return subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class Ended:
    """Two processes that have ended: where they wrote, and what each saw, said and left with."""

    def __init__(self, directory: Path):
        port = free_port()
        # Later runs compile nothing that an earlier one has.
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(directory / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        script = [str(Path(together.__file__)), str(directory), port]
        both = [begun(script, index, **cache) for index in (0, 1)]
        said = [process.communicate(timeout=SECONDS) for process in both]
        self.directory, self.errors = directory, [error for _, error in said]
        self.output = [out for out, _ in said]
        self.codes = [process.returncode for process in both]
        self.seen = [self._read(directory / f"{index}.json") for index in (0, 1)]

    def _read(self, path: Path) -> dict[str, Any]:
        assert path.exists(), self.errors
        return json.loads(path.read_text())


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(tmp_path_factory.mktemp("together"))


def test_adapters_over_a_model_that_is_read_in_parts_learn_as_those_of_one_process(ended, tmp_path):
    assert ended.seen[0]["devices"] == ended.seen[1]["devices"] == [8, 4]
    model = str(ended.directory / "signalled" / "model")
    alone = run_sft(SftSettings.of(**together.SFT, model=model, out=str(tmp_path / "sft"))).path
    check_same(ended.directory / "sft", alone)


def test_a_signal_to_one_ends_both_after_the_step_and_one_process_goes_on_as_if_nothing_was(ended, tmp_path):
    assert [seen["stopped_by"] for seen in ended.seen] == [15, 15]
    stopped = tmp_path / "stopped"
    shutil.copytree(ended.directory / "signalled", stopped)
    assert json.loads((stopped / "summary.json").read_text())["steps"] == 2
    assert checkpoints.latest(stopped / "checkpoints") == 2
    given = together.rewarded("different_characters")
    whole = run_grpo(GrpoSettings.of(**given | {"out": str(tmp_path / "whole"), "mesh": "data=8"})).path
    half = numbers(stopped)
    for got, wanted in zip(half, numbers(whole)[: len(half)], strict=True):
        assert got == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)
    # On another mesh and another number of processes.
    run_grpo(GrpoSettings.of(**given | {"resume": str(stopped), "mesh": "fsdp=4,tensor=2"}))
    check_same(stopped, whole)
    told = [(path / "completions.jsonl").read_text() for path in (stopped, whole)]
    assert told[0] == told[1]


def test_all_say_the_same_of_what_one_fails_with(ended):
    for name, sentence in (
        ("disagreeing", "grpo: seed is 0 on process 0 and 1 on process 1; give all processes the same settings."),
        ("unlucky", "reward 'unlucky' returned 'nothing' for row 8, wanted a number or None."),
    ):
        assert [seen[name] for seen in ended.seen] == [sentence, sentence]


def test_where_a_reward_fails_on_all_rows_of_one_process_the_others_go_on(ended):
    assert [seen["half"] for seen in ended.seen] == ["", ""]
    counted = json.loads((ended.directory / "half" / "metrics.jsonl").read_text().splitlines()[-1])
    assert counted["reward_failures"] == 8


def test_one_that_dies_ends_the_other_with_a_sentence(ended):
    assert ended.codes == [1, -9]
    assert "error: process 1 has ended without a word; process 0 ends too. Go on with --resume." in ended.errors[0]
    assert "grpo: 2 processes with 8 devices: data 2 · fsdp 2 · tensor 2\n" in ended.output[0]
    assert "grpo 1/3" in ended.output[0] and "grpo" not in ended.output[1]


def test_the_first_ends_the_other_too():
    wait = (
        "import os, sys, time\n"
        "from rlax_llm.commands.grpo.settings import GrpoSettings\n"
        "from rlax_llm.commands.processes import processed\n"
        "index = int(os.environ['PROCESS_INDEX'])\n"
        "with processed(GrpoSettings.of(coordinator=sys.argv[1], process_id=index, processes=2)):\n"
        "    os.kill(os.getpid(), 9) if index == 0 else time.sleep(100)\n"
    )
    place = f"127.0.0.1:{free_port()}"
    first, second = (begun(["-c", wait, place], index) for index in (0, 1))
    first.communicate(timeout=SECONDS)
    _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == 1
    assert "error: process 0 has ended without a word; process 1 ends too." in errors


def test_one_process_is_all():
    assert gathered({"x": float("inf")}) == [{"x": float("inf")}]
    assert share(7) == slice(0, 7)
    with pytest.raises(OSError, match="no room"):
        done_by_all(lambda: (_ for _ in ()).throw(OSError("no room")), OSError)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"processes": 2}, "processes is 2 without coordinator and process_id; give all three"),
        ({"coordinator": "a:1", "processes": 2}, "process_id is missing"),
        ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "process_id is 2, wanted one below processes, 2"),
        ({"coordinator": "a", "processes": 2, "process_id": 0}, "coordinator is 'a', wanted HOST:PORT"),
    ],
)
def test_processes_are_given_whole(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        GrpoSettings.of(**given)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = GrpoSettings.of(coordinator=place, processes=2, process_id=0)
        with pytest.raises(ValueError, match=f"process 0 cannot listen at the port of coordinator {place}"):
            run_grpo(settings)


def test_those_that_do_not_come_are_waited_for_so_long(monkeypatch):
    monkeypatch.setattr(PEERS, "alone", False)
    monkeypatch.setattr(processes, "_SECONDS_BEFORE_A_WORD", 0.01)
    monkeypatch.setattr(processes, "_SECONDS_TO_JOIN", 0.02)
    here = threading.Event()
    with pytest.raises(ValueError, match="not all have come at a:1 in 0 seconds"):
        processes._done_within(here.wait, "a:1")
    assert PEERS.alone
    here.set()
    processes._done_within(here.wait, "a:1")
    assert not PEERS.alone


def test_rows_that_differ_between_processes_are_told(monkeypatch):
    sums = []
    monkeypatch.setattr("rlax_llm.core.processes.several", lambda: True)
    monkeypatch.setattr("rlax_llm.core.processes.gathered", lambda value: sums.append(value) or sums)
    check_alike("rows.jsonl", [{"prompt": "1+1=", "answer": np.int64(2)}])
    check_alike("rows.jsonl", [{"prompt": "1+1=", "answer": np.int64(2)}])
    with pytest.raises(ValueError, match="is not the same on processes 0 and 2; give all"):
        check_alike("rows.jsonl", [{"prompt": "1+1=", "answer": np.int64(3)}])
