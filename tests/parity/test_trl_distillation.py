"""Losses of distillation against TRL's own trainers, on the logits that hidden states and heads make."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import DistillationTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.iw_opd import IWOPDTrainer
from trl.experimental.sdft import loss_utils as of_sdft
from trl.experimental.sdpo import SDPOConfig
from trl.experimental.sdpo.sdpo_trainer import (
    DistillationLogits,
    SDPOTrainer,
    SuccessfulRolloutTeacherContextBuilder,
)

from rlax_llm.commands.distill.teachers import teacher_prompts
from rlax_llm.core.buckets import top_token_divergences, top_tokens
from rlax_llm.core.divergences import Predictions, token_divergences
from rlax_llm.core.types import PolicyBatch, Scored
from rlax_llm.policy.distillation import Attempt
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.recipes import distillation as recipes
from rlax_llm.recipes import trl

pytestmark = pytest.mark.usefixtures("float64")

ROWS, LENGTH, V = 3, 7, 41


def prepared() -> tuple[np.ndarray, ...]:
    """Hidden states and heads of both models, and which tokens count."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(ROWS, LENGTH, 6)), random.normal(size=(ROWS, LENGTH, 5))
    heads = random.normal(size=(V, 6)), random.normal(size=(V, 5))
    mask = random.random((ROWS, LENGTH)) < 0.7
    mask[1] = False  # a row without a token to learn from
    return student, teacher, *heads, mask


def of_gkd(student, teacher, mask, beta, temperature):
    labels = torch.tensor(np.where(mask, 0, -100))
    return GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)


def of_self(student, teacher, mask, beta, temperature):
    logits = student / temperature, teacher / temperature
    found = of_sdft.compute_full_logit_self_distillation_loss(*logits, distillation_alpha=beta)
    return (found * torch.tensor(mask)).sum() / mask.sum()


def theirs(trainer, *given) -> list[np.ndarray]:
    student, teacher, *heads, mask = prepared()
    hidden, head = (torch.tensor(x, requires_grad=True) for x in (student, heads[0]))
    logits = torch.tensor(teacher) @ torch.tensor(heads[1]).T
    loss = trainer(hidden @ head.T, logits, mask, *given)
    loss.backward()
    return [loss.detach().numpy(), hidden.grad.numpy(), head.grad.numpy()]


def of_whole_models(beta, temperature) -> list[np.ndarray]:
    """``DistillationTrainer``, whose kernel reads hidden states and heads."""
    student, teacher, *heads, mask = prepared()
    hidden, head = (torch.tensor(x, requires_grad=True) for x in (student, heads[0]))
    own, other = a_model(hidden, head), a_model(torch.tensor(teacher), torch.tensor(heads[1]))
    stub = SimpleNamespace(
        teacher_model=other,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        beta=beta,
        temperature=temperature,
        _forward_redirection=lambda wrapper, model, method, *given, **named: method(*given, **named),
        _get_last_hidden_state=lambda model, *unused, **named: model.states,
    )
    ids, kept = torch.zeros(mask.shape, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": kept}
    loss = DistillationTrainer._compute_loss(stub, own, inputs, kept.sum())[0]
    loss.backward()
    return [loss.detach().numpy(), hidden.grad.numpy(), head.grad.numpy()]


def a_model(states: torch.Tensor, head: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        states=states,
        eval=lambda: None,
        get_output_embeddings=lambda: SimpleNamespace(weight=head, bias=None),
        config=SimpleNamespace(get_text_config=SimpleNamespace),
    )


@pytest.fixture
def wide(monkeypatch):
    """Its kernel adds up in float32, whatever it is given: the same code in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("trainer", [of_whole_models, partial(theirs, of_gkd), partial(theirs, of_self)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_divergences_and_their_gradients_are_trls(beta, temperature, trainer):
    _, teacher, *heads, mask = prepared()

    def loss(hidden, head):
        flat = hidden.reshape(-1, hidden.shape[-1])
        other = Predictions(jnp.asarray(teacher.reshape(-1, 5)), jnp.asarray(heads[1]), temperature)
        divergence = trl.distillation(beta).divergence
        found = token_divergences(Predictions(flat, head, temperature), other, divergence)
        return jnp.where(mask, found.reshape(mask.shape), 0.0).sum() / mask.sum()

    assert_same(loss, trainer(beta, temperature))


def assert_same(loss, wanted: list[np.ndarray], atol: float = 1e-12) -> None:
    """Value and slopes of a loss of the student's hidden states and head."""
    student, _, head, *_ = prepared()
    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(head))
    for found, other in zip((value, *slopes), wanted, strict=True):
        np.testing.assert_allclose(found, other, rtol=0, atol=atol)
        assert np.abs(other).max() > 1e-3


