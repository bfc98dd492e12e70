"""The documentation site: equations of docstrings, snippets that run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rlax_llm.cli.configuration import parse
from rlax_llm.commands.table import commands

DOCS = Path(__file__).parent.parent / "docs"


def hook(name: str) -> ModuleType:
    """A module of the site that needs no package of it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("G[t] = r[t] + γ[t] · G[t+1]", ["<msub><mi>G</mi><mrow><mi>t</mi>", '<mo stretchy="false">·</mo>']),
        ("A_i = (s_i − mean(s)) / (std(s) + eps)", ["<mfrac><mrow><msub><mi>s</mi>", "<mi>ε</mi>"]),
        ("½ k1²", ["<msubsup><mi>k</mi><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></msubsup>"]),
        ("√(2 k2)", ["<msqrt><mn>2</mn>"]),
        ("log π − log π_ref", ["<msub><mi>π</mi><mrow><mi>ref</mi></mrow></msub>"]),
    ],
)
def test_an_equation_of_a_docstring_is_set(text, parts):
    found = hook("plain_equations").mathml(text)
    assert found is not None
    assert all(part in found for part in parts), found
    tags = re.findall(r"<(/?)(\w+)[^>]*?(/?)>", found)
    assert sum(1 for closes, _, alone in tags if not closes and not alone) == sum(1 for closes, _, _ in tags if closes)


@pytest.mark.parametrize(
    "text",
    ["[P, G, …]", "(log_ratio, advantages) → loss", "dpo(β)._replace(link=…)", "log_ratio(β)", "gae", "discounts = γ"],
)
def test_code_and_shapes_are_no_equations(text):
    assert hook("plain_equations").mathml(text) is None


PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("book/*.md"), *DOCS.glob("guides/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def parts(pattern: re.Pattern, *elsewhere: str) -> list:
    """Each page with what the pattern finds in it, without those that another test runs."""
    return [
        pytest.param(page, found, id=page.relative_to(DOCS).as_posix())
        for page in PAGES
        if page.name not in elsewhere and (found := pattern.findall(page.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize(("page", "blocks"), parts(BLOCK, "extending.md", "scaling.md"))
def test_the_snippets_of_a_page_run_and_print_what_it_says(page, blocks, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    with np.printoptions():
        for code, printed in blocks:
            exec(compile(code, str(page), "exec"), names)
            shown = capsys.readouterr().out
            assert shown == (printed or shown)


@pytest.mark.parametrize(("page", "blocks"), parts(SHELL, "extending.md"))
def test_the_commands_of_a_page_have_the_flags_that_they_name(page, blocks):
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["rlax-llm"] and len(words) > 1 and words[1] in commands():
            given = [{"I": "0", "N": "2"}.get(word, word) for word in words[2:]]
            if not {"--resume", "--help"} & set(given):  # the first reads a run, the second leaves
                parse(commands()[words[1]].settings, given, "")
