"""What ``rlax-llm grpo`` can be asked for, on the character model: each part in a run of few steps."""

from __future__ import annotations

import json
import string
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.gathering import Gatherer, Kept
from rlax_llm.commands.grpo.objective import TRPO, build_learning, build_objective
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Failures, Judge, pooled
from rlax_llm.commands.preference.run import run_reward
from rlax_llm.commands.preference.settings import RewardSettings
from rlax_llm.commands.tasks import build_task
from rlax_llm.host.session import Session
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.recipes.building import parameters
from rlax_llm.recipes.registry import recipes
from rlax_llm.rewards.calling import Reward
from rlax_llm.rewards.functions import exact_answer

TINY = GrpoSettings.of(
    task="arithmetic,largest=9",
    batch_size=4,
    group_size=4,
    steps=3,
    warm_start_steps=8,
    eval_every=0,
    eval_size=4,
    save_every=0,
)


def objective_of(settings, weights=(1.0,)):
    return build_objective(settings.objective, settings.sampling.max_new_tokens, weights)


def learning_of(settings):
    return build_learning(settings.learning, settings.rollout)


def task_of(settings):
    return build_task(settings.task, settings.sampling, settings.run.seed, reader())


def ran(tmp_path, **changes):
    config = TINY.changed(out=str(tmp_path / "run"), **changes)
    directory = runs.run_grpo(config)
    return directory, directory.metrics()[-1]


def test_every_recipe_has_an_objective():
    needed = {"ceiling": 3.0, "eps": 0.2}
    for name, named in recipes("group").items():
        if name == TRPO:
            continue
        takes = parameters(named)
        given = {key: value for key, value in needed.items() if key in takes and takes[key].default is takes[key].empty}
        given |= {"demonstrations": {"demonstrations": "a"}, "members": {"demonstrations": "a"}}.get(named.given, {})
        given |= {"tool": "calculator"} if named.given == "answers" or "turns" in named.reads else {}
        config = GrpoSettings.of(recipe=name, max_new_tokens=6, kl_coef=0.25, **given)
        chosen = objective_of(config, (1.0, 0.5))
        assert chosen.needs_reference, name
        assert not objective_of(config.changed(kl_coef=0.0)).needs_reference, name
    assert {"dapo", "gdpo", "trl:dr_grpo", "verl:gpg", "openrlhf:rloo"} <= set(recipes("group"))


def test_a_kl_can_stand_in_the_loss_or_in_the_score_of_any_recipe():
    for recipe in ("dapo", "rloo", "grpo"):
        loss, reward = (
            objective_of(GrpoSettings.of(recipe=recipe, kl_coef=0.1, kl_in=place)).objective
            for place in ("loss", "reward")
        )
        assert loss.kl is not None and reward.kl is None
        assert loss.advantage != reward.advantage
    assert objective_of(GrpoSettings.of(recipe="grpo", kl_coef=0.1)).objective.kl is not None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"recipe": "cispo"}, "recipe cispo needs ceiling; give --ceiling"),
        ({"recipe": "gspo", "ceiling": 2.0}, "recipe gspo has no ceiling; leave it out"),
        ({"recipe": "opo", "eps": 0.1}, "recipe opo has no eps"),
        ({"recipe": "gdpo", "kl_coef": 0.1, "kl_in": "reward"}, "gdpo normalizes each reward by itself"),
    ],
)
def test_settings_that_a_recipe_lacks_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        objective_of(GrpoSettings.of(**settings))