@pytest.mark.parametrize("k", [1, 4])
def test_the_teachers_likeliest_tokens_and_the_rest_are_trls(k):
    _, teacher, *heads, mask = prepared()

    def of_likeliest(student, teacher, mask):
        labels = torch.tensor(np.where(mask, 0, -100))
        return IWOPDTrainer.generalized_jsd_loss(student, teacher, labels, beta=0, top_k=k, add_tail=True)

    def loss(hidden, head):
        said = top_tokens(Predictions(jnp.asarray(teacher.reshape(-1, 5)), jnp.asarray(heads[1])), k)
        own = Predictions(hidden.reshape(-1, hidden.shape[-1]), head)
        found = top_token_divergences(own, said, recipes.forward_kl().divergence)
        return jnp.where(mask, found.reshape(mask.shape), 0.0).sum() / mask.sum()

    assert_same(loss, theirs(of_likeliest))


# Losses of the tokens that were drawn. They write log π where ours write log π/π_old: the same slopes, another value.


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, how far the policy has moved since, and the rows of which the teacher has a hint."""
    random = np.random.default_rng(1)
    shape = prepared()[-1].shape
    return random.integers(0, V, shape), random.normal(size=shape), np.array([True, True, False])


SCORED = np.array([0.5, -0.25, -0.25])
"""Advantages of the rows."""


def log_probs_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(drawn()[0])[..., None])[..., 0]


def of_tokens(logits: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), drawn()[0][..., None], -1)[..., 0]


def telling_nobody(**settings) -> SimpleNamespace:
    """What the losses of drawn tokens read of a trainer."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _log_self_distillation_metric=lambda *unused: None,
        **settings,
    )


@pytest.mark.parametrize(("recipe", "moves"), [(recipes.iw_opd, 0.0), (trl.iw_opd, 0.0), (trl.iw_opd, 1.0)])
def test_iw_opd_and_its_gradients_are_trls(recipe, moves):
    """The recipe has the ratio too, which is 1 as long as the policy has not moved."""
    _, teacher, _, other, mask = prepared()
    chosen, moved = drawn()[0], moves * drawn()[1]

    def weighed(student, teacher, mask):
        stub = telling_nobody(temperature=1.0, iw_opd_gamma=0.5, iw_opd_epsilon=1e-8)
        labels = torch.tensor(np.where(mask, 0, -100))
        began = log_probs_of(student).detach() - torch.tensor(moved)
        given = student, torch.tensor(chosen), labels, log_probs_of(teacher), began
        return IWOPDTrainer._compute_iw_opd_loss(stub, *given)

    def loss(hidden, head):
        now = of_tokens(hidden @ head.T)
        began = jax.lax.stop_gradient(now) - moved
        objective = recipe().objective
        said = of_tokens(jnp.asarray(teacher @ other.T))
        credit = objective.advantage(Scored(jnp.zeros((1, ROWS)), began[None], jnp.asarray(mask)[None], said[None]))[0]
        batch = PolicyBatch(now, began, credit, jnp.asarray(mask))
        apart = jnp.where(mask, credit * began, 0.0).sum() / mask.sum()
        shift = -apart if recipe is trl.iw_opd else (credit * mask).sum() / mask.sum() - apart
        return policy_loss(objective, batch)[0] + shift

    assert_same(loss, theirs(weighed), 1e-7)  # weights are float32


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_sdpo_and_its_gradients_are_trls(weight):
    """At any age of the tokens: its weights are at most 2, and its advantage is that of the policy at hand; alone, or
    beside the loss of what scores pay."""
    _, teacher, _, other, mask = prepared()
    chosen, moved, hinted = drawn()

    def sampled(student, teacher, mask):
        settings = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "distillation_is_clip": 2.0}
        settings["distillation_weight"] = weight
        stub = telling_nobody(args=SimpleNamespace(**settings), use_teacher_server=False, teacher_model=None)
        stub.importance_sampling_level, stub.loss_type = "token", "dapo"
        stub.epsilon_low = stub.epsilon_high = 0.2
        stub.current_gradient_accumulation_steps = 1
        kept = torch.tensor(mask, dtype=torch.float64)
        taught = kept * torch.tensor(hinted)[:, None]
        logits = DistillationLogits(torch.tensor(chosen), kept, taught, student, teacher)
        began = {"old_per_token_logps": log_probs_of(student).detach() - torch.tensor(moved)}
        began |= {name: torch.tensor(chosen) for name in ("prompt_ids", "completion_ids", "prompt_mask")}
        began |= {"completion_mask": kept, "advantages": torch.tensor(SCORED)}
        stub._compute_teacher_student_logits = lambda *unused: logits
        stub._forward_logits = lambda **unused: student
        for name in ("_compute_policy_loss", "_compute_self_distillation_loss"):
            setattr(stub, name, partial(getattr(SDPOTrainer, name), stub))
        return SDPOTrainer.compute_loss(stub, stub.model, began)

    def loss(hidden, head):
        now = of_tokens(hidden @ head.T)
        fixed = jax.lax.stop_gradient(now)
        ratio = jnp.where(hinted[:, None], of_tokens(jnp.asarray(teacher @ other.T)) - fixed, 0.0)
        objective = trl.sdpo(coef=weight).objective
        paid = ratio if weight == 1 else jnp.broadcast_to(SCORED[:, None], mask.shape)
        batch = PolicyBatch(now, fixed - moved, paid, jnp.asarray(mask), ref_log_probs=fixed - moved + ratio)
        factors = weight * trl.over_all_rows()(jnp.asarray(mask)) * jnp.minimum(jnp.exp(moved), 2.0) * ratio
        return policy_loss(objective, batch)[0] - (factors * (fixed - moved)).sum()

    assert_same(loss, theirs(sampled), 1e-7)


