"""The worked examples of docs/extending.md, run from the page: its files, its rows of the package and its commands."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import rlax_llm.commands
from rlax_llm.cli import main as command_line
from rlax_llm.cli.configuration import parse
from rlax_llm.commands.control.program import build
from rlax_llm.commands.grpo.objective import build_objective
from rlax_llm.commands.preference.objective import build_preference
from rlax_llm.commands.table import commands
from rlax_llm.core.user_code import named_function

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"# a row of (\w+) in (rlax_llm/\S+)\.py\n(.*)", re.DOTALL)
FILE = re.compile(r"# (\S+\.py)\n")

MODEL = "--seed 1 --eval-size 4 --eval-every 0 --steps 1"
SMALL = {
    "grpo": f"{MODEL} --warm-start-steps 0 --batch-size 2 --group-size 2 --max-new-tokens 2",
    "dpo": f"{MODEL} --batch-size 4",
    "control": "--steps 32 --environments 2 --horizon-steps 8 --seeds 1 --epochs 1 --minibatches 1 --hidden 4 "
    "--eval-steps 0",
    "eval": "--size 4 --max-new-tokens 2",
    "count": "",
}
"""Flags that make a command small; the last of two counts."""
BUILDERS = {
    "grpo": lambda settings: build_objective(settings.objective, settings.sampling.max_new_tokens),
    "dpo": lambda settings: build_preference(settings.objective),
    "control": build,
}
"""What reads the row of a table."""


class Package:
    """The package with the rows of the page in its tables."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder = folder
        self.patch = patch
        self.files: list[str] = []
        self.ran: list[str] = []

    def write(self, name: str, text: str) -> None:
        """A file of the page, in the working directory or in a folder of commands."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.files.append(name)

    def own(self, name: str):
        """A function of the page's files."""
        file = next(file for file in self.files if f"def {name}(" in (self.folder / file).read_text())
        return named_function("function", f"{file}:{name}")

    def add(self, table: str, module_name: str, text: str) -> None:
        """A row in a table of a module."""
        module = importlib.import_module(module_name.replace("/", "."))
        rows = getattr(module, table)
        if not isinstance(rows, dict):
            (row,) = eval(f"({text})", vars(module))
            self.patch.setattr(module, table, (*rows, row))
            if table == "REGISTRY":
                home, function = row.place.split(":")
                self.patch.setattr(importlib.import_module(home), function, self.own(function), raising=False)
            return
        name = re.match(r'"(\w+)":', text)[1]
        known = vars(module) | ({name: self.own(name)} if f": {name}" in text else {})
        self.patch.setitem(rows, name, eval(f"{{{text}}}", known)[name])

    def run(self, line: str) -> None:
        """A command line of the page, small; once a command has run, another of its name only as far as its recipe."""
        self.patch.setattr(command_line, "COMMANDS", commands())
        program, command, *words = shlex.split(line)
        small = [] if "--help" in words else SMALL[command].split()
        assert program == "rlax-llm"
        if command in self.ran and command in BUILDERS:
            assert BUILDERS[command](parse(commands()[command].settings, words, "")) is not None
            return
        assert command_line.main([command, *words, *small]) == 0, line
        self.ran.append(command)


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        rlax_llm.commands, "__path__", [*rlax_llm.commands.__path__, str(tmp_path / "rlax_llm/commands")]
    )
    yield Package(tmp_path, monkeypatch)
    for name in [name for name in sys.modules if name.startswith("rlax_llm.commands.count")]:
        del sys.modules[name]


def test_the_page_has_seven_examples():
    assert len(SECTIONS) == 7


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_runs(package, title):
    for language, text in BLOCK.findall(SECTIONS[title]):
        row, file = ROW.match(text), FILE.match(text)
        if row:
            package.add(*row.groups())
        elif file and "write_model(" in text:
            package.write(file[1], text)
            runpy.run_path(file[1])
        elif file:
            package.write(file[1], text)
        else:
            assert language == "sh"
            for line in text.splitlines():
                package.run(line)


def test_what_an_addition_costs_is_what_the_page_says():
    rows = re.findall(r"^\| (?:a|an) (.+?) \|.*\| (\d|a folder) \| (\d) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8
    assert all(files in ("1", "2", "a folder") and int(lines) <= 2 for _, files, lines in rows)
