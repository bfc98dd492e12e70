"""Whole steps of ``group_loop`` against TRL's GRPO and RLOO trainers: the same tiny Llama, completions and scores.

TRL scores with a sampler's weights and takes its loss with those of a policy some way off, so that clipping acts; its
reference differs from both. Everything is float32. Numbers agree to 1e-4, absolute and relative; each entry of the
gradient to 1e-4 of its array's largest.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trl_groups as peers
from test_preference_steps import CONFIG, RATE, STEPS, Keep, distance
from trl import GRPOTrainer, RLOOTrainer

from rlax_llm import group_loop
from rlax_llm.core.kl import k3, kl_penalty
from rlax_llm.core.types import Completions, Groups, PolicyBatch
from rlax_llm.credit.batches import batch_std
from rlax_llm.credit.groups import centered, per_group
from rlax_llm.loops.group import group_advantages
from rlax_llm.models.scoring import LogProbs, group_log_probs
from rlax_llm.policy.coupled import mask_off_policy, weigh_by_ratio
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.policy.ratios import sequence_ratio, token_ratio
from rlax_llm.policy.trust_regions import clip
from rlax_llm.recipes import trl

BOUND, BETA, PROMPTS = 1e-4, 0.1, 3
LAYOUT = (peers.GROUP, peers.PROMPT)


@jax.jit
def tempered(temperature: float, params: dict, completions: Completions) -> tuple[jax.Array, jax.Array]:
    """Compiled once for all objectives; what an objective adds runs without a compiler."""
    return group_log_probs(CONFIG, LAYOUT, temperature)(params, completions)


def model_at(temperature: float = 1.0) -> LogProbs:
    return partial(tempered, temperature)


class Case(NamedTuple):
    """An objective of ours and the fields of TRL's configuration that ask for it."""

    objective: Objective
    fields: dict[str, Any]


NARROW = 0.05  # half-width for the ratios of completions, which are nearer to 1
SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": NARROW}
FILTERED = {"mask_truncated_completions": True}
PLAIN_KL = {"beta": BETA, "use_bias_correction_kl": False}
KL, CORRECTED = kl_penalty(k3, BETA), weigh_by_ratio(kl_penalty(k3, BETA))
BY_ROW = trl.grpo(eps=NARROW)._replace(ratio=sequence_ratio)

