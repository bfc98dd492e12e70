"""Seconds of a step of four-model PPO on a tiny model: ours against TRL's `PPOTrainer`, same weights and settings.

A step is a rollout (one completion of each prompt), scores by a reward model, and the update: the reference's
log-probabilities, values, whitened advantages, then epochs of minibatches over policy and value model (clips 0.2, KL k1
at 0.05 in the reward, λ 0.95, γ 1, value coefficient 0.1, AdamW, no clipping of gradients, temperature 1). No token
stops a completion, so that all are of one length on both sides; float32, all cores, sdpa attention in torch.

Each side works in a process of its own, a block of steps at a time, and the two take turns; TRL's clock is a
callback's. `parts` splits a step into `rollout`, `scoring` and `update`: medians over the steps that count. In TRL the
first two are the wall time of its `batch_generation` and of `get_reward` on the reward model, `update` is the rest of
the step. Both take the policy's log-probabilities from the rollout, and compute values and reference in the update.
`scores` are mean scores over all steps: the samples differ, but with `--learning-rate 0` and many prompts the means do
not. Memory is as in `preference_step.py`; XLA's is the update's.

TRL has a `PPOTrainer` until version 1.2.0, which can be put before a later one:

    pip install --no-deps --target older 'trl==1.2.0'
    PYTHONPATH=older python ppo_step.py
    PYTHONPATH=older python ppo_step.py --prompts 2 --prompt-tokens 4 --tokens 2 --epochs 1 --block 1 --repeats 1

The last is the smallest. Needs torch and TRL (the environment of `make parity`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# JAX, torch and `common` are imported where they are used: each process is to hold its own side's libraries alone.
import numpy as np
import sides

Parts = dict[str, list[float]]


def prompts_of(args: argparse.Namespace) -> list[list[int]]:
    """The prompts of all steps, each once."""
    shape = (args.prompts * sides.total_steps(args), args.prompt_tokens)
    return np.random.default_rng(0).integers(2, args.vocab, shape).tolist()


@contextmanager
def timed(parts: Parts, name: str) -> Iterator[None]:
    """Add the block's seconds to those of the step."""
    start = time.perf_counter()
    yield
    parts[name][-1] += time.perf_counter() - start


def started(parts: Parts) -> None:
    for seconds in parts.values():
        seconds.append(0.0)


def said(args: argparse.Namespace, parts: Parts, scores: list[float], memory: dict[str, Any]) -> dict[str, Any]:
    """A side's last words; the block that warms up does not count."""
    medians = {name: statistics.median(seconds[args.block :]) for name, seconds in parts.items()}
    return {"parts": medians, "score": statistics.fmean(scores), "megabytes": memory}


# Ours


def our_loop(args: argparse.Namespace, config: Any) -> tuple[Callable, Callable]:
    import optax

    from rlax_llm.loops.rlhf import MODELS, RlhfLearning, rlhf_loop
    from rlax_llm.loops.rlhf_credit import KlInReward, Shaping
    from rlax_llm.models.scalar import token_values
    from rlax_llm.models.scoring import group_log_probs
    from rlax_llm.recipes.control import ppo

    layout, optimizer = (1, args.prompt_tokens), optax.adamw(args.learning_rate, weight_decay=0.0)
    return rlhf_loop(
        group_log_probs(config, layout),
        token_values(config, layout),
        ppo(eps=0.2),
        dict.fromkeys(MODELS, optimizer),
        Shaping(kl=KlInReward(0.05), discount=1.0, trace=0.95, value_trace=0.95),
        RlhfLearning(epochs=args.epochs, minibatches=args.minibatches, value_coef=0.1),
    )