LUFFY = {"recipe": "luffy", "data": ("sums.jsonl",), "reward": "equals:answer", "demonstrations": "worked"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 6}, "min_new_tokens is 9, wanted at most max_new_tokens, 6"),
        ({"recipe": "trpo", "epochs": 2}, "trpo has no epochs"),
        ({"batch_size": 4, "minibatches": 3}, "minibatches is 3, wanted a divisor of batch_size"),
        ({"overlong_buffer": 9, "max_new_tokens": 6}, "overlong_buffer is 9, wanted at most max_new_tokens, 6"),
        ({"kl_in": "loss"}, "kl_in is given without kl_coef"),
        ({"recipe": "trpo", "dynamic_rounds": 3}, "trpo has no dynamic_rounds"),
        ({"recipe": "trpo", "sampler_dtype": "bfloat16"}, "trpo has no sampler_dtype"),
        ({"recipe": "trpo", "partial_rollouts": 2}, "trpo has no partial_rollouts"),
        ({"recipe": "trpo", "ahead": 1}, "trpo has no ahead"),
        ({"ahead": 2}, "ahead is 2, wanted a whole number of at most 1"),
        ({"partial_rollouts": 2, "tool": "calculator"}, "partial_rollouts is given with tool calculator"),
        ({"partial_rollouts": 2, "sampler_url": "http://localhost"}, "partial_rollouts is given with sampler_url"),
        ({"router_replay": True, "partial_rollouts": 2}, "router_replay is given with partial_rollouts, whose"),
        ({"router_replay": True, "tool": "calculator"}, "router_replay is given with tool, whose completions take"),
        ({"recipe": "trpo", "replay": 8}, "trpo has no replay"),
        ({"replay_share": 0.25}, "replay_share is given without replay"),
        ({"replay": 8, "replay_share": 0.01, "batch_size": 4}, "replay_share is 0.01, less than half of one of the 4"),
        ({"recipe": "remax", "group_size": 1, "replay": 8}, "group_size is 1, wanted at least 2"),
        (LUFFY | {"replay": 8}, "replay is given with recipe luffy"),
        (LUFFY | {"step_reward": "steps.py:f"}, "luffy learns from demonstrations, whose steps nobody judges"),
        ({"recipe": "trpo", "lora_rank": 2, "base_dtype": "int8"}, "recipe trpo has no base_dtype int8"),
        ({"recipe": "trpo", "router_aux_coef": 0.1}, "recipe trpo has no router_aux_coef"),
        ({"retire": "settled"}, "retire is given without curriculum"),
        ({"curriculum": 1.5}, "curriculum is 1.5, wanted a number from 0 to 1"),
        ({"curriculum": 0.5, "partial_rollouts": 2}, "curriculum is given with partial_rollouts"),
        ({"recipe": "trpo", "cache_dtype": "int8"}, "trpo has no cache_dtype"),
        ({"recipe": "dapo", "kl_radius": 0.1}, "dapo has no kl_radius"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        GrpoSettings.of(**settings)


def test_epochs_and_minibatches_make_the_clip_act(tmp_path):
    directory, row = ran(tmp_path, recipe="dapo", epochs=3, minibatches=2, learning_rate=1e-2, warm_start_steps=3)
    rows = [row for row in directory.metrics() if row["step"] > 0]
    assert max(row["kl_old"] for row in rows) > 1e-4 and max(row["clip_ratio/region_mean"] for row in rows) > 0
    for each in rows:
        parts = each["clip_ratio/low_mean"] + each["clip_ratio/high_mean"]
        assert parts == pytest.approx(each["clip_ratio/region_mean"], rel=1e-5)
    assert row["learning_rate"] > 0  # of a schedule that counts optimizer steps
    assert learning_of(TINY.changed(epochs=3, minibatches=2)).micro_batches == 1
    names = {"mean", "min", "max", "mean_terminated", "min_terminated", "max_terminated"}
    assert {f"completions/{name}_length" for name in names} | {"completions/clipped_ratio"} <= set(row)
    assert row["reward_std"] >= 0 and "frac_reward_zero_std" in row
    assert directory.curves_path.stat().st_size > 0


def test_dynamic_sampling_wastes_no_group_and_resumes(tmp_path):
    settings = TINY.changed(recipe="dapo", dynamic_rounds=30, save_every=1, schedule="constant", speculate="2")
    whole, half = (
        runs.run_grpo(settings.changed(steps=steps, out=str(tmp_path / name)))
        for steps, name in ((4, "whole"), (2, "half"))
    )
    rows = [row for row in whole.metrics() if row["step"] > 0]
    assert all(row["frac_reward_zero_std"] == 0 and row["sampling/filled"] == 1 for row in rows)
    assert sum(row["sampling/surplus"] for row in rows) > 0
    assert all(0 <= row["sampling/guessed_share"] < 1 for row in rows)
    again = runs.run_grpo(settings.changed(steps=4, resume=str(half.path)))
    told = "sampling/rounds", "sampling/surplus", "sampling/prefilled_tokens", "sampling/guessed_share"
    for name in ("reward", "policy_loss", *told):
        values = [[row[name] for row in run.metrics() if row["step"] > 0] for run in (again, whole)]
        np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("rounds", [0, 30])
def test_unfinished_groups_go_on_in_the_next_step_and_after_a_checkpoint(tmp_path, rounds):
    settings = TINY.changed(partial_rollouts=2, dynamic_rounds=rounds, max_new_tokens=12, save_every=1, temperature=1.5)
    assert settings.learning.correction == "token"
    whole, half = (
        runs.run_grpo(settings.changed(steps=steps, out=str(tmp_path / name), schedule="constant"))
        for steps, name in ((4, "whole"), (2, "half"))
    )
    again = runs.run_grpo(settings.changed(steps=4, resume=str(half.path), schedule="constant"))
    rows, resumed = ([row for row in run.metrics() if row["step"] > 0] for run in (whole, again))
    sampled = "sampling/carried", "sampling/prefilled_tokens", "sampler/staleness", "sampler/correction_mean"
    for name in ("reward", "policy_loss", *sampled):
        assert [row[name] for row in resumed] == [row[name] for row in rows], name
    assert {row["sampling/carried"] for row in rows} == {2} and rows[0]["sampler/oldest"] == 0
    for row in rows[1:]:
        assert row["sampler/older_tokens"] <= row["sampler/staleness"] <= row["sampler/oldest"] < row["step"]
    assert max(row["sampler/older_tokens"] for row in rows) > 0


def test_a_task_without_differences_is_an_error(tmp_path):
    (tmp_path / "same.py").write_text("def same(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    with pytest.raises(ValueError, match=r"2 rounds of 4 groups, and in none did the scores differ .*mean is 1: all"):
        ran(tmp_path, reward=f"{tmp_path}/same.py:same", dynamic_rounds=2)


def test_trpo_keeps_to_its_radius(tmp_path):
    directory, row = ran(tmp_path, recipe="trpo", kl_radius=1e-3, temperature=0.8, top_k=9, min_p=0.01)
    assert all("advantages" in line for line in directory.details("tokens"))
    assert row["accepted"] == 1 and 0 < row["kl"] <= 1e-3 and row["improvement"] > 0


def test_trpo_on_adapters(tmp_path):
    _, row = ran(tmp_path, recipe="trpo", warm_start_steps=0, lora_rank=2)
    assert row["kl"] <= 0.01


def test_several_rewards_are_weighted_and_told_apart(tmp_path):
    spec = "exact_answer + 0.5*format=[0-9]+ + 0*words=1"
    _, row = ran(tmp_path, recipe="gdpo", reward=spec, overlong_buffer=2, overlong_filter=True)
    for name in ("exact_answer", "format", "words", "overlong"):
        assert np.isfinite(row[f"rewards/{name}/mean"]), name
    total = row["rewards/exact_answer/mean"] + 0.5 * row["rewards/format/mean"] + row["rewards/overlong/mean"]
    assert row["reward"] == pytest.approx(total, abs=1e-6)


def test_a_reward_model_judges(tmp_path):
    judge = run_reward(RewardSettings.of(steps=2, eval_size=4, batch_size=4, out=str(tmp_path / "judge")))
    directory, row = ran(tmp_path, reward_model=str(judge.model_path))
    assert np.isfinite(row["reward"]) and "held_out_accuracy" not in row
    assert "held_out_reward" in directory.metrics()[-1]


def test_the_reference_follows(tmp_path):
    """With a refresh at every step the policy is its own reference, so its KL is 0 before each update."""
    _, kept = ran(tmp_path / "a", kl_coef=0.1, learning_rate=1e-2)
    _, row = ran(tmp_path / "b", kl_coef=0.1, learning_rate=1e-2, reference_every=1)
    assert kept["kl"] > 1e-4 > row["kl"]


def test_advantages_of_tokens_are_kept_where_the_kl_is_a_part_of_them_too(tmp_path):
    directory, _ = ran(tmp_path, kl_coef=0.1, kl_in="reward", warm_start_steps=0)
    lines = directory.details("tokens")
    assert lines and all(None not in line["advantages"] for line in lines)


def test_a_reference_that_nothing_reads_is_told(tmp_path):
    with pytest.raises(ValueError, match="reference_every is 1 and nothing reads a reference"):
        ran(tmp_path / "c", recipe="dapo", reference_every=1)


def test_a_reference_is_there_as_long_as_a_checkpoint_may_want_it(tmp_path):
    session = Session("grpo", {}, out=str(tmp_path / "run"), warm_start_steps=8)
    for step in range(9):
        session.position = 8 + step
        if step % 2 == 0:
            session.reference({"w": jnp.full(2, float(step))}, 2)
        if step == 3:
            session.state = {"w": jnp.zeros(2)}
            session.save()
    session.position = 8 + 3
    assert session.reference({"w": jnp.full(2, 3.0)}, 2)["w"].tolist() == [2.0, 2.0]
    session.position = 8 + 5
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*reference/4"):
        session.reference({"w": jnp.full(2, 5.0)}, 2)


def test_the_surplus_of_every_checkpoint_is_kept(tmp_path):
    """Also where a checkpoint could not be written, and its step's surplus is written once more."""
    gatherer = Gatherer(lambda params, number, carried: pytest.fail("nothing is drawn"), 2, 3)

    def load(position):
        gatherer.load(tmp_path, position, [], lambda completions: [])

    for position in (10, 20, 30, 30, 40):
        gatherer.kept = Kept(drawn=position)
        gatherer.keep(tmp_path, position)
        if position < 30:
            (tmp_path / str(position)).mkdir()
    load(20)
    assert gatherer.kept == Kept(drawn=20)
    with pytest.raises(ValueError, match=r"surplus-50\.npz is missing"):
        load(50)


def test_accuracy_is_that_of_the_first_reward(tmp_path):
    """Neither a reward for the form nor the punishment of length makes an answer right or wrong."""
    (tmp_path / "right.py").write_text("def right(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    _, row = ran(tmp_path, reward=f"0.5*{tmp_path}/right.py:right + format=never", steps=1, overlong_buffer=2)
    assert row["accuracy"] == row["held_out_accuracy"] == 1 and row["reward"] <= 0.5


@pytest.mark.parametrize(
    "formats",
    [{"sampler_dtype": "bfloat16"}, {"cache_dtype": "int8"}, {"sampler_dtype": "int8", "cache_dtype": "int8"}],
)
def test_a_sampler_of_less_precision_is_corrected(tmp_path, formats):
    """By default, and measured with the learner's own numbers."""
    directory, row = ran(tmp_path, **formats, warm_start_steps=0)
    assert "correction: token\n" in (directory.path / "config.yaml").read_text()
    assert 0 < row["sampler/kl_k3"] < 1e-2 and row["kl_old"] < 1e-6
    assert row["sampler/correction_mean"] == pytest.approx(1, abs=0.05)
    assert all(np.isfinite(value) for name, value in row.items() if name.startswith("sampler/"))


def test_a_reward_that_fails_on_a_row_loses_that_row_alone(tmp_path, capsys):
    (tmp_path / "brittle.py").write_text(
        "def brittle(prompts, completions, answer, **columns):\n    return [1 / (int(a) % 2) for a in answer]\n"
    )
    _, row = ran(tmp_path, reward=f"{tmp_path}/brittle.py:brittle")
    assert row["reward"] == 1 and row["reward_failures"] > 0
    assert "warning: reward 'brittle' raised ZeroDivisionError" in capsys.readouterr().err


def test_rewards_without_workers_stay_as_they_are():
    reward = Reward("exact_answer", exact_answer)
    with pooled([reward], 0, 1.0, Failures()) as rewards:
        assert rewards == (reward,)
    assert Judge([reward._replace(weight=0.5)], None, ("overlong", np.negative)).weights() == (0.5, 1.0)


def reader() -> Any:
    """Of a model what reads prompts, of all characters."""
    tokenizer = Tokenizer.characters(string.printable)
    return SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(vocab_size=tokenizer.vocab_size))


def test_answers_can_be_turned_into_integers(tmp_path, capsys):
    data = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"half of {n}", "answer": f"{n}/2"} for n in (1, 3, 5)] + [{"prompt": "who", "answer": "Ann"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"data": str(data), "reward": "integer_answer", "eval_size": 1, "seed": 1}
    config = GrpoSettings.of(**given, integer_answers=True, max_prompt_tokens=200)
    task = task_of(config)
    rows = [*task.train, *task.held_out]
    assert sorted(row["answer"] for row in rows) == [3, 5, 7]
    assert all(row["prompt"].endswith("Give the value of m + n.") for row in rows)
    told = capsys.readouterr().err
    assert "1 of 4 rows left out: 1 because the answer 'Ann' has no integer form (line 4)" in told
    with pytest.raises(ValueError, match="grpo: integer_answers is given without data"):
        GrpoSettings.of(integer_answers=True)


def test_answers_that_no_reward_can_read_are_told_before_the_run(tmp_path, capsys):
    data = tmp_path / "answers.jsonl"
    rows = [{"prompt": f"{n}", "answer": answer} for n, answer in enumerate(["1/2", None, r"\frac{", "7", "x + 1"])]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = GrpoSettings.of(data=str(data), reward="math_answer + 0*integer_answer", eval_size=1, seed=1)
    assert len(task_of(config).train) == 4
    told = capsys.readouterr().err.splitlines()
    assert (
        f"{data}: math_answer cannot read the answer of 2 of 5 rows; it gives them no score. The first is " in told[0]
    )
    assert f"{data}: integer_answer cannot read the answer of 3 of 5 rows" in told[1] and len(told) == 2
    data.write_text("".join(json.dumps(row | {"answer": None}) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"answers\.jsonl: math_answer can read none of the 5 answers.*first is None"):
        task_of(config)


def test_slow_rewards_run_in_processes_and_completions_are_kept_with_theirs(tmp_path):
    directory, row = ran(tmp_path, reward="exact_answer", reward_workers=1, steps=1)
    assert np.isfinite(row["reward"])
    rows = [row for row in directory.completions() if row["step"] == 1 and not row.get("held_out")]
    assert len(rows) == TINY.rollout.group_size
    assert {"prompt", "completion", "reward", "length", "truncated"} <= set(rows[0])
    assert json.loads(directory.summary_path.read_text())["recipe"] == "grpo"
