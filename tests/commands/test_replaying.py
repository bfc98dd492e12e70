"""``--replay`` and ``--curriculum``: groups from a memory, prompts by their pass rate, and both over a checkpoint."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.gathering import Gatherer, Taken, selected, together
from rlax_llm.commands.grpo.prompting import Curriculum
from rlax_llm.commands.grpo.replaying import build_replay, narrowed
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.core.types import Completions
from rlax_llm.rewards.calling import Scores

G, GROUPS, LIMIT = 2, 3, 8
ROWS = [{"prompt": str(number)} for number in range(100)]


def taken_of(scores, number, width, new) -> Taken:
    """Groups of rollout ``number``; prompts fill their columns, each token is its group's number in the run."""
    scores = np.asarray(scores, np.float32)
    indices = 10 * number + np.arange(len(scores))
    tokens = np.repeat(indices, G)[:, None] + np.zeros((1, width + new), int)
    mask = np.broadcast_to(np.arange(width + new) >= width, tokens.shape)
    log_probs, versions = np.where(mask, -tokens / 10, 0.0), np.full(scores.size, number, np.int32)
    every: Any = np.ones(tokens.shape, bool)
    completions = Completions(tokens.astype(np.int32), every, mask, log_probs, every[:, 0], versions=versions)  # pyright: ignore[reportArgumentType]
    rollout = Rollout([ROWS[i] for i in np.repeat(indices, G)], completions, [""] * scores.size, width, 1.0)
    steps = np.repeat(scores.ravel()[:, None], new, 1)
    return Taken(indices, rollout, Scores(scores.ravel(), {"mine": scores.ravel()}, np.zeros(scores.size, bool), steps))


def width_of(longest: int) -> int:
    return 2 if longest <= 2 else 4


def gatherer(scripts, share=1.0) -> Gatherer:
    replay = build_replay(4, share, jax.random.key(0), Taken.by_group, (width_of, LIMIT))
    return Gatherer(lambda params, number, left: (scripts[number], left), GROUPS, 0, replay=replay)


DULL, SHARP = [1, 1], [0, 1]
SCRIPTS = [
    taken_of([SHARP, DULL, SHARP], 0, 2, 3),
    taken_of([SHARP, SHARP, DULL], 1, 4, 8),
    taken_of([DULL, DULL, SHARP], 2, 2, 2),
    taken_of([DULL, DULL, DULL], 3, 2, 2),
]


