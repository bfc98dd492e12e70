"""Whole runs of reward, dpo, kto and ppo with the embedded model, at the smallest size that still does everything."""

import json

import jax
import numpy as np
import pytest
from preference_batches import batch_of

from rlax_llm.commands.ppo.phase import PpoPhase, objective_of, shaping_of
from rlax_llm.commands.ppo.run import build_models, run_ppo
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.objective import build_preference
from rlax_llm.commands.preference.run import run_dpo, run_kto, run_reward
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.settings import flat
from rlax_llm.commands.setup import build_model
from rlax_llm.commands.tasks import build_task
from rlax_llm.core.finite import NOT_FINITE
from rlax_llm.host import checkpoints, phase
from rlax_llm.host.failures import RunFailed
from rlax_llm.models.loading import load_model, load_scalar
from rlax_llm.preference.implicit_rewards import forward_kl_slope
from rlax_llm.preference.marks import reads_collisions
from rlax_llm.preference.pairs import desensitize_length, preference_loss
from rlax_llm.recipes.preference import cdpo, dpo, f_dpo

SIZES = {"steps": 3, "batch_size": 4, "max_new_tokens": 6, "eval_size": 4, "eval_every": 2, "save_every": 1}
ADAPTERS = {"lora_rank": 2, "lora_save": "embed,norms"}
CLOCKS = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"{a}+1=", "chosen": str(a + 1), "rejected": str(a + 3), "margin": 0.5} for a in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbers(directory):
    return [{k: v for k, v in row.items() if not k.endswith(CLOCKS)} for row in directory.metrics()]


def leaves_equal(left, right):
    return jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right))


def complete(directory, *names):
    found = {path.name for path in directory.path.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "curves.png", "model", *names} <= found
    summary = json.loads(directory.summary_path.read_text())
    assert summary["finished"] and summary["steps"] == 3
    return True


