"""Seconds per GRPO step: ours against TRL's ``GRPOTrainer`` and Tunix's ``GRPOLearner``, same weights and settings.

A step is a rollout (P prompts × G samples), a Python reward on the decoded texts, and one optimizer step (z-scored
groups, clip 0.2, the mean over tokens, no KL, AdamW, gradients clipped at norm 1). Every side is a process, and Tunix
a virtual environment, of its own; they take turns in blocks of steps, steady state only. TRL's clock is a callback's,
Tunix's that of the data set it reads. Tunix is left out where no ``--tunix`` is given.

    python grpo_step.py --tunix PYTHON              # the python of an environment with google-tunix
    python grpo_step.py --model smollm2 --prompts 4 --group-size 4 --tokens 24 --block 1 --repeats 5
    python grpo_step.py --model smollm2 --prompts 4 --prompt 256 --tokens 256 --mean 100 --micro-batches 4 --block 1

With ``--mean`` every completion ends at a length that is drawn anew for each step from a log-normal distribution with
``--tokens`` for a cap, on both sides the same; without it all are ``--tokens`` long, but for the end of a text.

Needs torch and TRL (the environment of `make parity`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# JAX, torch and `common` are imported where they are used: each process is to hold its own side's libraries alone.
import numpy as np
import sides

LETTERS = "abcdefghijklmn"


def tiny_tokenizer() -> Any:
    """One token a letter, and <pad> 0, <eos> 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<eos>": 1} | {letter: 2 + i for i, letter in enumerate(LETTERS)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def lengths_of(args: argparse.Namespace, step: int) -> np.ndarray | None:
    """Tokens of each completion of a step; None leaves it to the model."""
    if not args.mean:
        return None
    mean = np.log(args.mean) - args.sigma**2 / 2
    drawn = np.random.default_rng(step).lognormal(mean, args.sigma, args.prompts * args.group_size)
    return drawn.astype(np.int32).clip(1, args.tokens)


def ending_at_lengths(args: argparse.Namespace, generate: Any, eos: int) -> Any:
    """``transformers``' ``generate`` whose rows end at the lengths of a step, as at an end of text."""
    from transformers import StoppingCriteria

    steps = iter(range(sides.total_steps(args)))

    def ending(input_ids: Any, **options: Any) -> Any:
        import torch

        lengths, width = torch.tensor(lengths_of(args, next(steps))), input_ids.shape[1]

        class AtLength(StoppingCriteria):
            def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
                return ids.shape[1] - width >= lengths

        found = generate(input_ids=input_ids, stopping_criteria=[AtLength()], **options)
        last = (width + lengths).clamp(max=found.shape[1]) - 1  # where the model has ended all rows before
        found[torch.arange(len(found)), last] = eos
        return found

    return ending


def reward(completions: list[str], **_: Any) -> list[float]:
    return [text.count("a") / max(len(text), 1) for text in completions]


def write_inputs(args: argparse.Namespace, folder: Path) -> dict[str, int]:
    """The model, its tokenizer and the prompts that all sides read; the model's sizes."""
    import jax

    from rlax_llm.models.decoder import init_decoder
    from rlax_llm.models.huggingface import write_model
    from rlax_llm.models.loading import load_model

    draw = np.random.default_rng(0)
    letters = draw.choice(list(LETTERS), (512, args.prompt))
    if args.model == "tiny":
        config = sides.tiny_shape(args)
        write_model(folder, config, init_decoder(config, jax.random.key(0)))
        tiny_tokenizer().save_pretrained(folder)
        prompts = ["".join(row) for row in letters]
    else:
        config, params, tokenizer, _ = load_model("smollm2")
        write_model(folder, config, params, tokenizer)
        prompts = [" " + " ".join(row) for row in letters]  # a token each
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    return {"width": config.hidden_size, "layers": config.num_layers, "vocab": config.vocab_size}


def read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, padding_side="left")


def read_prompts(folder: Path) -> list[str]:
    return json.loads((folder / "prompts.json").read_text(encoding="utf-8"))


def ours(line: Connection, args: argparse.Namespace, folder: Path) -> None:
    """Our side's process."""
    import jax
    import optax

    from rlax_llm.core.types import Groups
    from rlax_llm.generation.prompts import pad_prompts
    from rlax_llm.generation.request import Request
    from rlax_llm.generation.rollout import generate
    from rlax_llm.generation.sampling import Categorical
    from rlax_llm.loops.group import GroupLearning, group_loop
    from rlax_llm.models.huggingface import read_config, read_parameters
    from rlax_llm.models.scoring import by_tokens
    from rlax_llm.policy.weightings import token_mean
    from rlax_llm.recipes.group import grpo

    stored, tokenizer, prompts = read_config(folder), read_tokenizer(folder), read_prompts(folder)
    config = dataclasses.replace(stored, compute_dtype=None if args.dtype == "float32" else args.dtype)
    request = Request(Categorical(), (tokenizer.eos_token_id,), args.tokens, args.group_size)
    objective = grpo(kl_coef=0)._replace(weighting=token_mean)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(args.learning_rate, weight_decay=0.0))
    scores_of = by_tokens(config, (args.group_size, args.prompt))
    start, update = group_loop(scores_of, objective, optimizer, GroupLearning(micro_batches=args.micro_batches))
    update, state = jax.jit(update, donate_argnums=0), start(read_parameters(folder, config))
    draw = np.random.default_rng(0)

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        chosen = [prompts[i] for i in draw.choice(len(prompts), args.prompts, replace=False)]
        batch = pad_prompts(tokenizer(chosen)["input_ids"], tokenizer.pad_token_id, config.vocab_size)
        count = int(state.step)
        limits = lengths_of(args, count)
        drawn = generate(config, state.params, batch, jax.random.key(count), request, limits=limits)
        drawn = jax.device_get(drawn)
        texts = tokenizer.batch_decode(
            [row[mask] for row, mask in zip(drawn.tokens, drawn.mask, strict=True)], skip_special_tokens=True
        )
        scores = np.asarray(reward(texts), np.float32).reshape(args.prompts, args.group_size)
        state, metrics = update(state, Groups(drawn, scores))
        jax.device_get(metrics)
        return time.perf_counter() - began

    sides.serve(line, args, step)
    line.send({"peak": sides.megabytes("VmHWM")})


