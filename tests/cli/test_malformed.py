"""Malformed input ends in one sentence that names its place, with an exit code, and loses nothing that was there."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import malformed
import pytest
from malformed import Row

from rlax_llm.cli import compilation_cache
from rlax_llm.cli.configuration import parse
from rlax_llm.cli.main import COMMANDS, main
from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.settings import keys

Refuse = Callable[[Iterable[Row]], list[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with malformed files, and one that is not."""
    made = tmp_path_factory.mktemp("malformed")
    files = {name: content for name, (content, _) in {**malformed.FILES, **malformed.DATA}.items()}
    files |= malformed.MODULES | {"steps.yaml": "steps: 3\n", "sums.log": ""}
    files |= {"rows.jsonl": '{"prompt": "1+1=", "answer": "2"}\n'}
    files |= {f"{name}/config.yaml": content for name, (content, _) in malformed.RUNS.items()}
    files |= {f"{name}/config.json": content for name, (content, _) in malformed.MODELS.items()}
    for name, content in files.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return made


@pytest.fixture
def refuse(place: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Runs command lines, and returns what is wrong with how they end."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("RLAX_LLM_TRACEBACK", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(compilation_cache, "turn_on", lambda: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = _files(place)

    def wrong(rows: Iterable[Row]) -> list[str]:
        found = [f"{row.words!r}: {said}" for row in rows if (said := _said(row))]
        # Nothing is lost, and nothing is left.
        assert _files(place) == before
        return found

    return wrong


def _files(place: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def _said(row: Row) -> str | None:
    """What is wrong with how the command line ends, or None."""
    written, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(told):
        try:
            code = main(row.words)
        except BaseException as error:
            return f"{type(error).__name__} escaped: {error}"
    last = (told.getvalue().splitlines() or [""])[-1]
    if code == 0:
        return f"exit code 0, {written.getvalue()[-200:]!r}"
    sentence = last.startswith("error: ") and last.endswith((".", "?")) and len(last) < 1000
    # A setting is --max-new-tokens on the command line, max_new_tokens elsewhere.
    named = row.named.replace("-", "_") in last.replace("-", "_")
    if not sentence or "Traceback" in told.getvalue() or not named:
        return f"wanted a sentence with {row.named!r}, got {told.getvalue()[-600:]!r}"
    return None


WITH_FILES = [name for name, command in COMMANDS.items() if "config" in keys(command.settings)]
"""The commands whose settings may be in a file."""


@pytest.fixture
def settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command begins, so a row that is let through shows at once."""

    def begin(config: object) -> None:
        raise AssertionError(f"{config} was let through")

    for command in COMMANDS.values():
        module, name = command.run.split(":")
        fake = types.ModuleType(module)
        setattr(fake, name, begin)
        monkeypatch.setitem(sys.modules, module, fake)


@pytest.mark.usefixtures("settings_alone")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_with_a_value_that_it_does_not_take(refuse, command):
    prompt = ("hi",) * len(malformed.words_of(command))
    rows = malformed.flags_of(command)
    assert len(rows) > (40 if command in WITH_FILES else 0)
    assert not refuse(Row((command, *prompt, *row.words), row.named) for row in rows)


@pytest.mark.usefixtures("settings_alone")
@pytest.mark.parametrize("command", WITH_FILES)
def test_a_key_with_a_value_that_it_does_not_take(refuse, command, tmp_path):
    rows = malformed.keys_of(command)
    prompt = ("hi",) * len(malformed.words_of(command))
    for number, (text, _) in enumerate(rows):
        (tmp_path / f"{number}.yaml").write_text(text)
    files = [(command, *prompt, "--config", str(tmp_path / f"{number}.yaml")) for number in range(len(rows))]
    assert not refuse(Row(words, named) for words, (_, named) in zip(files, rows, strict=True))


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """No training begins."""
    from rlax_llm.host import session

    def begin(*arguments: object) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(session.Session, "begin", begin)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("rows", [malformed.FLAGS, malformed.PLACES, malformed.SPECS], ids=["flags", "places", "names"])
def test_settings_that_cannot_be_done(refuse, rows):
    assert not refuse(rows)


@pytest.mark.usefixtures("no_session")
def test_files_of_settings(refuse):
    assert not refuse(Row(("grpo", "--config", name), named) for name, (_, named) in malformed.FILES.items())


@pytest.mark.usefixtures("no_session")
def test_directories_to_resume(refuse):
    assert not refuse(Row(("grpo", "--resume", name), named) for name, (_, named) in malformed.RUNS.items())


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("words", [("grpo", "--reward", "exact_answer"), ("sft",), ("dpo",), ("kto",)])
def test_tables(refuse, words):
    words = (*words, "--eval-size", "1", "--data")
    assert not refuse(Row((*words, name), named) for name, (_, named) in malformed.DATA.items())


def test_places_to_write_and_to_read_are_looked_at_before_anything_else(refuse, place, monkeypatch):
    """No command's module is imported, so that no model is read and nothing is computed."""
    (place / "folder.parquet").mkdir()
    monkeypatch.setattr(importlib, "import_module", None)
    assert not refuse([*malformed.OUTPUTS, *malformed.INPUTS])


def test_directories_of_models(refuse):
    assert not refuse(Row(("eval", "--model", name), named) for name, (_, named) in malformed.MODELS.items())


def test_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 1e5\nhidden: [1e2, 0_64]\nrender: yes\nlearning_rate: 1e-3\nseed: 010\n")
    words = ("--config", str(file), "--eval-steps", "1_000", "--epochs=1e1", "--no-render", "--seeds", "5.0")
    found = parse(ControlSettings, words, "")
    assert (found.run.steps, found.run.render, found.learning.learning_rate) == (100_000, False, 1e-3)
    assert (found.run.seed, found.run.eval_steps, found.learning.epochs, found.run.seeds) == (10, 1000, 10, 5)
    assert found.network.hidden == (100, 64)
    assert parse(GrpoSettings, ("--seed", str(2**32 - 1), "--max-grad-norm", "inf"), "").run.seed == 2**32 - 1