# What SDPO's teacher is asked.

GROUP = 3
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Next?"}]
PROMPTS = ["What is next?", CHAT]
REWARDS = np.array([[0.0, 1.0, 0.5], [1.0, 0.2, 1.0]])
FEEDBACK = ["too {small}", None, "  ", "", "not that", None]


def asked_by_trl(feedback: bool, threshold: float) -> tuple[list, list[bool]]:
    """Its builder's messages for two groups of three, and which of them teach."""
    seen = []

    def tokenized(messages):
        seen.extend(messages)
        return [[2, 3]] * len(messages)

    fields = SDPOConfig.__dataclass_fields__
    settings = {name: fields[name].default for name in ("reprompt_template", "solution_template", "feedback_template")}
    settings |= {"success_reward_threshold": threshold, "include_environment_feedback": feedback}
    defaults = ("dont_reprompt_on_self_success", "environment_feedback_only_without_solution", "max_reprompt_len")
    defaults += ("use_successful_as_teacher", "remove_thinking_from_demonstration")
    settings |= {name: fields[name].default for name in defaults}
    alone = SimpleNamespace(
        device=torch.device("cpu"), process_index=0, gather=lambda x: x, pad_across_processes=lambda x, **unused: x
    )
    tokens = SimpleNamespace(pad_token_id=0, decode=lambda ids, **unused: f"attempt {int(ids[0])}")
    stub = SimpleNamespace(
        accelerator=alone,
        model=SimpleNamespace(training=True),
        num_generations=GROUP,
        args=SimpleNamespace(**settings),
        _tokenizer=tokens,
        processing_class=tokens,
        _tokenize_prompts_untruncated=tokenized,
    )
    ids = torch.arange(1, 2 * GROUP + 1)[:, None]
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    made = SuccessfulRolloutTeacherContextBuilder(stub).build(
        {"completion_ids": ids, "completion_mask": torch.ones_like(ids)},
        prompts,
        torch.tensor(REWARDS.ravel()),
        list(FEEDBACK),
    )
    return seen, made["self_distillation_mask"].bool().tolist()


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
def test_what_sdpos_teacher_is_asked_is_trls(feedback, threshold):
    """With the words of its own templates."""
    fields = SDPOConfig.__dataclass_fields__
    words = {name: fields[name].default for name in ("reprompt_template", "solution_template", "feedback_template")}
    recipe = recipes.sdpo(
        teacher_prompt=words["reprompt_template"].replace("{solution}{feedback}", "{hint}"),
        attempt_template=words["solution_template"].replace("{successful_previous_attempt}", "{hint}"),
        feedback_template=words["feedback_template"].replace("{feedback_raw}", "{hint}"),
    )
    found, hinted = [], []
    for group, prompt in enumerate(PROMPTS):
        places = range(GROUP * group, GROUP * (group + 1))
        said = [FEEDBACK[place] if feedback else None for place in places]
        solved = [score >= threshold for score in REWARDS[group]]
        texts = [f"attempt {place + 1}" for place in places]
        attempts = [Attempt({"prompt": prompt}, *of) for of in zip(texts, solved, said, strict=True)]
        shown = teacher_prompts(recipe.prompting, attempts)
        found += [prompt if asked is None else asked for asked in shown]
        hinted += [asked is not None for asked in shown]
    assert (found, hinted) == asked_by_trl(feedback, threshold)
    assert any(hinted) == (threshold <= 1 or feedback)
