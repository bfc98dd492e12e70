import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rlax_llm.rewards.calling import FAILED, Reward, RewardError, score
from rlax_llm.rewards.functions import exact_answer
from rlax_llm.rewards.loading import load_reward
from rlax_llm.rewards.pool import RewardPool

SOURCE = """
import os, re, subprocess, sys, time

def act(prompts, completions, **_):
    (text,) = completions
    if text == "sleep":
        time.sleep(600)
    if text == "loop":
        while True:
            pass
    if text == "backtrack":
        re.match("(a+)+$", "a" * 60 + "b")  # holds the interpreter, so that no thread of it runs
    if text == "leave":
        sys.exit(0)
    if text == "exit":
        os._exit(3)
    if text == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open("child", "w") as file:
            file.write(str(child.pid))
        time.sleep(600)
    if text == "two":
        return [1.0, 2.0]
    if text == "jax":
        return [float("jax" in sys.modules)]
    if text == "pid":
        return [os.getpid()]
    if text == "none":
        return [None]
    if text == "said":
        return [(0.25, "close")]
    time.sleep(float(text) / 100)
    return [float(text)]

def graded(prompts, completions, level):
    return [float(value) for value in level]
"""
SCRIPT = """
import os, signal
from rlax_llm.rewards.pool import RewardPool
assert __name__ == "__main__"
pool = RewardPool("own_pool.py:act", 2, 60.0).__enter__()
print(*(worker.process.pid for worker in pool._workers), pool([""], ["1"]), flush=True)
pool([""] * 2, ["backtrack", "child"])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_pool.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(pid, seconds=20.0):
    """Whether a process ends within some seconds; one that nobody waited for has ended too."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def act(texts, workers=2, timeout=60.0, failed=None):
    given = {} if failed is None else {"failed": failed}
    with RewardPool("own_pool.py:act", workers, timeout, **given) as pool:
        return pool([""] * len(texts), texts)


def test_scores_keep_the_order_of_the_rows(folder):
    texts = ["9", "0", "none", "5", "1", "jax", "said"]
    assert act(texts, workers=3) == [9.0, 0.0, None, 5.0, 1.0, 0.0, (0.25, "close")]


def test_rows_that_take_too_long_have_no_score_and_their_workers_are_replaced(folder):
    said = []
    assert act(["sleep", "1", "loop", "2", "3"], timeout=2.0, failed=said.append) == [FAILED, 1.0, FAILED, 2.0, 3.0]
    assert said == [f"reward 'act' took longer than 2 seconds on row {row}." for row in (0, 2)]
    with pytest.raises(RewardError, match="took longer than 1 seconds on row 0, and no other row has a score either"):
        act(["sleep", "loop"], timeout=1.0, failed=said.append)


def test_a_row_that_ends_its_process_has_no_score(folder):
    said = []
    assert act(["1", "exit", "2"], workers=1, failed=said.append) == [1.0, FAILED, 2.0]
    assert said == ["reward 'act' ended its process with exit code 3 on row 1."]
    with pytest.raises(RewardError, match="exit code 3 on row 0"):
        act(["exit"])


def test_an_exception_names_its_row(folder):
    said = []
    assert act(["1", "x", "2"], failed=said.append) == [1.0, FAILED, 2.0]
    reason = "reward 'act' raised ValueError: could not convert string to float: 'x' on row 1."
    assert said == [reason]
    with pytest.raises(RewardError) as caught:
        act(["1", "x", "2"])
    assert str(caught.value) == reason
    with pytest.raises(RewardError, match=r"string to float: 'x' and scored none of the rows \(2\)\."):
        act(["x", "y"], failed=said.append)


