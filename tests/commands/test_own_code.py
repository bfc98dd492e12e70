"""A user's own recipes, environments, tasks, rewards and optimizers: FILE.py:FUNCTION and MODULE:FUNCTION."""

from __future__ import annotations

import optax
import pytest

from rlax_llm.commands.control.program import ControlSettings, build
from rlax_llm.commands.grpo.knowing import reads
from rlax_llm.commands.grpo.objective import build_objective, check_told
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.places import whole_paths
from rlax_llm.commands.preference.objective import build_preference, build_unpaired
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings
from rlax_llm.data.tasks import load_task
from rlax_llm.envs.registry import make
from rlax_llm.preference.links import hinge
from rlax_llm.rewards.loading import load_reward

OWN = """
import optax
from rlax_llm.core.types import Completions
from rlax_llm.envs.registry import make
from rlax_llm.preference.links import hinge
from rlax_llm.preference.unpaired import kto
from rlax_llm import recipes
from rlax_llm.recipes import control, group, preference, variants

def objective(eps=0.3): return group.dapo(eps, eps)
@recipes.reads("baselines")
@recipes.alone
def above_greedy(): return variants.remax()
@recipes.reads("turns", "anchors", "turn_returns")
def of_turns(step_coef=1.0): return variants.gigpo(step_coef)
def preferred(beta=0.5): return preference.simpo(beta)
def link(): return hinge
def labels(beta=0.2): return kto(beta)
def control_objective(gae_lambda=0.9, eps=0.1): return control.ppo(gae_lambda, eps)
def environment(horizon_steps=7): return make("RockPaperScissors", horizon_steps=horizon_steps)
def task(held_out_size, seed, size=4):
    rows = [{"prompt": f"{i}=", "answer": i} for i in range(size)]
    return rows, rows[:held_out_size], reward
def reward(prompts, completions, **columns): return [1.0] * len(prompts)
def optimizer(schedule): return optax.sgd(schedule)
def number(*given, **named): return 3.0
def broken(*given, **named): raise RuntimeError("out of order")
def needs(colour): return None
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def optimizer(spec):
    return build_optimizer(GrpoSettings.of(optimizer=spec, steps=1).optimizer, optax.constant_schedule(0.1))


KINDS = {
    "grpo recipe": lambda spec: build_objective(GrpoSettings.of(recipe=spec).objective, 6),
    "dpo recipe": lambda spec: build_preference(DpoSettings.of(recipe=spec).objective),
    "kto recipe": lambda spec: build_unpaired(KtoSettings.of(recipe=spec).objective),
    "control recipe": lambda spec: build(ControlSettings.of(recipe=spec)),
    "environment": make,
    "task": lambda spec: load_task(spec, held_out_size=2),
    "reward": load_reward,
    "optimizer": optimizer,
}
each = pytest.mark.parametrize("kind", KINDS)


def test_each_is_found_by_its_file_and_by_its_module(folder):
    for place in ("own_code.py", "own_code", f"{folder}/own_code.py"):
        assert KINDS["grpo recipe"](f"{place}:objective").objective.kl is None
    assert KINDS["dpo recipe"]("own_code.py:preferred").nll_coef == 0
    assert KINDS["dpo recipe"]("own_code.py:link").link.__name__ == hinge.__name__
    assert KINDS["kto recipe"]("own_code.py:labels")[0].link.__name__ == "misranking"
    assert KINDS["control recipe"]("own_code.py:control_objective").iterations > 0
    assert make("own_code.py:environment", horizon_steps=3).actions.n == 3
    task = load_task("own_code.py:task,size=6", held_out_size=2)
    assert (len(task.train), len(task.held_out), task.rewards[0].name) == (6, 2, "reward")
    assert load_reward("own_code.py:reward").name == "reward"
    optimizer("own_code.py:optimizer")


def test_a_recipe_says_what_it_reads_and_that_one_completion_is_enough():
    alone, compared, turns = (f"own_code.py:{name}" for name in ("above_greedy", "objective", "of_turns"))
    settings = GrpoSettings.of(recipe=alone, group_size=1)
    check_told(settings)
    assert reads(settings) == ("baselines",) and reads(GrpoSettings.of(recipe=compared)) == ()
    with pytest.raises(ValueError, match=r"^grpo: group_size is 1, wanted at least 2\.$"):
        check_told(GrpoSettings.of(recipe=compared, group_size=1))
    with pytest.raises(ValueError, match=r"^grpo: recipe .*own_code.py:of_turns compares turns, and without a tool"):
        check_told(GrpoSettings.of(recipe=turns))
    check_told(GrpoSettings.of(recipe=turns, tool="calculator"))


def test_links_of_a_users_own_are_added_to_others():
    assert KINDS["dpo recipe"]("dpo:0.5,own_code.py:link:0.5").nll_coef == 0
    with pytest.raises(
        ValueError, match=r"recipe own_code\.py:preferred has a reward of its own|own_code.py:preferred"
    ):
        KINDS["dpo recipe"]("dpo:0.5,own_code.py:preferred:0.5")


@each
def test_a_missing_file_and_a_missing_name_are_told(kind):
    with pytest.raises(ValueError, match=r"there is no file .*own_cod\.py; did you mean 'own_code\.py'\?"):
        KINDS[kind]("own_cod.py:link")
    with pytest.raises(ValueError, match=r"has no function 'objectiv'; did you mean 'objective'\?"):
        KINDS[kind]("own_code.py:objectiv")
    with pytest.raises(ValueError, match=r"there is no module 'own_cod' here or installed; did you mean 'own_code'"):
        KINDS[kind]("own_cod:link")


WANTED = {
    "grpo recipe": "an Objective",
    "dpo recipe": "a Preference or a link",
    "kto recipe": "an Unpaired",
    "control recipe": "an Objective or a Penalized or a NaturalStep",
    "environment": "an Environment",
    "task": "a tuple of rows to train on, rows held out and a reward function",
    "optimizer": "an Optax transformation",
}


@pytest.mark.parametrize("kind", WANTED)
def test_what_returns_something_else_or_fails_is_told(kind):
    told = rf"own_code\.py:number'? returned a value of type float, wanted {WANTED[kind]}\.$"
    with pytest.raises(ValueError, match=told):
        KINDS[kind]("own_code.py:number")
    with pytest.raises(ValueError, match=r"own_code\.py:broken'? raised RuntimeError: out of order\.$"):
        KINDS[kind]("own_code.py:broken")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "recipe" in kind])
def test_a_recipe_that_needs_what_is_no_setting_is_told(kind):
    with pytest.raises(ValueError, match="needs colour; wanted a function of some of the settings "):
        KINDS[kind]("own_code.py:needs")


def test_they_are_found_from_any_directory(folder):
    settings = {
        "recipe": "dpo:0.8,own_code.py:link:0.2",
        "env": "own_code:environment",
        "task": "own_code.py:task,size=6",
        "reward": "0.5*own_code.py:reward",
        "optimizer": "own_code.py:optimizer",
    }
    code = f"{folder}/own_code.py"
    assert whole_paths(settings) == {
        "recipe": f"dpo:0.8,{code}:link:0.2",
        "env": f"{code}:environment",
        "task": f"{code}:task,size=6",
        "reward": f"0.5*{code}:reward",
        "optimizer": f"{code}:optimizer",
    }
    (folder / "trl.py").write_text("")
    (folder / "probe.py").write_text("")
    kept = {"recipe": "trl:dr_grpo", "env": "probe:time_limit", "task": "arithmetic,largest=9"}
    assert whole_paths(kept) == kept
    assert GrpoSettings.of(recipe="own_code:objective").objective.recipe == f"{code}:objective"
