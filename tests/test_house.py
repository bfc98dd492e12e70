"""The shape of the code: what a reader is promised of it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rlax_llm").rglob("*.py"))
FOLDERS = sorted(path.parent for path in FILES if path.name == "__init__.py")
MOST_NODES = 305
"""About 300: a function that holds more than one idea is two functions."""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def own_nodes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Syntax-tree nodes of a function, those of the functions that it defines left out."""
    inner = [found for found in functions(function) if found is not function]
    nested = {id(node) for found in inner for node in ast.walk(found)}
    return sum(id(node) not in nested for node in ast.walk(function))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_of_one_idea(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    counted = [(found.name, own_nodes(found)) for found in functions(tree)]
    assert not [(name, count) for name, count in counted if count > MOST_NODES]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folder_says_what_may_be_in_it(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    assert len(text.split()) >= 8


def test_the_map_names_files_that_there_are():
    rows = re.findall(
        r"^\| (.+) \| (.+) \|$", (ROOT / "docs" / "map.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    paths = [re.findall(r"`(rlax_llm/[^`]+)`", where) for what, where in rows if what != "looked for"]
    assert len(paths) >= 31
    for found in paths:
        assert all((ROOT / path).exists() for path in found)


def imports_of_folders() -> dict[str, set[str]]:
    """Folder → the other folders of the package that its files import."""
    found: dict[str, set[str]] = {path.name: set() for path in FOLDERS if path.parent == ROOT / "rlax_llm"}
    for path in FILES:
        folder = path.relative_to(ROOT / "rlax_llm").parts[0]
        modules = re.findall(r"^ *(?:from|import) rlax_llm\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if folder in found:
            found[folder] |= set(modules) & (found.keys() - {folder})
    return found


def test_the_arrows_of_the_map_are_the_imports_that_do_not_follow_from_others():
    imports = imports_of_folders()
    reached = {folder: set(direct) for folder, direct in imports.items()}
    for _ in imports:
        reached = {folder: direct.union(*(reached[other] for other in direct)) for folder, direct in reached.items()}
    arrows = {
        (folder, other)
        for folder, direct in imports.items()
        for other in direct
        if not any(other in reached[between] for between in direct)
    }
    drawn = re.findall(r"^ +(\w+) --> (\w+)$", (ROOT / "docs" / "map.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(drawn) == sorted(arrows)


def test_names_of_test_files_differ():
    # Two files of one name cannot be collected in one process.
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


BRITISH = re.compile(
    r"\b\w*(centred|labelled|learnt|spelt|behaviour|colour|favour|neighbour|(?:normal|optim|initial|general|regular|penal"
    r"|quant|standard|token|parametr|factor|linear|maxim|minim|material)is(?:e|ed|er|ers|es|ing|ation))\b"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_spelling_is_american(path):
    assert not BRITISH.findall(path.read_text(encoding="utf-8"))