def test_a_pool_is_a_reward_like_any_other_and_goes_on_after_an_error(folder):
    said, rows = [], [{"prompt": "", "answer": str(i)} for i in range(3)]
    slow = load_reward("own_pool.py:act")._replace(name="slow", weight=2.0)
    with RewardPool(slow, 2, 60.0, said.append) as pool:
        with pytest.raises(RewardError, match=r"^reward 'slow' returned 2 scores for 1 completions\.$"):
            score([pool.reward], rows, ["sleep", "two", "sleep"], said.append)
        scores = score([pool.reward, Reward("exact", exact_answer)], rows, ["0", "x", "none"], said.append)
    np.testing.assert_array_equal(scores.by_name["slow"], np.array([0, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(scores.total, np.array([1, np.nan, 0], np.float32))
    assert [sentence.split(":")[0] for sentence in said] == ["reward 'slow' raised ValueError"]


def test_columns_reach_the_workers_and_are_checked_before(folder):
    rows = [{"prompt": "", "level": level} for level in (3, 1, 2)]
    with RewardPool("own_pool.py:graded", 2, 60.0) as pool:
        assert score([pool.reward], rows, [""] * 3).total.tolist() == [3.0, 1.0, 2.0]
        with pytest.raises(RewardError, match="does not accept the columns of the data"):
            score([pool.reward], [{"prompt": ""}], [""])
        assert pool([], [], level=[]) == []


def test_no_process_is_left_behind(folder):
    said = []
    with RewardPool("own_pool.py:act", 2, 2.0, said.append) as pool:
        pids = [int(pid) for pid in pool([""] * 2, ["pid", "pid"])]
        assert pool([""] * 2, ["child", "1"]) == [FAILED, 1.0]
        pids += [int((folder / "child").read_text())]
        pids += [worker.process.pid for worker in pool._workers]
    assert all(ended(pid) for pid in pids)
    with pytest.raises(RewardError, match="its pool is not open"):
        pool([""], ["1"])


def test_an_interrupt_ends_what_was_under_way(folder):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with RewardPool("own_pool.py:act", 1, 60.0) as pool:
            assert pool([""], ["1"]) == [1.0]
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                pool([""] * 2, ["sleep", "2"])
            assert pool([""], ["3"]) == [3.0]
    finally:
        signal.signal(signal.SIGALRM, before)


def written(path, seconds=60.0):
    """What a file holds, once it is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    return pytest.fail(f"no {path.name}")


def test_a_row_that_leaves_the_program_has_no_score(folder):
    """``sys.exit`` is an exception that ends a program without a word."""
    said = []
    with pytest.raises(RewardError, match=r"reward 'act' raised SystemExit: 0 and scored none of the rows \(2\)"):
        act(["leave", "leave"], workers=1, failed=said.append)
    assert act(["leave", "1"], workers=1, failed=said.append) == [FAILED, 1.0]
    act_on_one = load_reward("own_pool.py:act").function
    reward = Reward("own", lambda prompts, completions, **_: [act_on_one(None, [text])[0] for text in completions])
    with pytest.raises(RewardError, match=r"reward 'own' raised SystemExit: 0 and scored none"):
        score([reward], [{"prompt": ""}] * 2, ["leave"] * 2, said.append)
    assert score([reward], [{"prompt": ""}] * 2, ["leave", "1"], said.append).failed.tolist() == [True, False]
    (folder / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(RewardError, match=r"importing leaving\.py raised SystemExit: 0"):
        load_reward("leaving.py:act")


def test_workers_end_with_a_main_program_that_was_killed_and_never_run_it_again(folder):
    (folder / "script.py").write_text(SCRIPT)  # it has no `if __name__ == "__main__"`
    with subprocess.Popen([sys.executable, "script.py"], stdout=subprocess.PIPE, text=True) as program:
        first, second, found = program.stdout.readline().split()
        child = written(folder / "child")
        os.kill(program.pid, signal.SIGKILL)
    assert found == "[1.0]"
    assert ended(int(first)) and ended(int(second)) and ended(int(child))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("own_pool.py:act", 0, 1.0), "reward 'act': a pool of 0 workers, wanted at least 1."),
        (("own_pool.py:act", 1, 0.0), "reward 'act': a timeout of 0.0 seconds, wanted a finite number above 0."),
        (("own_pool.py:act", 1, math.inf), "reward 'act': a timeout of inf seconds, wanted a finite number above 0."),
        (("own_pool.py:acts", 1, 1.0), "reward 'own_pool.py:acts': own_pool.py has no function 'acts'"),
        ((Reward("f", lambda prompts, completions: []), 1, 1.0), "reward 'f': no import finds its function"),
    ],
)
def test_a_pool_that_cannot_work_is_refused(folder, arguments, said):
    with pytest.raises(RewardError) as caught:
        RewardPool(*arguments)
    assert str(caught.value).startswith(said)


def test_a_module_that_only_fails_in_the_worker_is_named(folder):
    with RewardPool("own_pool.py:act", 1, 60.0) as pool:
        (folder / "own_pool.py").write_text("1 / 0")
        pool._end(pool._workers[0])
        with pytest.raises(RewardError, match=r"importing own_pool\.py raised ZeroDivisionError"):
            pool([""], ["1"])
    (folder / "own_pool.py").write_text(
        "import multiprocessing, os\nif multiprocessing.parent_process(): os._exit(5)\n" + SOURCE
    )
    with (
        RewardPool("own_pool.py:act", 1, 60.0) as pool,
        pytest.raises(RewardError, match="exit code 5 while it loaded"),
    ):
        pool([""], ["1"])