def our_functions(args: argparse.Namespace, folder: Path) -> tuple[Any, Callable, Callable, tuple[Callable, Any]]:
    """State, ``rollout(policy, index)`` of a step's prompts, ``judge(completions)``, and ``(update, its program)``."""
    import jax
    import jax.numpy as jnp

    from rlax_llm.core.types import ScoredCompletions
    from rlax_llm.generation.request import Request
    from rlax_llm.generation.rollout import generate
    from rlax_llm.generation.sampling import Categorical
    from rlax_llm.models.huggingface import read_config, read_parameters, read_scalar_parameters
    from rlax_llm.models.scalar import sequence_scores

    config = read_config(folder / "model")
    policy = read_parameters(folder / "model", config)
    value, reward = (read_scalar_parameters(folder / name, config) for name in ("value", "reward"))
    request, prompts = Request(Categorical(), (), args.tokens, 1), prompts_of(args)
    score = jax.jit(sequence_scores(config, (1, args.prompt_tokens)))

    def rollout(policy: Any, index: int) -> Any:
        batch = prompts[index * args.prompts : (index + 1) * args.prompts]
        tokens = jnp.asarray(np.asarray(batch, np.int32))
        return generate(config, policy, (tokens, jnp.ones(tokens.shape, bool)), jax.random.key(index), request)

    init, step = our_loop(args, config)
    state = init({"policy": jax.tree.map(jnp.copy, policy), "value": value})
    example = rollout(policy, 0)
    batch = ScoredCompletions(example, score(reward, example))
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch, key=jax.random.key(0), reference=policy)
    program = lowered.compile()

    def update(state: Any, completions: Any, scores: Any, index: int) -> Any:
        return program(state, ScoredCompletions(completions, scores), key=jax.random.key(index), reference=policy)

    return state, rollout, lambda completions: score(reward, completions), (update, program)


def ours(line: Connection, args: argparse.Namespace, folder: Path) -> None:
    """Our side's process."""
    import jax

    imported = sides.megabytes("VmRSS")
    state, rollout, judge, (update, program) = our_functions(args, folder)
    parts: Parts = {name: [] for name in ("rollout", "scoring", "update")}
    means: list[float] = []

    def step() -> float:
        nonlocal state
        start, index = time.perf_counter(), len(means)
        started(parts)
        with timed(parts, "rollout"):
            completions = jax.block_until_ready(rollout(state.params["policy"], index))
        with timed(parts, "scoring"):
            scores = jax.block_until_ready(judge(completions))
        with timed(parts, "update"):
            state, metrics = update(state, completions, scores, index)
            means.append(float(jax.device_get(metrics)["score"]))
        return time.perf_counter() - start

    sides.serve(line, args, step)
    memory = {"imported": imported, "peak": sides.megabytes("VmHWM")} | sides.program_megabytes(program)
    line.send(said(args, parts, means, memory))


# TRL


def their_settings(args: argparse.Namespace, folder: Path) -> Any:
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        **sides.trainer_settings(args, folder, args.prompts),
        total_episodes=args.prompts * sides.total_steps(args),
        num_ppo_epochs=args.epochs,
        num_mini_batches=args.minibatches,
        response_length=args.tokens,
        local_rollout_forward_batch_size=args.prompts,
        num_sample_generations=0,
        temperature=1.0,
        kl_coef=0.05,
        kl_estimator="k1",
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        whiten_rewards=False,
        gradient_checkpointing=False,
    )


def their_trainer(args: argparse.Namespace, folder: Path) -> Any:
    from datasets import Dataset
    from trl.experimental.ppo import PPOTrainer

    value, reward = (sides.torch_model(folder / x, "AutoModelForSequenceClassification") for x in ("value", "reward"))
    policy, reference = (sides.torch_model(folder / "model", "AutoModelForCausalLM") for _ in range(2))
    policy.generation_config.pad_token_id = sides.PAD
    return PPOTrainer(
        args=their_settings(args, folder),
        processing_class=sides.word_tokenizer(args.vocab),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": prompts_of(args)}),
    )


def watch_parts(parts: Parts, reward_model: Any) -> None:
    """Have TRL's rollout and its reward model timed; the first opens a step."""
    from trl.experimental.ppo import ppo_trainer

    generation, get_reward = ppo_trainer.batch_generation, ppo_trainer.get_reward

    def timed_generation(*given: Any, **named: Any) -> Any:
        started(parts)
        with timed(parts, "rollout"):
            return generation(*given, **named)

    def timed_reward(model: Any, *given: Any, **named: Any) -> Any:
        if model is not reward_model:  # the value model's values
            return get_reward(model, *given, **named)
        with timed(parts, "scoring"):
            return get_reward(model, *given, **named)

    ppo_trainer.batch_generation, ppo_trainer.get_reward = timed_generation, timed_reward