GRPO = {
    "dapo": Case(trl.grpo(), {}),
    "dapo, clip higher": Case(trl.grpo(eps_high=0.28), {"epsilon_high": 0.28}),
    "dapo, delta": Case(trl.grpo(delta=1.3), {"delta": 1.3}),
    "dapo, batch": Case(trl.grpo()._replace(advantage=batch_std()), {"scale_rewards": "batch"}),
    "dapo, none": Case(trl.grpo()._replace(advantage=per_group(centered)), {"scale_rewards": "none"}),
    "dapo, kl": Case(trl.grpo(BETA), PLAIN_KL),
    "dapo, corrected kl": Case(trl.grpo_corrected_kl(BETA), {"beta": BETA}),
    "dapo, filtered": Case(trl.grpo(BETA), PLAIN_KL | FILTERED),
    "dapo, temperature": Case(trl.grpo(), {"temperature": 0.7}),
    "dapo, sequence": Case(BY_ROW, SEQUENCE),
    "dapo, off-policy mask": Case(
        trl.grpo()._replace(trust_region=mask_off_policy(clip(), 0.01)), {"off_policy_mask_threshold": 0.01}
    ),
    "bnpo": Case(trl.grpo(), {"loss_type": "bnpo"}),
    "bnpo, filtered, sequence": Case(BY_ROW, {"loss_type": "bnpo"} | FILTERED | SEQUENCE),
    "grpo": Case(trl.grpo_sequence_mean(), {"loss_type": "grpo"}),
    "grpo, kl": Case(trl.grpo_sequence_mean(BETA), {"loss_type": "grpo"} | PLAIN_KL),
    "grpo, filtered": Case(trl.grpo_sequence_mean(BETA), {"loss_type": "grpo"} | PLAIN_KL | FILTERED),
    "grpo, sequence": Case(trl.gspo(NARROW), {"loss_type": "grpo"} | SEQUENCE),
    "grpo, sequence, as published": Case(
        trl.gspo(3e-4, 4e-4), {"loss_type": "grpo"} | SEQUENCE | {"epsilon": 3e-4, "epsilon_high": 4e-4}
    ),
    "grpo, sequence, filtered": Case(trl.gspo(NARROW), {"loss_type": "grpo"} | SEQUENCE | FILTERED),
    "grpo, sequence, kl": Case(trl.gspo(NARROW)._replace(kl=KL), {"loss_type": "grpo"} | SEQUENCE | PLAIN_KL),
    "dr_grpo": Case(trl.dr_grpo(peers.LIMIT), {"loss_type": "dr_grpo"}),
    "dr_grpo, none, filtered": Case(
        trl.dr_grpo(peers.LIMIT)._replace(advantage=per_group(centered)),
        {"loss_type": "dr_grpo", "scale_rewards": "none"} | FILTERED,
    ),
    "luspo": Case(trl.luspo(NARROW), {"loss_type": "luspo"} | SEQUENCE),
    "luspo, token": Case(trl.luspo()._replace(ratio=token_ratio), {"loss_type": "luspo"}),
    "luspo, filtered": Case(trl.luspo(NARROW), {"loss_type": "luspo"} | SEQUENCE | FILTERED),
    "sapo": Case(trl.sapo(), {"loss_type": "sapo"}),
    "sapo, sequence, kl": Case(
        trl.sapo()._replace(ratio=sequence_ratio, kl=KL), {"loss_type": "sapo"} | SEQUENCE | PLAIN_KL
    ),
    "cispo": Case(trl.cispo(1.2), {"loss_type": "cispo", "epsilon_high": 1.2}),
    "cispo, its default": Case(trl.cispo(), {"loss_type": "cispo"}),
    "cispo, sequence": Case(
        trl.cispo(1.1)._replace(ratio=sequence_ratio), {"loss_type": "cispo", "epsilon_high": 1.1} | SEQUENCE
    ),
    "cispo, corrected kl": Case(
        trl.cispo(1.2)._replace(kl=CORRECTED), {"loss_type": "cispo", "epsilon_high": 1.2, "beta": BETA}
    ),
    "vespo": Case(trl.vespo(), {"loss_type": "vespo"}),
    "vespo, filtered, kl": Case(trl.vespo()._replace(kl=KL), {"loss_type": "vespo"} | FILTERED | PLAIN_KL),
}
RLOO = {
    "rloo": Case(trl.rloo(0.0), {"beta": 0.0}),
    "rloo, kl": Case(trl.rloo(BETA), {"beta": BETA}),
    "rloo, kl, filtered": Case(trl.rloo(BETA), {"beta": BETA} | FILTERED),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, peers.Weights]:
    return peers.three_models(tmp_path_factory.mktemp("models"))


