"""Whole optimizer steps against TRL's trainers: the same tiny Llama, the same pairs and labels, ten steps of AdamW.

TRL gets texts, tokenizes them itself and runs ``trainer.train()``; ours gets the token ids in its own layout. The
metrics of every step are compared, and the parameters after it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from datasets import Dataset
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

from rlax_llm.core.types import Completions, LabeledCompletions, PairedCompletions
from rlax_llm.loops.labels import label_loop, zero_reference
from rlax_llm.loops.preference import preference_loop, reward_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.huggingface import tensor_name, write_model, write_scalar
from rlax_llm.models.scalar import init_scalar, sequence_scores
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.preference import links
from rlax_llm.preference.unpaired import kto, mismatched_rows
from rlax_llm.recipes.preference import dpo, ipo

pytestmark = pytest.mark.usefixtures("float64")
torch.set_num_threads(1)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-"
PAD, EOS = "<pad>", "</s>"
CONFIG = DecoderConfig(len(LETTERS) + 2, 32, 48, 2, 4, 2, 8, tie_embeddings=False)
STEPS, BATCH, BETA, RATE = 10, 4, 0.3, 1e-3
PROMPT, LENGTH = 6, 8  # the longest, in tokens


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    backend = Backend(models.WordLevel({token: i for i, token in enumerate([PAD, EOS, *LETTERS])}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)


def text(random: np.random.Generator, longest: int) -> str:
    return "".join(random.choice(list(LETTERS), random.integers(1, longest + 1)))


def ids(letters: str) -> list[int]:
    return [LETTERS.index(x) + 2 for x in letters]


def rows_of(prompts: list[str], completions: list[str], layout: int) -> Completions:
    """Token rows: prompts on the left, completions and their stop token on the right; [steps, rows, T]."""
    tokens = np.zeros((len(prompts), PROMPT + LENGTH), np.int32)
    valid, mask = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for b, (prompt, completion) in enumerate(zip(prompts, completions)):
        before, after = ids(prompt), [*ids(completion), 1]
        span = slice(PROMPT - len(before), PROMPT + len(after))
        tokens[b, span], valid[b, span] = before + after, True
        mask[b, PROMPT : PROMPT + len(after)] = True
    split = partial(np.reshape, shape=(STEPS, BATCH * layout, -1))
    zeros = np.zeros((STEPS, BATCH * layout, PROMPT + LENGTH))
    return Completions(split(tokens), split(valid), split(mask), zeros, np.zeros(zeros.shape[:2], bool))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A model as files, which transformers reads."""
    path = tmp_path_factory.mktemp("model")
    write_model(path, CONFIG, decoder.init_decoder(CONFIG, jax.random.key(0)))
    return path


def parameters(model: torch.nn.Module) -> dict:
    """A model's parameters in our layout, in their own dtype."""
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    layers = {}
    for leaf in CONFIG.parameter_shapes["layers"]:
        own = [tensors.pop(tensor_name(leaf, layer)) for layer in range(CONFIG.num_layers)]
        layers[leaf] = np.stack([x.T for x in own])
    names = {"embed": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
    top = {leaf: tensors.pop(name) for leaf, name in names.items() if name in tensors}
    top |= {name.split(".")[0]: tensor[0] for name, tensor in tensors.items()}  # a reward model's score
    return top | {"layers": layers}


class Keep(TrainerCallback):
    """The parameters after every step."""

    def __init__(self):
        self.params = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.params.append(parameters(model))


def settings(directory: Path, **more) -> dict:
    same = {"lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0, "optim": "adamw_torch"}
    same |= {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "learning_rate": RATE, "max_steps": STEPS}
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "use_cpu": True}
    plain = {"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": BATCH}
    order = {"train_sampling_strategy": "sequential"}
    return {"output_dir": str(directory)} | same | quiet | plain | order | more


class Peer(NamedTuple):
    """Parameters at the start and after every step, and what was logged of each."""

    start: dict
    params: list
    logs: list


def theirs(trainer, config, models: list, scratch: Path, data: dict, **more) -> Peer:
    """TRL's ten steps of the first model; the second, if there is one, is the reference."""
    keep, start = Keep(), parameters(models[0])
    given = dict(zip(("model", "ref_model"), models))
    run = trainer(
        args=config(**settings(scratch, **more)),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(),
        callbacks=[keep],
        **given,
    )
    run.train()
    return Peer(start, keep.params, [entry for entry in run.state.log_history if "loss" in entry])


def ours(loop, start, batches, **more) -> tuple[list, dict]:
    init, step = loop
    start, more = jax.tree.map(jnp.asarray, (start, more))

    def body(state, rows):
        state, metrics = step(state, rows, **more)
        return state, (state.params, metrics)

    state, (params, metrics) = jax.jit(partial(jax.lax.scan, body))(init(start), jax.tree.map(jnp.asarray, batches))
    assert state.step == STEPS
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(STEPS)], jax.tree.map(np.asarray, metrics)


