"""Settings: made whole of parts from what is given, flat in files and on the command line."""

from __future__ import annotations

import dataclasses

import jax
import pytest
import yaml

from rlax_llm.cli.configuration import parse
from rlax_llm.cli.main import COMMANDS
from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.settings import as_dict, flat, keys, resolve
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.commands.shared_settings import OptimizerSettings, RunSettings, TrainedModelSettings

RUNS = {"runs": ("runs/a",)}
NEEDED = {"generate": {"prompt": "hi"}, "data": {"files": ("a.jsonl",)}, "doctor": RUNS, "report": RUNS}
NEEDED |= {"distill": {"teacher": "t"}}
KINDS = {name: command.settings for name, command in COMMANDS.items()}
MAY_BE_NONE = {
    "grpo": {"kl_coef", "kl_in", "eps", "eps_high", "ceiling", "entropy_target", "tool", "beta", "off_policy_mask"}
    | {"demonstrations", "mu", "gamma", "nll_coef", "step_coef"}
    | {"sampler_dtype", "cache_dtype", "curriculum"},
    "ppo": {"kl_target", "length_alpha"},
    "online": {"beta", "alpha", "mixture", "kl_coef", "value_beta"},
    "distill": {"beta", "on_policy", "gamma", "coef", "reward_coef", "follows", "separator", "write_teacher"}
    | {"teacher_prompt", "attempt_template", "feedback_template"},
    "dpo": {"beta", "label_smoothing", "gamma", "nll_coef"},
    "eval": {"task", "by", "against"},
    "data": {"use"},
    "chat": {"system"},
    "control": {"weight", "kl_target", "kl_radius", "damping", "cg_iterations", "save_every"},
}
"""What is None without being given, as an absence: what the recipe has, or does not read, stays as it is there."""
ABSENT = {
    "data",
    "eval_data",
    "eval_split",
    "reward",
    "reward_model",
    "micro_batch_size",
    "logit_bias",
    "pattern",
    "stop",
    "stop_ids",
    "out",
    "resume",
    "config",
}
ABSENT |= {"best", "max_hours", "mesh", "profile", "slots", "track"}
ABSENT |= {"coordinator", "process_id", "processes"}
ABSENT |= {"sampler_url", "sampler_reload", "sampler_directory", "step_reward", "step_reward_model"}
ABSENT |= {"lora_save", "lora_tokens"}
ABSENT |= {"router_aux_coef"}  # what the model's own config has stays as it is there


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_left_open_but_what_may_be_absent(name):
    settings = KINDS[name].of(**NEEDED.get(name, {}))
    open_ = {key for key, value in flat(settings).items() if value is None}
    assert open_ <= ABSENT | MAY_BE_NONE.get(name, set())


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if "config" in keys(kind)])
def test_what_is_written_makes_the_same_settings(name, tmp_path):
    settings = KINDS[name].of(**NEEDED.get(name, {}), seed=7)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(as_dict(settings)))
    assert parse(KINDS[name], ("--config", str(path)), "") == settings.changed(config=str(path))


@pytest.mark.parametrize("name", KINDS)
def test_a_name_is_that_of_one_part(name):
    kind = KINDS[name]
    settings = kind.of(**NEEDED.get(name, {}))
    names = [
        field.name for part in dataclasses.fields(kind) for field in dataclasses.fields(getattr(settings, part.name))
    ]
    assert sorted(names) == sorted(keys(kind)) and len(set(names)) == len(names)


def test_defaults_follow_from_what_is_given():
    small, large = GrpoSettings.of(), GrpoSettings.of(model="smollm2")
    assert (small.rollout.batch_size, large.rollout.batch_size) == (128, 8)
    assert (small.run.warm_start_steps, large.run.warm_start_steps) == (136, 0)
    adapters = GrpoSettings.of(lora_rank=4)
    assert adapters.optimizer.learning_rate == 10 * small.optimizer.learning_rate
    assert adapters.model.lora_alpha == 8.0
    assert GrpoSettings.of(data="a", reward="exact_answer", eval_data="b").task.eval_size is None
    assert SftSettings.of().optimizer.schedule == "constant" and SftSettings.of().run.save_every == 200