def theirs(line: Connection, args: argparse.Namespace, folder: Path) -> None:
    """TRL's process."""
    sides.settle_torch()
    import transformers
    from trl.experimental.ppo import PPOTrainer

    assert PPOTrainer  # loaded when it is first named: here
    imported = sides.megabytes("VmRSS")
    trainer, taken = their_trainer(args, folder), []
    parts: Parts = {"rollout": [], "scoring": []}
    watch_parts(parts, trainer.reward_model)
    means: list[float] = []
    log = trainer.log

    def keep(metrics: dict[str, float], *given: Any) -> None:
        means.append(metrics["objective/scores"])
        log(metrics, *given)

    trainer.log = keep
    trainer.add_callback(sides.step_clock(line, args, taken))
    trainer.remove_callback(transformers.PrinterCallback)  # its lines would stand among ours
    trainer.accelerator.print = lambda *_: None  # the same
    trainer.train()
    rest = [step - sum(own) for step, *own in zip(taken, *parts.values(), strict=True)]
    memory = {"imported": imported, "peak": sides.megabytes("VmHWM")}
    line.send(said(args, parts | {"update": rest}, means, memory))


# Both


def write_weights(args: argparse.Namespace, folder: Path) -> None:
    """Policy, value model and reward model, which both sides read."""
    import jax

    from rlax_llm.models.decoder import init_decoder
    from rlax_llm.models.huggingface import write_model, write_scalar
    from rlax_llm.models.scalar import init_scalar

    config = sides.tiny_shape(args)
    params = init_decoder(config, jax.random.key(0))
    write_model(folder / "model", config, params)
    for seed, name in enumerate(("value", "reward"), 1):
        write_scalar(folder / name, config, init_scalar(params, jax.random.key(seed)))


def check_peer() -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if importlib.util.find_spec("trl") is None or importlib.util.find_spec("trl.experimental.ppo") is None:
        found = "none" if importlib.util.find_spec("trl") is None else importlib.metadata.version("trl")
        raise SystemExit(
            f"ppo_step: TRL has a PPOTrainer until 1.2.0, found {found}; run `pip install --no-deps --target older "
            "'trl==1.2.0'` and start again with PYTHONPATH=older."
        )


def options() -> argparse.Namespace:
    from common import parser

    made = parser(__doc__, repeats=5)
    made.formatter_class = sides.Help
    made.add_argument("--prompts", type=int, default=32, help="of a step, each completed once")
    made.add_argument("--prompt-tokens", type=int, default=16)
    made.add_argument("--tokens", type=int, default=16, help="new tokens; 2 or more")
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--minibatches", type=int, default=1, help="optimizer steps of an epoch")
    sides.shape_options(made, block=5)
    args = sides.checked(made, prompts=1, prompt_tokens=1, tokens=2, epochs=1, minibatches=1)
    if args.prompts % args.minibatches:
        made.error(f"--minibatches is {args.minibatches}, wanted a divisor of --prompts {args.prompts}")
    return args


def main() -> None:
    args = options()
    check_peer()
    from common import interleaved, report

    with tempfile.TemporaryDirectory() as name:
        write_weights(args, Path(name))
        workers = {"ours": sides.Worker(ours, args, Path(name)), "trl": sides.Worker(theirs, args, Path(name))}
        seconds = interleaved(workers, args.repeats)
        facts = {side: worker.close() for side, worker in workers.items()}
    parts = {side: fact["parts"] for side, fact in facts.items()}
    told = ("width", "layers", "vocab", "prompts", "prompt_tokens", "tokens", "epochs", "minibatches")
    report(
        "ppo_step",
        **{option: getattr(args, option) for option in told},
        steps=args.block * args.repeats,
        seconds=seconds,
        ratio=seconds["trl"] / seconds["ours"],
        parts=parts,
        ratio_parts={part: parts["trl"][part] / taken for part, taken in parts["ours"].items()},
        scores={side: fact["score"] for side, fact in facts.items()},
        megabytes={side: fact["megabytes"] for side, fact in facts.items()},
    )


if __name__ == "__main__":
    main()