def distance(left, right) -> float:
    return float(optax.global_norm(jax.tree.map(jnp.subtract, left, right)))


def assert_same_run(mine: tuple[list, dict], peer: Peer, names: dict[str, str], bounds: tuple[float, float]) -> None:
    """Metrics of every step, and parameters after it: their distance relative to how far they have come."""
    params, metrics = mine
    assert len(params) == len(peer.params) == STEPS
    for name, key in names.items():
        expected = np.array([entry[key] for entry in peer.logs if key in entry])
        found = metrics[name][~np.isnan(metrics[name])]
        # Before the first step every margin is 0 but for rounding, which alone says who is ahead.
        first = 1 if key == "rewards/accuracies" else 0
        np.testing.assert_allclose(found[first:], expected[first:], rtol=bounds[0], atol=bounds[0], err_msg=name)
    for one, two in zip(params, peer.params):
        assert distance(one, two) < bounds[1] * distance(two, peer.start)


DTYPES = {"float32": torch.float32, "float64": torch.float64}
# Of metrics, and of the path. In float64 transformers still takes norms and rotations in float32, so log-probabilities
# of 20 nats and more agree to seven digits; Adam takes whole steps along the smallest slopes, rounding included.
BOUNDS = {"float32": (1e-4, 1e-2), "float64": (1e-5, 1e-5)}


def optimizer() -> optax.GradientTransformation:
    return optax.adam(RATE, eps=1e-8)


def language_models(directory: Path, dtype: str) -> list[torch.nn.Module]:
    """Twice the same: a policy and its reference."""
    return [AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPES[dtype]) for _ in range(2)]


# Pairs


def pairs(seed: int) -> dict[str, list[str]]:
    random = np.random.default_rng(seed)
    count = STEPS * BATCH
    return {"prompt": [text(random, PROMPT) for _ in range(count)]} | {
        side: [text(random, LENGTH - 1) for _ in range(count)] for side in ("chosen", "rejected")
    }


def pair_rows(data: dict) -> Completions:
    both = [x for pair in zip(data["chosen"], data["rejected"]) for x in pair]
    return rows_of(list(np.repeat(data["prompt"], 2)), both, 2)


PAIR_METRICS = {
    "loss": "loss",
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen_log_prob": "logps/chosen",
    "rejected_log_prob": "logps/rejected",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
}
OF_ITS_OWN = {"chosen_reward", "rejected_reward", "margin", "accuracy"}  # TRL reports DPO's rewards, whatever the loss
DPO = {
    "dpo": (dpo(BETA), {}, set()),
    "ipo": (ipo(BETA), {"loss_type": ["ipo"]}, OF_ITS_OWN),
    "mixed": (
        dpo(BETA)._replace(
            link=links.weighted_sum((0.8, links.logistic), (0.2, links.compare_with_zero(links.logistic))), nll_coef=0.5
        ),
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.5]},
        set(),
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [("dpo", "float32"), ("dpo", "float64"), ("ipo", "float64"), ("mixed", "float64")]
)
def test_dpo_trainer(name, dtype, directory, tmp_path):
    data = pairs(0)
    preference, fields, differing = DPO[name]
    peer = theirs(DPOTrainer, DPOConfig, language_models(directory, dtype), tmp_path, data, beta=BETA, **fields)
    loop = preference_loop(group_log_probs(CONFIG, (2, PROMPT)), preference, optimizer(), 2)
    mine = ours(loop, peer.start, PairedCompletions(pair_rows(data)), reference=peer.start)
    assert_same_run(mine, peer, {x: key for x, key in PAIR_METRICS.items() if x not in differing}, BOUNDS[dtype])


