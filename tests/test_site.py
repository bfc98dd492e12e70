"""The documentation site: equations of docstrings, snippets that run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

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