def test_groups_that_do_not_differ_give_their_places_to_remembered_ones(tmp_path):
    """With tokens, texts, log-probabilities and policies of their own, in no wider columns than these need."""
    gather, seen = gatherer(SCRIPTS), []
    for index, script in enumerate(SCRIPTS):
        gather.keep(tmp_path, index)
        taken, told, kept = gather(None, index)
        fresh = np.isin(taken.indices, script.indices)
        dull = script.by_group().std(1) == 0
        assert told["replay/share"] == (~fresh).mean() == (dull[: len(dull)].sum() if index else 0) / GROUPS
        assert told["sampling/reward"] == pytest.approx(script.scores.total.mean())
        assert set(taken.indices[~fresh]) <= set(seen) and len(set(taken.indices)) == GROUPS
        completions: Any = taken.rollout.completions
        assert (completions.versions == np.repeat(taken.indices // 10, G)).all()
        assert [row["prompt"] for row in taken.rollout.rows] == [str(i) for i in np.repeat(taken.indices, G)]
        own = np.where(completions.mask, -np.repeat(taken.indices, G)[:, None] / 10, 0.0)
        np.testing.assert_array_equal(completions.log_probs, own)
        steps: Any = taken.scores.steps
        assert steps.shape == completions.tokens[:, taken.rollout.prompt_width :].shape
        assert (np.nanmax(steps, 1) == taken.scores.total).all()
        longest = completions.valid[:, : taken.rollout.prompt_width].sum(1).max()
        assert longest <= taken.rollout.prompt_width == width_of(longest) or fresh.all()
        seen = ([*script.indices[~dull][::-1], *seen])[:4]
        assert kept.remembered is not None and kept.remembered.indices.tolist() == seen
        # A run that goes on from here is given the same.
        again = gatherer(SCRIPTS)
        again.load(tmp_path, index, ROWS, lambda completions: [""] * len(completions.tokens))
        other, told_again, _ = again(None, index)
        assert told_again == told and other.indices.tolist() == taken.indices.tolist()
        jax.tree.map(np.testing.assert_array_equal, other.rollout.completions, completions)
        gather.kept = kept


def test_a_share_of_no_place_is_the_rollout_itself():
    gather = gatherer(SCRIPTS, share=0.0)
    for index, script in enumerate(SCRIPTS):
        taken, told, gather.kept = gather(None, index)
        assert taken is script and told["replay/share"] == 0


def test_a_rollout_is_as_wide_as_if_it_had_stood_alone():
    narrow, wide = SCRIPTS[2], SCRIPTS[1]
    back = narrowed(width_of, LIMIT, selected(together([wide, narrow]), np.arange(GROUPS, 2 * GROUPS)).rollout)
    alone = narrowed(width_of, LIMIT, narrow.rollout)
    assert back.prompt_width == alone.prompt_width == 2
    for found, wanted in zip(back.completions, alone.completions, strict=True):
        assert found is wanted is None or (np.asarray(found)[..., :4] == np.asarray(wanted)[..., :4]).all()


def test_a_curriculum_retires_what_is_solved_and_asks_for_what_is_not():
    settings = GrpoSettings.of(curriculum=0.5, curriculum_window=1, batch_size=GROUPS).rollout
    curriculum = Curriculum(settings, 4, lambda score: score > 0.9)
    first = curriculum(None, jax.random.key(0))
    assert len(first) == GROUPS and set(first) <= set(range(4))
    taken = taken_of([[1, 1], [0, 1], [np.nan, np.nan]], 0, 2, 2)
    visits = curriculum.after(None, taken)
    np.testing.assert_array_equal(visits.rates[:, 0], [1, 0.5, np.nan, np.nan])
    assert visits.metrics() == {"curriculum/retired": 0.25, "curriculum/mean_pass_rate": 0.75}
    asked = np.concatenate([curriculum(visits, key) for key in jax.random.split(jax.random.key(0), 20)])
    assert set(asked) == {1, 2, 3}


def test_a_resumed_run_has_the_memory_and_the_visits_of_an_unbroken_one(tmp_path, monkeypatch):
    """Six steps, of which the last three are taken again from what the first three left."""
    settings = GrpoSettings.of(
        task="arithmetic,largest=9",
        eval_size=4,
        batch_size=4,
        group_size=4,
        warm_start_steps=0,
        learning_rate=1e-2,
        schedule="constant",
        kl_coef=0.0,
        reward="format=[0-9]",
        replay=6,
        replay_share=1.0,
        curriculum=0.2,
        ahead=1,
    )
    assert settings.learning.correction == "token"
    monkeypatch.setattr(runs, "run_language", lambda settings, phase, params, *rest: (phase, params))

    def steps(phase, state, indices):
        found = []
        for index in indices:
            done = phase.step(state, index)
            state = done.state
            found.append({name: x for name, x in done.metrics.items() if "second" not in name and name != "mfu"})
        return state, found

    (phase, params), (again, _) = (runs.run_grpo(settings) for _ in range(2))  # pyright: ignore[reportGeneralTypeIssues]
    again.update, again.know = phase.update, phase.know  # compiled once
    state, first = steps(phase, phase.init(params), range(3))
    phase.keep(tmp_path, 3)
    before = jax.tree.map(jnp.copy, state)
    _, rest = steps(phase, state, range(3, 6))
    again.load(tmp_path, 3)
    np.testing.assert_equal(steps(again, before, range(3, 6))[1], rest)
    for told in (*first, *rest):
        assert 0 <= told["curriculum/retired"] <= 1 and 0 <= told["curriculum/mean_pass_rate"] <= 1
    assert max(told["replay/share"] for told in rest) > 0 and max(told["sampler/staleness"] for told in rest) > 1