# Labels


def labeled(seed: int) -> dict[str, list]:
    random = np.random.default_rng(seed)
    count = STEPS * BATCH
    return {
        "prompt": [text(random, PROMPT) for _ in range(count)],
        "completion": [text(random, LENGTH - 1) for _ in range(count)],
        "label": [bool(x) for x in random.random(count) < 0.75],
    }


def label_rows(data: dict) -> Completions:
    """Each prompt with its own completion, then with that of the prompt before it in the batch."""
    shifted = [start + i for start in range(0, STEPS * BATCH, BATCH) for i in np.asarray(mismatched_rows(BATCH))]
    both = [data["completion"][i] for own, other in enumerate(shifted) for i in (own, other)]
    return rows_of(list(np.repeat(data["prompt"], 2)), both, 2)


LABEL_METRICS = {
    "loss": "loss",
    "desirable_reward": "rewards/chosen",
    "undesirable_reward": "rewards/rejected",
    "margin": "rewards/margins",
    "desirable_log_prob": "logps/chosen",
    "undesirable_log_prob": "logps/rejected",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
}


@pytest.mark.parametrize(
    ("loss_type", "dtype"), [("kto", "float32"), ("kto", "float64"), ("apo_zero_unpaired", "float64")]
)
def test_kto_trainer(loss_type, dtype, directory, tmp_path):
    data, weights = labeled(1), {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    fields = {"beta": BETA, "loss_type": loss_type} | weights
    peer = theirs(KTOTrainer, KTOConfig, language_models(directory, dtype), tmp_path, data, **fields)
    model = group_log_probs(CONFIG, (1, PROMPT))
    more = {} if loss_type == "kto" else {"reference_point": zero_reference}
    loop = label_loop(model, kto(BETA), optimizer(), 2, **weights, **more)
    labels = jnp.asarray(data["label"]).reshape(STEPS, BATCH)
    mine = ours(loop, peer.start, LabeledCompletions(label_rows(data), labels), reference=peer.start)
    assert_same_run(mine, peer, LABEL_METRICS | ({"kl": "kl"} if loss_type == "kto" else {}), BOUNDS[dtype])
    metrics = mine[1]
    assert loss_type != "kto" or (metrics["kl"][1:] > 0).any()
    assert np.isnan(metrics["margin"]).sum() == sum(len(set(row)) == 1 for row in np.asarray(labels).tolist())


# Reward models

REWARD_METRICS = {name: name for name in ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward")}


@pytest.mark.parametrize(("demanding", "dtype"), [(False, "float32"), (True, "float64")])
def test_reward_trainer(demanding, dtype, tmp_path):
    """TRL's rows are prompt and completion as one; margins and centering together in the second case."""
    data = pairs(2)
    write_scalar(
        tmp_path / "scalar", CONFIG, init_scalar(decoder.init_decoder(CONFIG, jax.random.key(0)), jax.random.key(1))
    )
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scalar", dtype=DTYPES[dtype])
    whole = {
        f"{side}_ids": [[*ids(prompt + text), 1] for prompt, text in zip(data["prompt"], data[side])]
        for side in ("chosen", "rejected")
    }
    margins = np.random.default_rng(3).random(STEPS * BATCH)
    more = {"center_rewards_coefficient": 0.05} if demanding else {}
    peer = theirs(
        RewardTrainer, RewardConfig, [model], tmp_path, whole | ({"margin": margins} if demanding else {}), **more
    )
    scores = sequence_scores(CONFIG, (2, PROMPT))
    loop = reward_loop(scores, links.logistic, optimizer(), 2, *more.values())
    batches = PairedCompletions(pair_rows(data), margins.reshape(STEPS, BATCH) if demanding else None)
    assert_same_run(ours(loop, peer.start, batches), peer, REWARD_METRICS | {"grad_norm": "grad_norm"}, BOUNDS[dtype])