def keeping_the_gradient() -> optax.GradientTransformation:
    """An optimizer that takes no step and whose state is the last gradient."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
    )


def our_step(case: Case, models: dict[str, peers.Weights], groups: peers.Groups) -> tuple[dict, dict[str, float]]:
    """The gradient and the metrics, and the whole loss among them."""
    model = model_at(case.fields.get("temperature", 1.0))
    completions = peers.completions_of(groups, "mask_truncated_completions" in case.fields)
    completions = completions._replace(log_probs=model(models["sampler"].params, completions)[0])
    init, step = group_loop(model, case.objective, keeping_the_gradient())
    reference = {"reference": models["reference"].params} if case.fields.get("beta") else {}
    scores = jnp.asarray(groups.scores)
    state, metrics = step(init(models["policy"].params), Groups(completions, scores), **reference)
    current = model(models["policy"].params, completions)[0]
    known = model(reference["reference"], completions)[0] if reference else None
    advantages = group_advantages(case.objective.advantage, completions, scores, known)
    batch = PolicyBatch(current, completions.log_probs, advantages, completions.mask, ref_log_probs=known)
    metrics |= {"loss": policy_loss(case.objective, batch)[0]}
    return state.opt_state, {name: float(x) for name, x in metrics.items()}


def assert_near(found: Any, expected: Any, name: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=BOUND, atol=BOUND, err_msg=name)


def assert_same_gradient(mine: dict, theirs: dict) -> None:
    def compare(path: tuple, one: jax.Array, two: np.ndarray) -> None:
        largest = np.abs(two).max()
        assert largest > 1e-5, path
        np.testing.assert_allclose(one, two, rtol=0, atol=BOUND * largest, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, mine, theirs)


def comparable_metrics(case: Case) -> dict[str, str]:
    """Our metrics and TRL's that are the same number: means over tokens, whatever the loss weighs."""
    fields = case.fields
    names = {"entropy": "entropy"}
    if fields.get("scale_rewards") != "batch":  # there TRL asks whether all scores of the batch agree
        names["frac_reward_zero_std"] = "frac_reward_zero_std"
    # Theirs is multiplied by the ratio otherwise.
    if fields.get("beta") and not fields.get("use_bias_correction_kl", True):
        names["kl"] = "kl"
    # Where the ratio is a completion's, theirs is a mean over rows. What ``delta`` or the off-policy mask hold back
    # counts as clipped here alone.
    level, kind = fields.get("importance_sampling_level", "token"), fields.get("loss_type", "dapo")
    clipped = level == "token" and kind in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
    if clipped and not {"delta", "off_policy_mask_threshold"} & fields.keys():
        names |= CLIPPED
    return names


CLIPPED = {
    "clip_fraction": "clip_ratio/region_mean",
    "clip_fraction_low": "clip_ratio/low_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
}


def assert_same_loss(case: Case, metrics: dict[str, float], peer: peers.Peer) -> None:
    """The whole loss; of one with a corrected penalty, whose value is in TRL's metric alone, the policy's part."""
    if case.fields.get("loss_type") in ("cispo", "vespo"):
        return  # they write log π where ours write the log-ratio: the same gradient, another value
    beta = case.fields.get("beta", 0.0)
    corrected = case.fields.get("use_bias_correction_kl", True)
    if beta and corrected:
        assert_near(metrics["policy_loss"], peer.loss - beta * peer.metrics["kl"], "policy_loss")
    else:
        assert_near(metrics["loss"], peer.loss, "loss")


@pytest.mark.parametrize("name", GRPO)
def test_a_step_is_trls_grpo(name, models, tmp_path):
    case, groups = GRPO[name], peers.drawn(PROMPTS)
    peer = peers.their_step(GRPOTrainer, models, tmp_path, groups, **case.fields)
    gradient, metrics = our_step(case, models, groups)
    assert_same_gradient(gradient, peer.gradient)
    assert_same_loss(case, metrics, peer)
    for mine, theirs in comparable_metrics(case).items():
        assert_near(metrics[mine], peer.metrics[theirs], mine)
    if CLIPPED["clip_fraction"] in peer.metrics:
        assert min(peer.metrics[x] for x in CLIPPED.values()) > 0


def test_every_loss_type_of_trl_is_covered():
    """A new one in TRL's code shows here."""
    compared = re.findall(r"self\.loss_type (?:==|in) (\[.*?\]|\".*?\")", inspect.getsource(GRPOTrainer._compute_loss))
    known = set(re.findall(r"\w+", " ".join(compared)))
    assert known == {case.fields.get("loss_type", "dapo") for case in GRPO.values()}


@pytest.mark.parametrize("name", RLOO)
def test_a_step_is_trls_rloo(name, models, tmp_path):
    case, groups = RLOO[name], peers.drawn(PROMPTS)
    peer = peers.their_step(RLOOTrainer, models, tmp_path, groups, **case.fields)
    gradient, metrics = our_step(case, models, groups)
    assert_same_gradient(gradient, peer.gradient)
    # Its clip ratios are means over completions, as its ratio is; ours are of tokens.
    assert_near(metrics["entropy"], peer.metrics["entropy"], "entropy")
    if not case.fields["beta"]:  # TRL looks for a spread after the KL is off the scores
        assert_near(metrics["frac_reward_zero_std"], peer.metrics["frac_reward_zero_std"], "frac_reward_zero_std")
    if not case.fields.keys() & FILTERED.keys():  # an empty row is worth −A there, and nothing here
        assert_near(metrics["policy_loss"], peer.loss, "loss")