def theirs(line: Connection, args: argparse.Namespace, folder: Path) -> None:
    """TRL's side's process."""
    sides.settle_torch()
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        **sides.trainer_settings(args, folder, args.prompts * args.group_size // args.micro_batches),
        gradient_accumulation_steps=args.micro_batches,
        num_generations=args.group_size,
        max_completion_length=args.tokens,
        max_steps=sides.total_steps(args),
        max_grad_norm=1.0,
        beta=0.0,
        gradient_checkpointing=False,
    )
    model, tokenizer = sides.torch_model(folder, "AutoModelForCausalLM"), read_tokenizer(folder)
    if args.mean:
        model.generate = ending_at_lengths(args, model.generate, tokenizer.eos_token_id)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": read_prompts(folder)}),
        processing_class=tokenizer,
        callbacks=[sides.step_clock(line, args, [])],
    )
    with redirect_stdout(sys.stderr):  # its summary is no line of ours
        trainer.train()
    line.send({"peak": sides.megabytes("VmHWM")})


class Tunix:
    """Tunix's process, in an environment of its own; called and closed as a ``sides.Worker``."""

    def __init__(self, python: Path, args: argparse.Namespace, folder: Path):
        shared = ("prompts", "group_size", "prompt", "tokens", "learning_rate", "block")
        settings = {name: getattr(args, name) for name in shared} | {"blocks": sides.blocks(args)}
        script = Path(__file__).resolve().parent / "peers" / "run_tunix.py"
        command = [str(python), str(script), str(folder), "--settings", json.dumps(settings)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told:
            raise SystemExit("Tunix's side ended before its last step; run peers/run_tunix.py by hand to see why.")
        return json.loads(told)

    def __call__(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return statistics.median(self._answer())

    def close(self) -> dict[str, Any]:
        found = self._answer()
        self._process.wait()
        return found


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=sides.Help)
    made.add_argument("--repeats", type=int, default=6, help="measured blocks of each side, after one to warm up")
    made.add_argument("--model", choices=("tiny", "smollm2"), default="tiny", help="smollm2 is SmolLM2-135M")
    made.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in, not of weights"
    )
    made.add_argument("--tunix", type=Path, help="python of an environment with google-tunix")
    made.add_argument("--prompts", type=int, default=8)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--prompt", type=int, default=16, help="tokens")
    made.add_argument("--tokens", type=int, default=16, help="new tokens")
    made.add_argument("--mean", type=int, default=0, help="tokens of a completion, whose lengths then differ")
    made.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of the lengths")
    made.add_argument("--micro-batches", type=int, default=1, help="parts of a batch that are learned from in turn")
    sides.shape_options(made, block=10)
    made.set_defaults(vocab=2 + len(LETTERS), learning_rate=1e-4)
    args = sides.checked(made, prompts=1, group_size=2, prompt=1, tokens=1, mean=0, micro_batches=1)
    if args.prompts * args.group_size % args.micro_batches:
        made.error(f"--micro-batches is {args.micro_batches}, wanted a divisor of --prompts times --group-size")
    if args.tunix and (args.mean or args.micro_batches > 1):
        made.error("--tunix draws to --tokens and learns from a whole batch; leave it out, or the two options")
    if args.tunix and not os.access(args.tunix, os.X_OK):
        made.error(f"--tunix {args.tunix} is no program; give the python of an environment with google-tunix")
    if args.tunix and args.model != "tiny":
        made.error("--tunix runs the tiny model only; leave it out")
    if args.tunix and args.dtype != "float32":
        made.error("--tunix computes in float32 only; leave it out")
    return args


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: taken / seconds["ours"] for name, taken in seconds.items() if name != "ours"}


def main() -> None:
    args = options()
    from common import interleaved, report

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = write_inputs(args, folder)
        workers: dict[str, Any] = {"ours": sides.Worker(ours, args, folder), "trl": sides.Worker(theirs, args, folder)}
        if args.tunix:
            workers["tunix"] = Tunix(args.tunix, args, folder)
        seconds = interleaved(workers, args.repeats)
        memory = {side: worker.close()["peak"] for side, worker in workers.items()}
    told = ("model", "dtype", "prompts", "group_size", "prompt", "tokens", "mean", "sigma", "micro_batches")
    told += ("block", "repeats")
    shared = {option: getattr(args, option) for option in told}
    report("grpo_step", **shape, **shared, seconds=seconds, ratio=ratios(seconds), peak_megabytes=memory)


if __name__ == "__main__":
    main()
