"""Rewards of steps between texts and tokens, and runs of ``reward --process``, ``grpo`` and ``ppo`` with them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.grpo.gathering import Taken, filled_up, together
from rlax_llm.commands.grpo.objective import build_objective, of_steps
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Failures, Judge
from rlax_llm.commands.ppo.phase import PpoPhase
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.run import run_reward
from rlax_llm.commands.preference.settings import RewardSettings
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.commands.stepping import StepJudge, build_step_judge, by_function, by_model, step_rewards_of
from rlax_llm.core.types import Completions, Groups, Known
from rlax_llm.data.batches import stepwise_rows
from rlax_llm.data.encoding import encode_stepwise
from rlax_llm.data.preferences import Stepwise
from rlax_llm.loops.group import compared, informative_groups, scored_groups, uninformative_share
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.scalar import sequence_scores
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.recipes import group as recipes
from rlax_llm.rewards.calling import Reward, RewardError

CHARACTERS = Tokenizer.characters("0123456789+-*=")
EOS = CHARACTERS.eos_ids[0]
WIDTH, OWN = 4, 6


def rollout_of(*texts, ended=True) -> Rollout:
    """Completions of one prompt, with a stop token where there is room."""
    prompt = CHARACTERS.encode("1+2=")
    tokens, mask = np.zeros((len(texts), WIDTH + OWN), np.int32), np.zeros((len(texts), WIDTH + OWN), bool)
    for row, text in enumerate(texts):
        ids = (CHARACTERS.encode(text) + [EOS] * ended)[:OWN]
        tokens[row, : WIDTH + len(ids)] = prompt + ids
        mask[row, WIDTH : WIDTH + len(ids)] = True
    valid = mask | (np.arange(WIDTH + OWN) < WIDTH)
    completions = Completions(tokens, valid, mask, np.zeros(tokens.shape), np.zeros(len(texts), bool))  # pyright: ignore[reportArgumentType]
    return Rollout([{"prompt": "1+2=", "goal": "3"}] * len(texts), completions, list(texts), WIDTH, 1.0)


def lengths(row, steps):
    return [float(len(step)) for step in steps]


def judged(rollout, *functions, failed=None, rewards=()):
    told = Failures() if failed is None else failed
    scorers = [by_function(Reward(f"f{i}", function), told) for i, function in enumerate(functions)]
    return Judge(rewards, failed=told, steps=StepJudge(CHARACTERS, "=", scorers))(rollout, len(rollout.rows))


def test_a_number_lands_on_the_last_token_of_its_step():
    rollout = rollout_of("12=3", "7=", "")
    scores = judged(rollout, lengths)
    nan = np.nan
    wanted = [[nan, nan, 2, nan, 1, nan], [nan, nan, 1, nan, nan, nan], [0, nan, nan, nan, nan, nan]]
    np.testing.assert_array_equal(scores.steps, wanted)
    np.testing.assert_array_equal(scores.total, [3, 1, 0])
    np.testing.assert_array_equal(scores.by_name["step_reward"], [3, 1, 0])
    whole = step_rewards_of(rollout, scores)
    assert whole is not None and whole.shape == (3, WIDTH + OWN) and np.isnan(whole[:, :WIDTH]).all()


def test_scorers_and_rewards_add_up_and_who_abstains_leaves_the_others_alone():
    rewards = (Reward("right", lambda prompts, completions, goal: [10.0, None]),)
    scores = judged(rollout_of("12=3", "4"), lengths, lambda row, steps: [None] * len(steps), rewards=rewards)
    np.testing.assert_array_equal(scores.total, [13, 1])
    scores = judged(rollout_of("12=3", "4"), lambda row, steps: [None] * len(steps), rewards=rewards)
    np.testing.assert_array_equal(scores.total, [10, np.nan])
    assert scores.steps is not None and np.isnan(scores.steps).all()


def test_a_row_that_a_function_raises_on_has_no_score_and_all_of_them_end_the_run():
    def fragile(row, steps):
        return [1 / len(step) for step in steps]

    failures = Failures()
    scores = judged(rollout_of("12=3", ""), fragile, failed=failures)
    np.testing.assert_array_equal(scores.total, [1.5, np.nan])
    assert failures.count == 1 and scores.failed.tolist() == [False, True]
    with pytest.raises(RewardError, match=r"reward 'f0' raised ZeroDivisionError.* and scored none of the rows \(1\)"):
        judged(rollout_of(""), fragile)


def test_steps_go_where_their_groups_go():
    parts = [rollout_of("12=3", "4=5"), rollout_of("6=", "7")]
    short = parts[1]._replace(completions=jax.tree.map(lambda x: x[:, :7] if x.ndim > 1 else x, parts[1].completions))
    taken = [Taken(np.array([i]), part, judged(part, lengths)) for i, part in enumerate((parts[0], short))]
    joined = filled_up(together(taken), 3)
    found = step_rewards_of(joined.rollout, joined.scores)
    assert found is not None and found.shape == (6, WIDTH + OWN)
    np.testing.assert_array_equal(np.nansum(found, -1), [3, 2, 1, 1, 0, 0])
    assert np.isnan(found[4:]).all()


def test_a_group_whose_scores_tie_teaches_where_its_steps_differ():
    """By what dynamic sampling and replay ask, and by the advantages that the loss has of the same groups."""
    texts = ["12=3", "1=45"], ["12=3", "45=6"], ["1=2", "1=2"]
    pairs = [rollout_of(*two, ended=False) for two in texts]
    # 2 + 1 and 1 + 2: a tie; 2 + 1 twice: unequal steps, equal completions; 1 + 1 twice: nothing to compare.
    taken = together([Taken(np.array([i]), pair, judged(pair, lengths)) for i, pair in enumerate(pairs)])
    assert (np.ptp(taken.by_group(), axis=-1) == 0).all()
    phase: Any = SimpleNamespace(judge=Judge([], steps=StepJudge(CHARACTERS, "=", [])))
    phase.update = SimpleNamespace(several=False)
    steps = step_rewards_of(taken.rollout, taken.scores)
    assert steps is not None
    known = Known(step_rewards=jnp.asarray(steps.reshape(3, 2, -1)))
    groups = Groups(taken.rollout.completions, jnp.asarray(taken.by_group()), known=known)
    credit = of_steps("dr_grpo", recipes.dr_grpo(6)).advantage(scored_groups(groups))
    found = informative_groups(jnp.asarray(GroupPhase._telling(phase, taken)))
    np.testing.assert_array_equal(found, (credit != 0).any((1, 2)))
    assert found.tolist() == [True, True, False]
    assert uninformative_share(compared(groups)) == pytest.approx(1 / 3)


def test_a_model_says_how_likely_each_step_is_right():
    shape = DecoderConfig(CHARACTERS.vocab_size, 16, 24, 1, 2, 1, 8)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda size: jnp.asarray(random.normal(size=size), jnp.float32),
        shape.scalar_shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    scored = by_model(LanguageModel(shape, params, CHARACTERS), "=")
    texts = [["12", "3"], ["4"]]
    found = scored(rollout_of("12=3", "4").rows, texts, 2)
    # Each is the score of the row that ends with the step.
    prefixes = [own[: last + 1] for own in texts for last in range(len(own))]
    records = [Stepwise("1+2=", steps, [True] * len(steps)) for steps in prefixes]
    batch = stepwise_rows(encode_stepwise(CHARACTERS, records, "="), CHARACTERS.pad_id)
    scores = jax.jit(sequence_scores(shape, (1, batch.prompt_width)))(params, batch.completions)
    assert [len(numbers or []) for numbers in found] == [2, 1]
    np.testing.assert_allclose(np.concatenate(found), jax.nn.sigmoid(scores), atol=1e-5)
    with pytest.raises(
        RewardError, match=r"the step reward model cannot read a completion: row 1: .*'x' at position 0"
    ):
        scored(rollout_of("1", "2").rows, [["1"], ["x"]], 2)


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (GrpoSettings, {"step_separator": "="}, "step_separator is given without step_reward or step_reward_model"),
        (GrpoSettings, {"step_reward": "a.py:f", "step_separator": ""}, "step_separator is an empty text"),
        (GrpoSettings, {"recipe": "trpo", "step_reward": "a.py:f"}, "recipe trpo has no step_reward; leave it out"),
        (PpoSettings, {"data": "a.jsonl"}, "data is given without reward or reward_model"),
        (RewardSettings, {"process": True}, "process is given without data"),
        (RewardSettings, {"step_separator": "="}, "step_separator is given without process"),
        (RewardSettings, {"process": True, "data": "a", "centering_coef": 0.1}, "centering_coef is given with process"),
    ],
)
def test_settings_that_contradict_each_other_are_named(kind, given, told):
    with pytest.raises(ValueError, match=told):
        kind.of(**given)


def test_recipes_whose_credit_is_of_whole_completions_take_no_steps():
    def built(recipe, **given):
        return build_objective(GrpoSettings.of(recipe=recipe, **given).objective, 8, credited=of_steps).objective

    for recipe in ("grpo", "dr_grpo", "dapo", "cispo", "verl:grpo", "gspo_token"):
        given = {"ceiling": 2.0} if recipe == "cispo" else {}
        assert built(recipe, **given).advantage.__qualname__.startswith("process_supervision"), recipe
    for recipe in ("spo", "gdpo", "raft", "reinforce_plus_plus", "otb", "pass_at_k"):
        with pytest.raises(ValueError, match=f"grpo: recipe {recipe} takes no rewards of steps"):
            built(recipe)
    with pytest.raises(ValueError, match="grpo: recipe gspo has one ratio for each completion"):
        built("gspo")


def test_a_separator_that_nobody_can_write_is_told():
    settings = GrpoSettings.of(step_reward="a.py:f")
    with pytest.raises(ValueError, match=r"step_separator is '\\n', which the model has no tokens for"):
        build_step_judge(settings.task, settings.model, CHARACTERS)


SMALL = {"steps": 1, "batch_size": 4, "eval_size": 4, "eval_every": 0, "save_every": 0, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    rows = [
        {"prompt": f"{a}+{b}+1=", "completions": [f"{a + b}+1", str(a + b + 1 + wrong)], "labels": [True, not wrong]}
        for a in range(1, 5)
        for b in range(1, 4)
        for wrong in (0, 1)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"prompt": row["prompt"], "completion": "=".join(row["completions"])} for row in rows[::2]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "mine.py").write_text("def short(row, steps):\n    return [float(len(step) < 3) for step in steps]\n")
    return folder


def test_a_process_reward_model_is_learned_and_scores_the_steps_of_a_run(files):
    data = str(files / "steps.jsonl")
    run = run_reward(RewardSettings.of(process=True, data=data, step_separator="=", out=str(files / "judge"), **SMALL))
    first, *_, last = run.metrics()
    assert {"held_out_loss", "held_out_accuracy"} <= set(first) and {"loss", "accuracy", "grad_norm"} <= set(last)
    given = {"data": str(files / "prompts.jsonl"), "step_separator": "=", "step_reward_model": str(run.model_path)}
    given |= SMALL | {"step_reward": f"{files}/mine.py:short", "warm_start_steps": 0, "eval_size": 0}
    stepped = run_grpo(GrpoSettings.of(**given, group_size=4, out=str(files / "grpo")))
    row = stepped.metrics()[-1]
    assert row["completions/mean_steps"] >= 1 and np.isfinite(row["reward"])
    row = stepped.completions()[-1]
    assert row["reward"] == pytest.approx(sum(row["step_rewards"]), abs=1e-5)


def test_ppo_learns_from_what_steps_earned():
    rollout = rollout_of("12=3", "7")
    scores, given = judged(rollout, lengths), {}

    def update(state, batch, **_):
        given["batch"] = batch
        return state, {"advantages": 0}

    phase = SimpleNamespace(update=lambda width, shares: update, shares=(), reference=None, frozen=None)
    PpoPhase._learn(phase, None, rollout, scores, None)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(given["batch"].step_rewards, step_rewards_of(rollout, scores))
    np.testing.assert_array_equal(given["batch"].scores, scores.total)
