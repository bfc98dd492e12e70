"""The run directory: what is in its files after a crash, a full disk and a resume."""

import errno
import json
import os
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.host.run_directory import RunDirectory, write_at_once

CONFIG = {"command": "grpo", "learning_rate": 1e-5, "model": "modèle", "kl_coef": None}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "a" / "run", CONFIG)


def test_config_comes_back_and_a_second_run_is_refused(run):
    assert RunDirectory.reopen(run.path).config() == CONFIG
    run.log_metrics(1, {})
    with pytest.raises(RuntimeError, match=rf"is being written by process {os.getpid()}; wait for its end, or"):
        RunDirectory.create(run.path, CONFIG)
    run.release()
    with pytest.raises(FileExistsError, match=r"already holds a run; choose another --out, or .*--resume"):
        RunDirectory.create(run.path, CONFIG)
    assert not run.path.joinpath(".lock").exists()


def test_the_command_that_goes_on_with_another_run_is_one_for_a_shell(tmp_path):
    run = RunDirectory.create(tmp_path / "my run", CONFIG)
    run.log_metrics(1, {})
    with pytest.raises(FileExistsError) as raised:
        run.check_free()
    assert str(raised.value).endswith(f"--resume '{run.path}'")


def test_one_process_at_a_time_goes_on_with_a_run(run):
    run.release()
    first, second = RunDirectory.reopen(run.path), RunDirectory.reopen(run.path)
    first.hold()
    with pytest.raises(RuntimeError, match="is being written by process"):
        second.hold()
    first.release()
    second.hold()
    third = RunDirectory.reopen(run.path)
    with pytest.raises(RuntimeError, match="is being written by process"):
        third.hold()
    second.release()


def test_a_lock_ends_with_its_process(run):
    """As it does after SIGKILL: the kernel closes what the process had open."""
    run.release()
    program = f"import os; from rlax_llm.host.run_directory import RunDirectory as R; R({str(run.path)!r}).hold()"
    subprocess.run([sys.executable, "-c", f"{program}; os._exit(9)"], check=False)
    assert run.path.joinpath(".lock").exists()
    again = RunDirectory.reopen(run.path)
    again.hold()
    again.release()


def test_a_run_without_a_step_gives_way_to_a_new_one(run):
    (run.path / "notes.txt").write_text("mine")
    run.log_metrics(0, {"held_out_loss": 1.0})
    run.release()
    again = RunDirectory.create(run.path, {"command": "sft"})
    assert again.config() == {"command": "sft"} and again.metrics() == []
    assert (run.path / "notes.txt").read_text() == "mine"
    again.log_metrics(-3, {"loss": 1.0})  # a warm start's
    again.release()
    with pytest.raises(FileExistsError, match="already holds a run"):
        RunDirectory.create(run.path, CONFIG)


def test_a_run_that_had_not_begun_leaves_only_what_was_there_before(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory.create(tmp_path, CONFIG).abandon()
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
    RunDirectory.create(tmp_path / "new", CONFIG).abandon()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("line", ['{"loss": 1}', "[1]", '{"step": "x"}', '{"step": 1.5}', '{"step": true}', "1"])
def test_a_line_without_its_step_is_named(run, line):
    run.log_metrics(1, {})
    run.metrics_path.write_text(run.metrics_path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 has no whole number 'step'; mend or delete"):
        run.truncate_to(5)


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    for path in (tmp_path / ("x" * 300), "/proc/x"):
        with pytest.raises(OSError, match=r"^cannot write .*; choose another --out\.$"):
            RunDirectory.create(path, CONFIG)


def test_places_that_are_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunDirectory.reopen(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        RunDirectory.reopen(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="choose another --out"):
        RunDirectory.create(tmp_path / "file", {})
    with pytest.raises(OSError, match="a part of that path is a file"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_a_directory_with_other_files_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory.create(tmp_path, CONFIG)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_metrics_are_json_lines_of_plain_numbers(run):
    row = {
        "reward": jnp.float32(0.5),
        "n": np.int64(3),
        "kl": jnp.nan,
        "x": float("inf"),
        "parts": np.array([1.0, np.nan]),
    }
    run.log_metrics(jnp.int32(1), row)
    text = run.metrics_path.read_text()
    assert text.endswith("\n")
    assert json.loads(text) == {"step": 1, "reward": 0.5, "n": 3, "kl": None, "x": None, "parts": [1.0, None]}


def test_resuming_gives_the_file_of_an_unbroken_run(run, tmp_path):
    unbroken = RunDirectory.create(tmp_path / "unbroken", CONFIG)

    def log(where, steps):
        for step in steps:
            where.log_metrics(step, {"reward": step / 7})
            where.log_completions([{"step": step, "text": "é\u2028"}, {"step": step, "text": "\n"}])

    log(unbroken, range(1, 6))
    log(run, range(1, 5))
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"step": 5, "rew')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
    again = RunDirectory.reopen(run.path)
    again.truncate_to(2)
    log(again, range(3, 6))
    assert again.metrics_path.read_bytes() == unbroken.metrics_path.read_bytes()
    assert again.completions_path.read_bytes() == unbroken.completions_path.read_bytes()
    assert again.completions() == unbroken.completions()


def test_a_half_written_line_goes_even_when_no_step_does(run):
    run.log_metrics(1, {})
    run.metrics_path.write_bytes(run.metrics_path.read_bytes() + b'{"st')
    run.truncate_to(9)
    assert run.metrics_path.read_bytes() == b'{"step": 1}\n'


def test_a_broken_line_in_the_middle_is_named(run):
    run.metrics_path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        run.metrics()


def test_completions_need_their_step(run):
    with pytest.raises(ValueError, match="no 'step'"):
        run.log_completions([{"text": "x"}])


def test_a_full_disk_loses_nothing_written(run):
    run.log_metrics(1, {"reward": 0.5})
    run.write_summary({"steps": 1})
    before = run.metrics_path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match=r"no space left on the disk while writing .*metrics\.jsonl") as failure:
            run.log_metrics(2, {"reward": 0.6})
        with pytest.raises(OSError, match="no space left"):
            run.write_summary({"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure.value.errno == errno.EFBIG
    assert run.metrics_path.read_bytes() == before
    assert json.loads(run.summary_path.read_text()) == {"steps": 1}
    run.log_metrics(2, {"reward": 0.6})
    assert [row["step"] for row in run.metrics()] == [1, 2]


def test_summary_is_replaced_whole(run):
    run.write_summary({"steps": 1})
    run.write_summary({"steps": 2, "path": run.path, "kl": float("nan")})
    assert json.loads(run.summary_path.read_text()) == {"steps": 2, "path": str(run.path), "kl": None}
    assert not list(run.path.glob("*.part"))


def test_nothing_takes_the_place_of_a_device_or_of_a_link(tmp_path):
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(file)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (pipe, link):
        write_at_once(path, "é")
    assert os.read(reader, 9) == file.read_bytes() == "é".encode()
    assert pipe.is_fifo() and link.is_symlink()
    os.close(reader)
