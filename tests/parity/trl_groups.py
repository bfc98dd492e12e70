"""TRL's GRPO and RLOO trainers on given completions: nothing is sampled, all that follows is their own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from datasets import Dataset
from test_preference_steps import CONFIG, LETTERS, ids, parameters, settings, text, tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import split_tensor_dict

from rlax_llm.core.types import Completions
from rlax_llm.models.huggingface import write_model

GROUP, PROMPT, LIMIT = 4, 6, 8  # rows to a prompt; the longest prompt and completion, in tokens
CONFIGS = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig}


class Groups(NamedTuple):
    """Prompts, and for each G completions with their scores, NaN where there is none."""

    prompts: list[str]
    completions: list[list[list[int]]]
    scores: np.ndarray

    def batch(self, first: int, prompts: int) -> Groups:
        """Some of the prompts with what belongs to them."""
        part = slice(first, first + prompts)
        return Groups(self.prompts[part], self.completions[part], self.scores[part])


def drawn(prompts: int, seed: int = 0) -> Groups:
    """Completions of 1 to 8 tokens; the second of each prompt hits the limit, and every third prompt's scores agree."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, LIMIT, (prompts, GROUP))
    rows = [[[*ids("".join(random.choice(list(LETTERS), n))), 1] for n in row] for row in lengths]
    for row in rows:
        row[1] = ids("".join(random.choice(list(LETTERS), LIMIT)))
    scores = random.normal(size=(prompts, GROUP)).astype(np.float32)
    scores[2::3] = 0.5
    different = [LETTERS[i] + text(random, PROMPT - 1) for i in range(prompts)]
    return Groups(different, rows, scores)


def completions_of(groups: Groups, without_truncated: bool = False) -> Completions:
    """The same in our layout; ``without_truncated`` takes the truncated rows out of the mask."""
    pairs = [(prompt, row) for prompt, rows in zip(groups.prompts, groups.completions) for row in rows]
    shape = len(pairs), PROMPT + LIMIT
    tokens, valid, mask = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
    for b, (prompt, row) in enumerate(pairs):
        before = ids(prompt)
        span = slice(PROMPT - len(before), PROMPT + len(row))
        tokens[b, span], valid[b, span] = before + row, True
        mask[b, PROMPT : PROMPT + len(row)] = True
    truncated = np.array([row[-1] != 1 for _, row in pairs])
    if without_truncated:
        mask &= ~truncated[:, None]
    zeros = np.zeros(shape, np.float32)
    return Completions(*map(jnp.asarray, (tokens, valid, mask, zeros, truncated)))


class Weights(NamedTuple):
    """One model in our layout and as a directory that transformers reads."""

    params: dict
    directory: Path

    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)


def three_models(path: Path) -> dict[str, Weights]:
    """A reference, a sampler some way from it and a policy some way from the sampler."""
    random, models = np.random.default_rng(0), {}
    layers = {leaf: initial(leaf, shape, random) for leaf, shape in CONFIG.parameter_shapes["layers"].items()}
    top = {leaf: initial(leaf, shape, random) for leaf, shape in CONFIG.parameter_shapes.items() if leaf != "layers"}
    params = top | {"layers": layers}
    for name in ("reference", "sampler", "policy"):
        write_model(path / name, CONFIG, params)
        models[name] = Weights(jax.tree.map(jnp.asarray, params), path / name)
        params = jax.tree.map(lambda x: moved(x, random), params)
    return models


def initial(leaf: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Scales of norms around 1, and matrices that keep a state of this width at its length."""
    around = 1.0 if "norm" in leaf else 0.0
    return (around + random.normal(size=shape) / CONFIG.hidden_size**0.5).astype(np.float32)


def moved(x: np.ndarray, random: np.random.Generator, share: float = 0.05) -> np.ndarray:
    """The array with noise of ``share`` of its root mean square."""
    return (x + share * np.sqrt((x**2).mean()) * random.normal(size=x.shape)).astype(np.float32)


def given_scores(prompts: list, scores: list, **_: Any) -> list:
    """The reward function: each row of the table holds the scores of all its completions."""
    del prompts
    return [row[i % GROUP] for i, row in enumerate(scores)]


def replaying(kind: type, groups: Groups) -> type:
    """The trainer with a sampler that gives the i-th completion of a prompt to its i-th row."""
    by_prompt = {tuple(ids(prompt)): rows for prompt, rows in zip(groups.prompts, groups.completions)}

    class Replaying(kind):
        def _generate_single_turn(self, prompt_ids: list, *_: Any) -> Any:
            rows = [by_prompt[tuple(prompt)][i % GROUP] for i, prompt in enumerate(prompt_ids)]
            return (rows, None) if kind is GRPOTrainer else rows

    return Replaying


def trainer(
    kind: type, model: PreTrainedModel, scratch: Path, groups: Groups, callbacks: list[TrainerCallback], **fields: Any
) -> Any:
    """A trainer of TRL; its reference is read from where the model was."""
    same = {"num_generations": GROUP, "max_completion_length": LIMIT, "shuffle_dataset": False}
    scores = [[None if np.isnan(x) else float(x) for x in row] for row in groups.scores]
    return replaying(kind, groups)(
        model=model,
        reward_funcs=given_scores,
        args=CONFIGS[kind](**settings(scratch, **same | fields)),
        train_dataset=Dataset.from_dict({"prompt": groups.prompts, "scores": scores}),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )


class Peer(NamedTuple):
    """A step of TRL's: the loss, its gradient in our layout and the metrics."""

    loss: float
    gradient: dict
    metrics: dict[str, float]


def their_step(
    kind: type, models: dict[str, Weights], scratch: Path, groups: Groups, parts: int = 1, **fields: Any
) -> Peer:
    """Score with the sampler's weights, take the loss with the policy's; in ``parts`` micro-batches."""
    rows = len(groups.prompts) * GROUP
    # With several iterations to a batch the old log-probabilities are taken while scoring.
    fields |= {"num_iterations": 2, "per_device_train_batch_size": rows // parts, "gradient_accumulation_steps": parts}
    run = trainer(kind, models["reference"].model(), scratch, groups, [], **fields)
    run.model.train()
    run.model.load_state_dict(models["sampler"].model().state_dict())
    batch = run._generate_and_score_completions([row for row in run.train_dataset for _ in range(GROUP)])
    run.model.load_state_dict(models["policy"].model().state_dict())
    run.current_gradient_accumulation_steps = parts
    loss = torch.stack([run.compute_loss(run.model, part) for part in split_tensor_dict(batch, parts)]).sum()
    loss.backward()
    metrics = {name: float(np.mean(values)) for name, values in run._metrics["train"].items()}
    return Peer(float(loss.detach()), slopes(run.model), metrics)


def slopes(model: PreTrainedModel) -> dict:
    """The gradient in our layout: it takes the parameters' place, so that one function reads both."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    return parameters(model)
