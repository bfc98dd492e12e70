"""Recipes of ``rlax-llm grpo`` that read more than scores, and the flags that go with any: a run of few steps each."""

from __future__ import annotations

import numpy as np
import pytest

from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.objective import Counts, between_policies, build_objective, check_older
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.grpo.update import GroupUpdate
from rlax_llm.credit.running import Remembering
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes.mixed import dro, positive_examples

TINY = GrpoSettings.of(
    task="arithmetic,largest=9",
    batch_size=4,
    group_size=4,
    steps=2,
    warm_start_steps=8,
    eval_every=0,
    eval_size=4,
    save_every=0,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "remax", "group_size": 1},
        {"recipe": "otb", "micro_batch_size": 8},
        {"recipe": "rae", "group_size": 1, "top_entropy": 0.5},
        {"recipe": "dapo", "correction": "log_linear", "ahead": 1},
    ],
    ids=lambda changes: changes["recipe"],
)
def test_a_run_knows_what_its_recipe_reads(tmp_path, changes):
    directory = runs.run_grpo(TINY.changed(out=str(tmp_path / "run"), **changes))
    rows = [row for row in directory.metrics() if row["step"] > 0]
    assert len(rows) == 2
    assert all(np.isfinite([row["policy_loss"], row["grad_norm"]]).all() for row in rows)


def test_a_running_value_goes_on_after_a_checkpoint(tmp_path):
    """Step by step the same as a run that was never interrupted."""
    settings = TINY.changed(recipe="spo", group_size=1, save_every=1, schedule="constant")
    whole, half = (
        runs.run_grpo(settings.changed(steps=steps, out=str(tmp_path / name)))
        for steps, name in ((4, "whole"), (2, "half"))
    )
    again = runs.run_grpo(settings.changed(steps=4, resume=str(half.path)))
    for name in ("reward", "policy_loss", "grad_norm"):
        pair = [[row[name] for row in run.metrics() if row["step"] > 0] for run in (whole, again)]
        assert pair[0] == pair[1] and len(pair[0]) == 4, name


def test_what_a_run_counts_reaches_the_recipe():
    counts = Counts(group_size=4, prompts=9, roles=2)
    made = {
        name: build_objective(GrpoSettings.of(recipe=name).objective, 6, (1.0,), counts).objective
        for name in ("spo", "rae")
    }
    assert all(isinstance(objective.advantage, Remembering) for objective in made.values())
    assert made["spo"].advantage.init().won.shape == (9,) and made["rae"].advantage.init().shape == (2,)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"group_size": 1}, "group_size is 1, wanted at least 2"),
        ({"recipe": "otb", "group_size": 1}, "group_size is 1, wanted at least 2"),
        ({"top_entropy": 0.0}, "top_entropy is 0.0, wanted a number greater than 0"),
        ({"top_entropy": 1.5}, "top_entropy is 1.5, wanted a number from 0 to 1"),
        ({"off_policy_mask": -1.0}, "off_policy_mask is -1.0, wanted at least 0"),
        ({"off_policy_mask": 0.1, "correction": "token"}, "off_policy_mask is given with correction token"),
        ({"recipe": "trpo", "top_entropy": 0.5}, "trpo has no top_entropy"),
        ({"recipe": "trpo", "off_policy_mask": 0.5}, "trpo has no off_policy_mask"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, told):
    with pytest.raises(ValueError, match=told):
        GrpoSettings.of(**settings)


def test_the_mask_is_in_the_place_of_a_correction():
    assert GrpoSettings.of(ahead=1).learning.correction == "token"
    assert GrpoSettings.of(ahead=1, off_policy_mask=0.1).learning.correction == "none"
    masked = between_policies("dapo", recipes.dapo(), 0.1, "none")
    assert masked.trust_region is not recipes.dapo().trust_region
    assert between_policies("dapo", masked, None, "token") is masked


def test_parts_of_what_belongs_together_are_told():
    with pytest.raises(ValueError, match="recipe real reads several completions at once, and micro_batch_size takes"):
        GroupUpdate(GrpoSettings.of(recipe="real", micro_batch_size=8), None, (1.0,))  # pyright: ignore[reportArgumentType]


def test_older_tokens_want_a_ratio_or_a_correction():
    for name in ("partial_rollouts", "ahead", "replay"):
        with pytest.raises(ValueError, match=f"grpo: {name} gives tokens that older policies drew, recipe gpg has no"):
            GroupUpdate(GrpoSettings.of(recipe="gpg", correction="none", **{name: 1}), None, (1.0,))  # pyright: ignore[reportArgumentType]
    for recipe in ("dapo", "dro"):
        GroupUpdate(GrpoSettings.of(recipe=recipe, correction="none", replay=1), None, (1.0,))  # pyright: ignore[reportArgumentType]
    GroupUpdate(GrpoSettings.of(recipe="gpg", replay=1), None, (1.0,))  # pyright: ignore[reportArgumentType]


def test_a_term_excuses_older_tokens_only_where_it_corrects():
    settings = GrpoSettings.of(recipe="gpg", correction="none", replay=1)
    imitating = recipes.gpg()._replace(terms=(positive_examples(),))
    with pytest.raises(ValueError, match="recipe gpg has no ratio to them, nor a term that corrects, and correction"):
        check_older(settings, imitating)
    check_older(settings, imitating._replace(terms=(*imitating.terms, *dro().terms)))


def test_a_kl_in_the_score_of_what_is_remembered_is_told():
    settings = GrpoSettings.of(recipe="spo", kl_coef=0.1, kl_in="reward")
    with pytest.raises(
        ValueError, match="the recipe remembers scores and has none to take a KL from; give --kl-in loss"
    ):
        build_objective(settings.objective, 6)