def test_the_value_model_follows_the_policy_unless_told():
    assert PpoSettings.of(learning_rate=0.5).learning.value_learning_rate == 0.5
    assert PpoSettings.of(learning_rate=0.5, value_learning_rate=0.25).learning.value_learning_rate == 0.25
    assert PpoSettings.of().model.value_model == "policy"
    assert PpoSettings.of(reward_model="judge").model.value_model == "reward"


def test_what_follows_from_a_changed_setting_follows_anew():
    settings = PpoSettings.of(steps=7).changed(learning_rate=0.5)
    assert (settings.run.steps, settings.learning.value_learning_rate) == (7, 0.5)
    assert settings == PpoSettings.of(steps=7, learning_rate=0.5)
    assert GrpoSettings.of(learning_rate=0.5).changed(model="smollm2").optimizer.learning_rate == 0.5
    control = ControlSettings.of(recipe="trpo", learning_rate=0.5).changed(recipe="ppo")
    assert control == ControlSettings.of(recipe="ppo", learning_rate=0.5)


def test_settings_made_of_parts_are_changed_alike():
    settings = GrpoSettings.of(steps=3)
    parts = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    assert GrpoSettings(**parts) == settings
    assert GrpoSettings(**parts).changed(steps=4) == settings.changed(steps=4)


def test_slots_have_room_for_a_group():
    with pytest.raises(ValueError, match="grpo: slots is 2, wanted at least group_size, 4: a group enters together"):
        GrpoSettings.of(batch_size=8, group_size=4, slots=2)
    assert GrpoSettings.of(batch_size=8, group_size=4, slots=13).rollout.slots == 13


def test_none_leaves_open_what_follows_from_others():
    assert ControlSettings.of(eps=None, kl_radius=None) == ControlSettings.of()
    for name in ("seed", "batch_size"):
        with pytest.raises(ValueError, match=f"grpo: {name} is None, wanted a value"):
            GrpoSettings.of(**{name: None})


def test_a_part_says_what_is_wrong_and_the_whole_of_which_command():
    with pytest.raises(ValueError, match=r"^steps is 0, wanted at least 1\.$"):
        RunSettings(steps=0, eval_every=0)
    with pytest.raises(ValueError, match=r"^reward: steps is 0, wanted at least 1\.$"):
        resolve(KINDS["reward"], {"steps": 0})
    with pytest.raises(ValueError, match=r"^learning_rate is 'fast', wanted a number\.$"):
        OptimizerSettings(learning_rate="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^dpo has no setting 'stepz'; did you mean 'steps'\?$"):
        KINDS["dpo"].of(stepz=3)
    with pytest.raises(ValueError, match=r"^sft: lora_alpha is given without lora_rank; give both\.$"):
        SftSettings.of(lora_alpha=2.0)
    with pytest.raises(ValueError, match=r"^sft: base_dtype is given without lora_rank; give both\.$"):
        SftSettings.of(base_dtype="nf4")
    half = GrpoSettings.of(lora_rank=2, dtype="bfloat16")
    models = [half.model, *(half.changed(base_dtype=name).model for name in ("float32", "int8", "nf4", "gguf"))]
    assert [model.stored_dtype for model in models] == ["bfloat16", "float32", *["bfloat16"] * 3]
    assert [model.blocks for model in models] == [None, None, "int8", "nf4", "gguf"]
    with pytest.raises(ValueError, match=r"^lora_alpha is 0\.0, wanted a number greater than 0\.$"):
        TrainedModelSettings(remat=False, lora_rank=2, lora_alpha=0.0, base_dtype="float32")


def test_a_step_that_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"^grpo: batch_size · group_size · tokens of a row is 48,640,000,000, wanted"):
        GrpoSettings.of(group_size=10_000_000)
    with pytest.raises(ValueError, match="sft: batch_size · tokens of a row is"):
        SftSettings.of(packed_tokens=2_000_000_000)


def test_floats_may_be_traced():
    def scaled(rate):
        return 2 * ControlSettings.of().changed(learning_rate=rate).learning.learning_rate

    assert jax.vmap(scaled)(jax.numpy.array([0.5, 1.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0, wanted at least 1"),
        ({"max_hours": 0.0}, "max_hours is 0.0, wanted a number greater than 0"),
        ({"profile": 9}, "profile is 9, wanted a step of the run, at most 8"),
    ],
)
def test_what_a_run_keeps_and_traces_is_checked(given, message):
    with pytest.raises(ValueError, match=f"sft: {message}"):
        KINDS["sft"].of(steps=8, **given)
