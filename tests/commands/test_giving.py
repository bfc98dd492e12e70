"""What stands in groups that the policy did not choose: demonstrations, as chord and luffy take them, and answers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.gathering import Taken, filled_up
from rlax_llm.commands.grpo.giving import Demonstrations, Members, Shown, answers_given, of_drawn, shown_rows
from rlax_llm.commands.grpo.objective import build_objective
from rlax_llm.commands.grpo.settings import GrpoSettings, ObjectiveSettings
from rlax_llm.commands.grpo.update import GroupUpdate
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.commands.tasks import build_task
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.policy.objectives import shown_as
from rlax_llm.recipes import mixed
from rlax_llm.recipes.registry import recipes
from rlax_llm.rewards.calling import Reward, Scores
from rlax_llm.rewards.functions import exact_answer

TOKENIZER = Tokenizer.characters("0123456789+=")
PROMPTS, DRAWN, WIDTH, NEW = 3, 2, 3, 4
ANSWERS = ["7", "12", "9"]
SHOWN = Shown(
    [DemonstrationTokens(TOKENIZER.encode("1+="), [*TOKENIZER.encode(text), TOKENIZER.eos_ids[0]]) for text in ANSWERS],
    TOKENIZER,
    24,
)


def taken_of(**more: Any) -> Taken:
    """Groups of two rows; the first group is of the last prompt, and the second row of each ends in an answer."""
    rows = PROMPTS * DRAWN
    tokens = np.arange(rows * (WIDTH + NEW)).reshape(rows, -1).astype(np.int32)
    valid = np.ones(tokens.shape, bool)
    valid[:, 0] = False
    valid[::2, -1] = False
    mask = valid & (np.arange(tokens.shape[1]) >= WIDTH)
    mask[1::2, WIDTH + 1 : WIDTH + 3] = False
    fields = {"log_probs": np.where(mask, -1.0, 0.0).astype(np.float32), "truncated": np.zeros(rows, bool)} | more
    completions: Any = Completions(tokens=tokens, valid=valid, mask=mask, **fields)  # pyright: ignore[reportArgumentType]
    indices = np.array([2, 0, 1])
    named = [{"prompt": "1+=", "answer": ANSWERS[i]} for i in indices for _ in range(DRAWN)]
    scores = np.arange(rows, dtype=np.float32)
    rollout = Rollout(named, completions, [str(row) for row in range(rows)], WIDTH, 1.0)
    return Taken(indices, rollout, Scores(scores, {"answer": scores}, np.zeros(rows, bool)))


def by_group(x: Any) -> np.ndarray:
    return np.asarray(x).reshape(PROMPTS, DRAWN + 1, *np.shape(x)[1:])


def test_a_demonstration_is_the_last_of_its_group_and_nobody_chose_it():
    kept = np.arange(PROMPTS * DRAWN * (WIDTH + NEW)).reshape(PROMPTS * DRAWN, -1, 1).astype(np.uint32)
    before = taken_of(kept=kept, versions=np.full(PROMPTS * DRAWN, 4, np.int32))
    after = Demonstrations(SHOWN)(before, 5)
    columns: Any = after.rollout.completions._replace(teacher=None)
    for place, index in enumerate(before.indices):
        text = "".join(
            TOKENIZER.decode([token])
            for token in by_group(columns.tokens)[place, -1][by_group(columns.given)[place, -1]]
            if token not in TOKENIZER.eos_ids
        )
        assert text == ANSWERS[index] and after.rollout.texts[3 * place + 2] == ANSWERS[index]
    for name in ("tokens", "valid"):
        prompts = by_group(getattr(columns, name))[:, :, :WIDTH]
        np.testing.assert_array_equal(prompts[:, -1], prompts[:, 0])
    assert not by_group(columns.mask)[:, -1].any() and not by_group(columns.given)[:, :-1].any()
    assert (by_group(columns.versions) == [4, 4, 5]).all() and (by_group(columns.kept)[:, -1] == EVERY).all()
    assert np.isnan(after.by_group()[:, -1]).all() and not after.scores.failed.any()
    own: Any = before.rollout.completions
    for name in ("tokens", "valid", "mask", "log_probs"):  # what was drawn stays as it is, with columns behind it
        drawn = by_group(getattr(columns, name))[:, :-1].reshape(PROMPTS * DRAWN, -1)
        np.testing.assert_array_equal(drawn[:, : WIDTH + NEW], getattr(own, name))
        assert name == "tokens" or not drawn[:, WIDTH + NEW :].any()
    np.testing.assert_array_equal(after.by_group()[:, :-1], before.by_group())
    found = of_drawn(jnp.asarray(columns.log_probs), before)
    np.testing.assert_array_equal(found, own.log_probs)


def test_of_a_demonstration_nobody_says_which_experts_it_was_sent_to_but_of_its_prompt():
    routed = np.arange(1, 1 + PROMPTS * DRAWN * (WIDTH + NEW) * 2).reshape(PROMPTS * DRAWN, -1, 2).astype(np.uint8)
    after = by_group(Demonstrations(SHOWN)(taken_of(routed=routed), 5).rollout.completions.routed)
    assert after.dtype == np.uint8
    np.testing.assert_array_equal(after[:, 0, : WIDTH + NEW], routed[::DRAWN])
    np.testing.assert_array_equal(after[:, -1, :WIDTH], routed[::DRAWN, :WIDTH])
    assert not after[:, :, WIDTH + NEW :].any() and not after[:, -1, WIDTH:].any()


def test_a_member_of_a_group_is_scored_and_in_the_mask():
    judge = Judge((Reward("answer", exact_answer),))
    after = Members(SHOWN, judge)(taken_of(), 0)
    completions: Any = after.rollout.completions
    np.testing.assert_array_equal(by_group(completions.mask)[:, -1], by_group(completions.given)[:, -1])
    assert by_group(completions.given)[:, -1].sum(-1).tolist() == [2, 2, 3]  # with the stop token
    assert (
        after.by_group()[:, -1].tolist() == [1, 1, 1] and (after.scores.by_name["answer"] == after.scores.total).all()
    )
    assert after.group_size == DRAWN + 1


def test_a_group_that_fills_the_batch_up_gives_nothing():
    filled = filled_up(taken_of(), PROMPTS + 1)
    for after in (Demonstrations(SHOWN)(filled, 0), answers_given(filled, 0)):
        given = np.asarray(after.rollout.completions.given)
        assert given[: -len(given) // 4].any() and not given[-(len(given) // 4) :].any()


def test_the_answers_of_tools_are_what_stands_behind_a_prompt_unchosen():
    found: Any = answers_given(taken_of(), 0).rollout.completions
    wanted = np.zeros(found.tokens.shape, bool)
    wanted[1::2, WIDTH + 1 : WIDTH + 3] = True
    np.testing.assert_array_equal(found.given, wanted)


def test_a_row_without_a_demonstration_is_named(tmp_path, capsys):
    data = tmp_path / "sums.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": f"{n}+1=", "answer": n + 1, "shown": str(n + 1)} for n in range(5)]
    rows[1]["shown"], rows[2]["shown"] = " ", "1" * 30
    rows[3]["shown"] = None
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = GrpoSettings.of(data=str(data), reward="integer_answer", eval_size=1, seed=1)
    learner: Any = SimpleNamespace(tokenizer=TOKENIZER, shape=SimpleNamespace(vocab_size=TOKENIZER.vocab_size))
    learner.config = learner.shape
    task = build_task(settings.task, settings.sampling, 1, learner)
    found, shown = shown_rows(task, "shown", learner, settings.sampling)
    assert [TOKENIZER.decode(one.completion) for one in shown.tokens] == [str(row["shown"]) for row in found.train]
    told = capsys.readouterr().err
    assert str(data) in told
    assert "2 because the demonstration in column 'shown' is empty (lines 2, 4)" in told
    assert "the completion has 31 tokens, more than max_new_tokens 6 (line 3)" in told
    with pytest.raises(
        ValueError, match=r"sums\.jsonl: none of the 4 rows can be used. .*line 1: no column 'solution'"
    ):
        shown_rows(task, "solution", learner, settings.sampling)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recipe": "chord"}, "recipe chord learns from demonstrations; give demonstrations, their column"),
        ({"demonstrations": "answer"}, "demonstrations is given and recipe grpo reads none; leave it out, or choose"),
        ({"recipe": "echo"}, "recipe echo learns from what tools answer; give tool, or take another"),
        ({"recipe": "chord", "demonstrations": "a", "group_size": 2}, "group_size is 2, wanted at least 3 with recipe"),
        ({"recipe": "luffy", "demonstrations": "a", "dynamic_rounds": 2}, "dynamic_rounds is given with recipe luffy"),
        ({"recipe": "luffy", "demonstrations": "a", "off_policy_mask": 0.1}, "who drew a demonstration is not known"),
        ({"recipe": "chord", "demonstrations": "a", "mu": 1.5}, "mu is 1.5, wanted a number from 0 to 1"),
        ({"recipe": "trpo", "nll_coef": 0.1}, "recipe trpo has no nll_coef"),
    ],
)
def test_what_cannot_be_given_is_told(settings, told):
    with pytest.raises(ValueError, match=told):
        GrpoSettings.of(**settings)


def test_settings_reach_the_recipes():
    made = {
        "chord": (GrpoSettings.of(recipe="chord", demonstrations="a", mu=0.3), mixed.chord(0.3)),
        "echo": (GrpoSettings.of(recipe="echo", tool="calculator", nll_coef=0.2), mixed.echo(0.2)),
    }
    for settings, wanted in made.values():
        found = build_objective(settings.objective, 6).objective
        assert [(term.name, term.coef) for term in found.terms] == [(term.name, term.coef) for term in wanted.terms]
    settings = GrpoSettings.of(recipe="luffy", demonstrations="a", group_size=4, partial_rollouts=2, batch_size=4)
    assert (settings.rollout.drawn_size, settings.rollout.rows_in_flight, settings.rollout.rows) == (3, 18, 16)


OWN = """
import jax.numpy as jnp
import rlax_llm as rl
from rlax_llm.policy.terms import given, likelihood