@pytest.mark.parametrize(("kind", "name"), [(GRPOTrainer, "dapo, kl"), (RLOOTrainer, "rloo, kl")])
def test_a_completion_without_a_score(kind, name, models, tmp_path):
    case, groups = (GRPO | RLOO)[name], peers.drawn(PROMPTS)
    groups.scores[0, 2] = np.nan
    peer = peers.their_step(kind, models, tmp_path, groups, **case.fields)
    gradient, metrics = our_step(case, models, groups)
    assert_same_gradient(gradient, peer.gradient)
    assert_near(metrics["loss"], peer.loss, "loss")


# TRL's ``bnpo`` is the mean of the micro-batches' means, so it is not here.
@pytest.mark.parametrize("name", ["dapo, kl", "grpo, kl", "dr_grpo", "luspo", "sapo", "cispo", "vespo"])
def test_micro_batches_change_nothing_there_either(name, models, tmp_path):
    case, groups = GRPO[name], peers.drawn(PROMPTS)
    peer = peers.their_step(GRPOTrainer, models, tmp_path, groups, parts=2, **case.fields)
    gradient, metrics = our_step(case, models, groups)
    assert_same_gradient(gradient, peer.gradient)
    assert_same_loss(case, metrics, peer)


# Ten steps


def their_run(models: dict, scratch: Any, groups: peers.Groups, iterations: int) -> tuple[list, list]:
    """Parameters after every step and what was logged of each."""
    keep, decay = Keep(), {"weight_decay": 0.01, "max_grad_norm": 1.0}
    fields = {"num_iterations": iterations, "per_device_train_batch_size": PROMPTS * peers.GROUP} | decay
    run = peers.trainer(GRPOTrainer, models["reference"].model(), scratch, groups, [keep], **fields)
    run.train()
    return keep.params, [entry for entry in run.state.log_history if "loss" in entry]


def adamw() -> optax.GradientTransformation:
    """The trainer's: norms clipped at 1, and no decay for the scales of the norms."""

    def decayed(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in path[-1].key, params)

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, eps=1e-8, weight_decay=0.01, mask=decayed))


def our_run(start: dict, groups: peers.Groups, iterations: int) -> tuple[list, list]:
    init, step = group_loop(model_at(), trl.grpo(), adamw())
    state, params, logs = init(start), [], []
    for first in range(0, len(groups.prompts), PROMPTS):
        part = groups.batch(first, PROMPTS)
        completions = peers.completions_of(part)
        # As the sampler with these parameters gives them.
        completions = completions._replace(log_probs=model_at()(state.params, completions)[0])
        for _ in range(iterations):
            state, metrics = step(state, Groups(completions, jnp.asarray(part.scores)))
            params.append(state.params)
            logs.append({name: float(x) for name, x in metrics.items()})
    return params, logs


NAMES = CLIPPED | {"policy_loss": "loss"} | {x: x for x in ("grad_norm", "entropy", "frac_reward_zero_std")}


@pytest.mark.parametrize("iterations", [1, 2])
def test_ten_steps_of_the_default_loss(iterations, models, tmp_path):
    """Each completion learned from once, and twice: then every second step is off policy.

    Parameters stay within 1e-4 of how far they have come.
    """
    groups = peers.drawn(PROMPTS * STEPS // iterations, seed=1)
    theirs, their_logs = their_run(models, tmp_path, groups, iterations)
    start = models["reference"].params
    mine, my_logs = our_run(start, groups, iterations)
    assert len(theirs) == len(mine) == STEPS
    for one, two in zip(my_logs, their_logs, strict=True):
        for name, key in NAMES.items():
            if key in two:  # what is known while scoring is logged once for each batch
                assert_near(one[name], two[key], name)
    for one, two in zip(mine, theirs):
        assert distance(one, two) < BOUND * distance(two, start)