@pytest.fixture(scope="module")
def reward_run(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward") / "run"
    return run_reward(RewardSettings.of(data=pairs, centering_coef=0.01, out=str(out), **SIZES))


def test_reward_model_is_written_and_read(reward_run):
    assert complete(reward_run)
    first, *steps = reward_run.metrics()
    assert {"held_out_loss", "held_out_accuracy", "held_out_margin"} <= set(first)
    assert {"loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "grad_norm"} <= set(steps[0])
    model = load_scalar(reward_run.model_path)
    assert model.params["score"].shape == (model.config.hidden_size,)


@pytest.fixture(scope="module")
def dpo_run(pairs, tmp_path_factory):
    return run_dpo(DpoSettings.of(data=pairs, out=str(tmp_path_factory.mktemp("dpo") / "run"), **SIZES))


def test_dpo_begins_at_the_reference(dpo_run):
    assert complete(dpo_run, "completions.jsonl")
    assert [row["step"] for row in dpo_run.completions()] == [0] * 4 + [3] * 4
    begin, first = dpo_run.metrics()[:2]
    # The margins of 0.5 are demanded: −log σ(0 − 0.5), at rewards of exactly 0.
    wanted = np.logaddexp(0.0, 0.5)
    assert begin["held_out_loss"] == pytest.approx(wanted, abs=1e-5) and first["loss"] == pytest.approx(
        wanted, abs=1e-5
    )
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert abs(first[name]) < 1e-5
    assert first["logps/chosen"] < 0 and first["logps/rejected"] < 0 and first["rewards/accuracies"] <= 1


def test_a_precomputed_reference_changes_nothing(dpo_run, pairs, tmp_path):
    other = run_dpo(DpoSettings.of(data=pairs, precompute_reference=True, out=str(tmp_path / "run"), **SIZES))
    for left, right in zip(numbers(dpo_run), numbers(other), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert right[name] == pytest.approx(value, rel=1e-4, abs=2e-5), name


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(dpo_run, pairs, tmp_path):
    out = str(tmp_path / "run")
    config = DpoSettings.of(data=pairs, out=out, lora_rank=2, lora_dropout=0.5, **SIZES)
    # The schedule is that of the whole run, so the run is stopped, not shortened.
    run_dpo(config.changed(schedule="constant", steps=2))
    again = run_dpo(config.changed(schedule="constant", resume=out))
    whole = run_dpo(config.changed(schedule="constant", out=str(tmp_path / "whole")))
    assert numbers(again)[-1]["loss"] == numbers(whole)[-1]["loss"]
    assert all(leaves_equal(load_model(again.model_path).params, load_model(whole.model_path).params))


def test_adapters_are_written_beside_the_merged_model(pairs, tmp_path):
    run = run_dpo(
        DpoSettings.of(data=pairs, recipe="simpo", base_dtype="nf4", out=str(tmp_path / "run"), **ADAPTERS, **SIZES)
    )
    assert complete(run, "model_adapter", "model_base")
    assert not (run.checkpoints_path / "reference").exists(), "a recipe without a reference keeps none"
    settings = json.loads((run.path / "model_adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["lora_alpha"] == 4
    norms = ["input_layernorm", "model.norm", "post_attention_layernorm"]
    assert settings["modules_to_save"] == ["embed_tokens", *norms] and settings["ensure_weight_tying"]
    assert load_model(run.model_path).config.lora is None
    # The base has no name to be found by, so it lies beside them, and the three agree.
    whole, over_base = load_model(run.model_path), load_model(run.path / "model_adapter")
    assert over_base.config == whole.config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), over_base.params, whole.params)
    base = load_model(run.path / "model_base").params["layers"]
    assert not bool((base["q"] == whole.params["layers"]["q"]).all())


def test_kto_takes_pairs_apart_and_warns_of_imbalance(pairs, tmp_path, capsys):
    config = KtoSettings.of(data=pairs, desirable_weight=3.0, out=str(tmp_path / "run"), **SIZES)
    run = run_kto(config)
    assert complete(run)
    assert "recommended is a desirable_weight of 1 to 1.33" in capsys.readouterr().err
    first = run.metrics()[1]
    assert abs(first["kl"]) < 1e-6 and {"rewards/chosen", "rewards/rejected", "count/chosen"} <= set(first)


def test_without_a_reference_point_labels_of_one_prompt_do(pairs, tmp_path):
    sizes = SIZES | {"batch_size": 2, "steps": 3}
    run = run_kto(KtoSettings.of(data=pairs, recipe="apo_zero", out=str(tmp_path / "run"), **sizes))
    assert complete(run) and "kl" not in run.metrics()[1]
    assert run.metrics()[0]["held_out_margin"] == pytest.approx(0.0, abs=1e-5)


def test_bco_carries_its_running_mean_over_a_resume(pairs, tmp_path):
    out = str(tmp_path / "run")
    config = KtoSettings.of(data=pairs, recipe="bco", schedule="constant", learning_rate=1e-2, out=out, **SIZES)
    run_kto(config.changed(steps=2))
    again = run_kto(config.changed(resume=out))
    whole = run_kto(config.changed(out=str(tmp_path / "whole")))
    assert complete(again) and numbers(again) == numbers(whole)
    assert all(leaves_equal(load_model(again.model_path).params, load_model(whole.model_path).params))
    begin, first, _, last = whole.metrics()
    assert abs(first["reference"]) < 1e-6 and abs(last["reference"]) > 1e-4 and "kl" not in first
    assert begin["held_out_loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_ppo_trains_four_models_from_a_reward_model(reward_run, tmp_path):
    config = PpoSettings.of(
        task="arithmetic,largest=9",
        reward_model=str(reward_run.model_path),
        warm_start_steps=0,
        minibatches=2,
        epochs=2,
        value_warmup_steps=1,
        out=str(tmp_path / "run"),
        **SIZES,
    )
    run = run_ppo(config)
    assert complete(run, "value_model", "completions.jsonl")
    begin, first, *_, last = run.metrics()
    assert abs(first["objective/kl"]) < 1e-5, "the policy is the reference at first"
    assert first["val/ratio"] == pytest.approx(1.0, abs=1e-4) and first["policy/clipfrac_avg"] == 0
    assert {"objective/scores", "objective/rlhf_reward", "loss/policy_avg", "loss/value_avg"} <= set(last)
    assert {"held_out_reward"} <= set(begin) and "rewards/reward_model" not in begin
    for line in run.details("tokens"):
        known = [x is not None for x in line["log_probs"]]
        assert [x is not None for x in line["advantages"]] == known and any(known)
    value, reward = load_scalar(run.path / "value_model"), load_scalar(reward_run.model_path)
    assert not all(leaves_equal(value.params, reward.params)), "the value model was trained"
    assert value.params["score"].shape == reward.params["score"].shape


PPO = PpoSettings.of(task="arithmetic,largest=9", warm_start_steps=2, **SIZES)


def phase_of(settings):
    model = build_model("ppo", settings.model, 0)
    models = build_models(settings.model, None, 0, model)
    return PpoPhase(settings, models, build_task(settings.task, settings.sampling, 0, model))


def test_ppo_rates_end_where_training_does():
    config = PPO.changed(steps=10, epochs=2, minibatches=2, value_warmup_steps=4, warmup_steps=1, learning_rate=1.0)
    phase = phase_of(config)
    # One step of warm-up is four optimizer steps; six steps teach the policy, 24 optimizer steps.
    rates = np.array([float(phase.schedule(i)) for i in range(25)])
    assert rates[3] == rates.max() == pytest.approx(1.0) and np.all(np.diff(rates[3:]) <= 0) and rates[24] < 0.06


def test_the_value_model_starts_from_the_warm_started_policy():
    config = PPO.changed(lora_rank=2, steps=2)
    phase = phase_of(config)
    policy = jax.tree.map(lambda x: x + 1, phase.models.policy.params)
    state = phase.init(policy)
    assert all(leaves_equal(state.params["value"]["layers"], policy["layers"]))
    assert not state.params["value"]["score"].any()


def test_an_error_in_the_first_step_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    config = PPO.changed(out=str(tmp_path / "run"), save_every=0)

    def fail(*_):
        raise ValueError("no luck")

    with monkeypatch.context() as patched:
        patched.setattr(PpoPhase, "step", fail)
        with pytest.raises(ValueError, match="no luck"):
            run_ppo(config)
    assert complete(run_ppo(config.changed(resume=config.run.out)), "value_model")


@pytest.mark.parametrize("command", ["reward", "dpo", "kto", "ppo"])
def test_numbers_that_are_not_finite_end_every_run(command, pairs, tmp_path, monkeypatch):
    run, kind = {
        "reward": (run_reward, RewardSettings),
        "dpo": (run_dpo, DpoSettings),
        "kto": (run_kto, KtoSettings),
    }.get(command, (run_ppo, None))
    config = PPO.changed(warm_start_steps=0) if kind is None else kind.of(data=pairs, **SIZES)
    seen = []

    def second(metrics):
        seen.append(metrics[NOT_FINITE])
        return "parameters" if len(seen) == 2 else None

    monkeypatch.setattr(phase, "not_finite_part", second)
    out = tmp_path / "run"
    with pytest.raises(
        RunFailed, match=rf"{command}: the parameters of step 2 are not finite.* is the model after step 1"
    ):
        run(config.changed(out=str(out)))
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["finished"], seen) == (1, False, [0.0, 0.0])
    assert (out / "model" / "model.safetensors").is_file() and checkpoints.latest(out / "checkpoints") == 1


def test_ppo_takes_functions_too(tmp_path):
    config = PPO.changed(lora_rank=2, recipe="vapo", nll_threshold=-1.0, group_size=2, out=str(tmp_path / "run"))
    run = run_ppo(config)
    assert complete(run, "value_model", "model_adapter", "value_model_adapter")
    pair = [load_scalar(run.path / name).params for name in ("value_model", "value_model_adapter")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *pair)
    assert [row["step"] for row in run.metrics()] == [-1, 0, 1, 2, 3]
    assert "held_out_accuracy" in run.metrics()[-1]
    assert all(row["positive_nll"] > 0 and row["objective/non_score_reward"] == 0 for row in run.metrics()[2:])


def test_flags_of_dpo_take_another_reward_and_weigh_pairs():
    def made(**given):
        return build_preference(DpoSettings.of(**given).objective)

    batch = batch_of(0)
    forward = f_dpo(forward_kl_slope, 0.3).rewards
    wanted = {
        "divergence alpha": (made(divergence="alpha", divergence_alpha=1.0), dpo()),
        "forward": (made(divergence="forward_kl", beta=0.3, recipe="cdpo"), cdpo(0.3)._replace(rewards=forward)),
        "tail": (made(tail_coef=0.2), dpo()._replace(rewards=desensitize_length(dpo().rewards, 0.2))),
        "both": (
            made(tail_coef=0.2, beta=0.3, divergence="alpha", divergence_alpha=0.0),
            dpo()._replace(rewards=desensitize_length(forward, 0.2)),
        ),
    }
    for name, (ours, theirs) in wanted.items():
        found, expected = (preference_loss(each, batch)[0] for each in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)
    assert reads_collisions(made(wpo=True, recipe="simpo").factors) and made().factors is None


def test_a_recipe_of_ppo_is_settings_that_compose():
    settings = PpoSettings.of(recipe="vapo")
    shaping = shaping_of(settings.objective)
    assert shaping.trace(40) == 0.5 and shaping.value_trace == 1 and not shaping.kl.charged
    assert (settings.rollout.batch_size, settings.rollout.group_size, settings.learning.value_warmup_steps) == (
        32,
        8,
        50,
    )
    assert [term.coef for term in objective_of(settings.objective).terms] == [0.1]
    assert settings.changed(policy_lambda=0.9).objective.length_alpha is None
    assert settings.changed(steps=8).learning.value_warmup_steps == 2
    plain = PpoSettings.of(eps=0.1).objective
    assert (plain.eps_high, plain.policy_lambda, objective_of(plain).terms) == (0.1, 0.95, ())
    assert PpoSettings.of(length_alpha=0.1).objective.policy_lambda is None
    again = PpoSettings.of(**{name: value for name, value in flat(settings).items() if name not in ("out", "resume")})
    assert flat(again) == flat(settings)
