"""The table of named algorithms: what it names is there, by one spelling, with the paper that its docstring names."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rlax_llm.recipes.building import parameters
from rlax_llm.recipes.registry import KINDS, PEERS, REGISTRY, find, listed, recipes


def test_every_row_names_a_function_and_no_two_are_alike():
    assert len({(row.name, row.family) for row in REGISTRY}) == len(REGISTRY)
    for row in REGISTRY:
        assert callable(row.make), row
        assert re.fullmatch(r"(\w+:)?[a-z0-9_]+", row.name), row
        assert row.like == "" or row.like in recipes(row.family), row


def test_every_paper_is_that_of_the_docstring():
    for row in REGISTRY:
        named = re.findall(r"arXiv (\d{4}\.\d{4,5})", row.make.__doc__ or "")
        if ":" not in row.name and named and row.name != "unclipped":
            assert row.paper in named, row


def test_the_help_lists_every_recipe_of_groups_once():
    told = [name for names in KINDS.values() for name in names]
    assert sorted(told) == sorted(name for name in recipes("group") if ":" not in name)
    assert len(told) == len(set(told))


def test_every_trainer_that_is_named_has_variants():
    assert {row.name.partition(":")[0] for row in REGISTRY if ":" in row.name} == set(PEERS)


@pytest.mark.parametrize("text", ["dr-grpo", "prime-rl:max-rl", "dr_grpo", "trl:dr-grpo", "reinforce-plus-plus"])
def test_a_dash_is_an_underscore(text):
    assert find("grpo", text, "group").name == text.replace("-", "_")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("DAPOO", "there is no recipe 'DAPOO'; did you mean 'dapo'?"),
        ("trl:drgrpo", "there is no recipe 'trl:drgrpo'; did you mean 'trl:dr_grpo'?"),
        ("xyzzy", "there is no recipe 'xyzzy'. There are grpo, dr_grpo, "),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(text, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        find("grpo", text, "group")


def test_a_trainer_that_is_misspelled_is_told_with_the_nearest():
    with pytest.raises(ValueError, match=r"no module 'tlr' here or installed; did you mean 'trl:dr_grpo'\?$"):
        _ = find("grpo", "tlr:dr_grpo", "group").make
    with pytest.raises(ValueError, match=r"no module 'nowhere' here or installed\.$"):
        _ = find("grpo", "nowhere:loss", "group").make


def test_a_link_takes_nothing_and_a_recipe_what_its_function_does():
    known = recipes("preference", "link")
    assert list(parameters(known["nca"])) == []
    assert list(parameters(known["cdpo"])) == ["beta", "label_smoothing"]


def test_the_names_cost_no_import_of_jax():
    code = "import sys; from rlax_llm.recipes.registry import listed; print(listed('group'), 'jax' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == f"{listed('group')} False\n"