def imitating():
    term = rl.policy.Term("imitation", likelihood(), 0.5, lambda batch: given(batch) & ~batch.mask)
    return rl.dapo()._replace(terms=(term,))

def plain():
    return rl.dapo()

def member(gamma=0.1):
    def loss(log_ratio, batch):
        shown = -batch.advantages * jnp.exp(batch.log_probs) / (jnp.exp(batch.log_probs) + gamma)
        drawn = jnp.where(given(batch), 0.0, log_ratio)
        return jnp.where(given(batch), shown, rl.clip(0.2)(drawn, batch.advantages))

    parts = {"advantage": rl.per_group(rl.centered), "weighting": rl.token_mean}
    return rl.grpo(0)._replace(trust_region=rl.policy.Coupled(loss, members=True), **parts)
"""


def test_a_recipe_of_ones_own_takes_demonstrations_where_a_term_reads_them(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    imitating, plain, member = (f"{tmp_path / 'mine.py'}:{name}" for name in ("imitating", "plain", "member"))

    def update(**given):
        return GroupUpdate(GrpoSettings.of(**given), None, (1.0,))  # pyright: ignore[reportArgumentType]

    assert update(recipe=imitating, demonstrations="a").chosen is not None
    assert update(recipe=imitating, tool="calculator").chosen is not None
    with pytest.raises(ValueError, match=r"grpo: demonstrations is given and no term of recipe .*:plain reads given"):
        update(recipe=plain, demonstrations="a")
    with pytest.raises(ValueError, match=r"grpo: a term of recipe .*:imitating reads given tokens, and there are none"):
        update(recipe=imitating)
    with pytest.raises(ValueError, match="group_size is 2, wanted at least 3 with recipe"):
        update(recipe=imitating, demonstrations="a", group_size=2)
    assert update(recipe=member, demonstrations="a", group_size=2).chosen is not None
    with pytest.raises(ValueError, match=r"recipe .*:member learns from demonstrations that are members of their gro"):
        update(recipe=member, tool="calculator")
    with pytest.raises(
        ValueError, match=r"grpo: replay is given with recipe .*:member, which learns from groups whose"
    ):
        update(recipe=member, demonstrations="a", replay=4)


def test_the_table_says_of_demonstrations_what_the_objectives_say():
    for name, named in recipes("group").items():
        if ":" in name or name == "trpo":
            continue
        made = build_objective(ObjectiveSettings(recipe=name, ceiling=2.0 if name == "cispo" else None), 6).objective
        assert shown_as(made) == named.given.replace("answers", "demonstrations"), name


def shown_run(recipe, out):
    """What a step on demonstrations measures."""
    settings = GrpoSettings.of(
        task="arithmetic,largest=9",
        recipe=recipe,
        demonstrations="completion",
        batch_size=4,
        group_size=3,
        steps=1,
        warm_start_steps=0,
        eval_every=0,
        eval_size=0,
        out=str(out),
    )
    (row,) = [row for row in runs.run_grpo(settings).metrics() if row["step"] > 0]
    return row


def test_a_run_learns_from_demonstrations_where_nothing_drawn_is_right(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    found = {recipe: shown_run(recipe, tmp_path / recipe[-6:]) for recipe in ("luffy", "mine.py:imitating")}
    found["member"] = shown_run("mine.py:member", tmp_path / "run")
    for recipe, row in found.items():
        # Reward and lengths are of what was drawn; the scores of the groups differ all the same, of members.
        assert row["reward"] == 0 and row["completions/max_length"] <= 6
        assert row["frac_reward_zero_std"] == (recipe == "mine.py:imitating")
        assert row["grad_norm"] > 1e-3 and row["kl_old"] == pytest.approx(0, abs=1e-6)
    for name in ("policy_loss", "grad_norm", "frac_reward_zero_std", "entropy"):
        assert found["member"][name] == pytest.approx(found["luffy"][name], rel=1e-5), name
