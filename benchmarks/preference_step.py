"""Seconds and memory of an optimizer step on preferences: ours against TRL's DPO, KTO and reward trainers.

Four configurations, one JSON line each: DPO with a live reference model, DPO with its log-probabilities computed
beforehand (before the clock starts, on both sides), KTO, and a reward model. Both sides start from the same files and
learn the same batch of token ids in every step, in float32 on all cores, with sdpa attention in torch, AdamW, and
gradients clipped at norm 1. A step is everything from Python lists of token ids to the next parameters.

Each side works in a process of its own, a block of steps at a time, and the two take turns; TRL's clock is a
callback's. Their losses, means over all steps, are compared: where they differ the run fails.

Of a pair ours computes the prompt once (`group_log_probs` with groups of two). `--own-prompts` adds a third side that
gives each row its own prompt, as TRL does: what it lacks against `ours` is the prompt's part of the gain. KTO's rows
share no prompt on either side. All prompts are of one length, and all completions: no side is charged for padding.

Memory, megabytes: `peak` is the most that the process ever held (VmHWM; Linux only), loading, compiling and the
reference's pass beforehand included; `imported` what it held before the model. `temporary` and `arguments` are what
XLA's `memory_analysis` says of the compiled step: activations and gradients, and parameters, reference and moments.

    python preference_step.py
    python preference_step.py --own-prompts --prompt-tokens 256
    python preference_step.py --model smollm2 --block 1 --repeats 3 --remat
    python preference_step.py --pairs 2 --prompt-tokens 8 --completion-tokens 4 --block 1 --repeats 1    # the smallest

Needs torch, TRL and, for `--lora-rank`, peft (the environment of `make parity`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

# JAX, torch and `common` are imported where they are used: each process is to hold its own side's libraries alone.
import numpy as np
import sides

BETA, NORM = 0.1, 1.0


class Rows(NamedTuple):
    """Token ids: prompts, and two completions of each, their stop tokens included."""

    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]

    def labels(self) -> list[bool]:
        return [place % 2 == 0 for place in range(len(self.prompts))]


def rows_of(args: argparse.Namespace) -> Rows:
    draw = np.random.default_rng(0)
    prompts = draw.integers(2, args.vocab, (args.pairs, args.prompt_tokens))
    completions = draw.integers(2, args.vocab, (2, args.pairs, args.completion_tokens))
    completions[..., -1] = sides.EOS
    return Rows(*(part.tolist() for part in (prompts, *completions)))


# Ours


class Ours(NamedTuple):
    """A loop, the parameters it starts from, and what ``step`` reads: a batch, made anew each time, and what stays."""

    loop: tuple[Callable, Callable]
    params: Any
    batch: Callable[[], Any]
    fixed: dict[str, Any]


def our_weights(args: argparse.Namespace, folder: Path, read: Callable) -> tuple[Any, Any, Any]:
    """Shape, what is trained, and what is not."""
    from rlax_llm.models.adapter_files import read_adapter
    from rlax_llm.models.huggingface import read_config

    config = read_config(folder)
    params = read(folder, config)
    if not args.lora_rank:
        return config, params, None
    config, adapter = read_adapter(folder / "adapter", config)
    return config, adapter, {name: leaf for name, leaf in params.items() if name != "score"}


def our_optimizer(args: argparse.Namespace) -> Any:
    import optax

    return optax.chain(optax.clip_by_global_norm(NORM), optax.adamw(args.learning_rate, weight_decay=0.0))


def our_pairs(args: argparse.Namespace, rows: Rows) -> Any:
    from rlax_llm.core.types import PairedCompletions
    from rlax_llm.data.batches import pair_rows
    from rlax_llm.data.encoding import PairTokens

    pairs = [PairTokens(*row) for row in zip(*rows, strict=True)]
    return PairedCompletions(pair_rows(pairs, sides.PAD, (args.prompt_tokens, args.completion_tokens)).completions)


def our_labels(args: argparse.Namespace, rows: Rows) -> Any:
    from rlax_llm.core.types import LabeledCompletions
    from rlax_llm.data.batches import labeled_rows
    from rlax_llm.data.encoding import LabeledTokens

    labeled = [LabeledTokens(*row) for row in zip(rows.prompts, rows.chosen, rows.labels(), strict=True)]
    laid = labeled_rows(labeled, sides.PAD, (args.prompt_tokens, args.completion_tokens))
    return LabeledCompletions(laid.completions, laid.desirable)


def our_dpo(args: argparse.Namespace, folder: Path, group_size: int, precomputed: bool) -> Ours:
    import jax

    from rlax_llm.core.trees import join_trees
    from rlax_llm.loops.preference import preference_loop
    from rlax_llm.models.huggingface import read_parameters
    from rlax_llm.models.scoring import group_log_probs
    from rlax_llm.recipes.preference import dpo

    config, params, frozen = our_weights(args, folder / "model", read_parameters)
    log_probs = group_log_probs(config, (group_size, args.prompt_tokens), remat=args.remat)
    loop = preference_loop(log_probs, dpo(BETA), our_optimizer(args))
    batch = partial(our_pairs, args, rows_of(args))
    if not precomputed:
        return Ours(loop, params, batch, {"reference": params, "frozen": frozen})
    score = jax.jit(lambda model, rows: log_probs(model, rows)[0])
    known = score(join_trees(params, frozen), batch().completions)
    return Ours(loop, params, lambda: batch()._replace(ref_log_probs=known), {"frozen": frozen})


def our_kto(args: argparse.Namespace, folder: Path, group_size: int) -> Ours:
    from rlax_llm.loops.labels import label_loop
    from rlax_llm.models.huggingface import read_parameters
    from rlax_llm.models.scoring import group_log_probs
    from rlax_llm.preference.unpaired import kto

    config, params, frozen = our_weights(args, folder / "model", read_parameters)
    log_probs = group_log_probs(config, (group_size, args.prompt_tokens), remat=args.remat)
    loop = label_loop(log_probs, kto(BETA), our_optimizer(args))
    return Ours(loop, params, partial(our_labels, args, rows_of(args)), {"reference": params, "frozen": frozen})


def our_reward(args: argparse.Namespace, folder: Path, group_size: int) -> Ours:
    from rlax_llm.loops.preference import reward_loop
    from rlax_llm.models.huggingface import read_scalar_parameters
    from rlax_llm.models.scalar import sequence_scores
    from rlax_llm.preference.links import logistic

    config, params, frozen = our_weights(args, folder / "scalar", read_scalar_parameters)
    scores = sequence_scores(config, (group_size, args.prompt_tokens), args.remat)
    loop = reward_loop(scores, logistic, our_optimizer(args))
    return Ours(loop, params, partial(our_pairs, args, rows_of(args)), {"frozen": frozen})


def ours(line: Connection, args: argparse.Namespace, folder: Path, build: Callable[..., Ours], group_size: int) -> None:
    """Our side's process."""
    import jax
    import jax.numpy as jnp

    imported = sides.megabytes("VmRSS")
    made = build(args, folder, group_size)
    init, update = made.loop
    state = init(jax.tree.map(jnp.copy, made.params))  # a step writes over it; the reference stays
    if "reference" not in made.fixed:
        made = made._replace(params=None)
    program = jax.jit(update, donate_argnums=0).lower(state, made.batch(), **made.fixed).compile()
    losses: list[float] = []

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = program(state, made.batch(), **made.fixed)
        losses.append(float(jax.device_get(metrics)["loss"]))
        return time.perf_counter() - start

    sides.serve(line, args, step)
    memory = {"imported": imported, "peak": sides.megabytes("VmHWM")} | sides.program_megabytes(program)
    line.send({"loss": statistics.fmean(losses), "megabytes": memory})


# TRL


def their_model(args: argparse.Namespace, folder: Path, kind: str = "AutoModelForCausalLM") -> Any:
    model = sides.torch_model(folder, kind)
    if not args.lora_rank:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def their_settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    own = {"max_steps": sides.total_steps(args), "max_grad_norm": NORM, "gradient_checkpointing": args.remat}
    own |= {"train_sampling_strategy": "sequential", "max_length": None}
    return sides.trainer_settings(args, folder, args.pairs) | own


def their_texts(args: argparse.Namespace, **columns: Sequence[list[int]]) -> dict[str, list]:
    """The batch of every step; TRL appends the stop tokens by itself."""
    steps = sides.total_steps(args)
    texts = {name: ["".join(f" {i}" for i in ids if i != sides.EOS) for ids in rows] for name, rows in columns.items()}
    return {name: rows * steps for name, rows in texts.items()}


def their_reference(args: argparse.Namespace, folder: Path) -> Any:
    """A second model; of an adapter TRL keeps a copy by itself."""
    return None if args.lora_rank else their_model(args, folder)


def their_dpo(args: argparse.Namespace, folder: Path, precomputed: bool) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = rows_of(args)
    texts = their_texts(args, prompt=rows.prompts, chosen=rows.chosen, rejected=rows.rejected)
    return DPOTrainer(
        model=their_model(args, folder / "model"),
        ref_model=None if precomputed else their_reference(args, folder / "model"),
        args=DPOConfig(**their_settings(args, folder), beta=BETA, precompute_ref_log_probs=precomputed),
        train_dataset=Dataset.from_dict(texts),
        processing_class=sides.word_tokenizer(args.vocab),
    )


def their_kto(args: argparse.Namespace, folder: Path) -> Any:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = rows_of(args)
    texts = their_texts(args, prompt=rows.prompts, completion=rows.chosen)
    return KTOTrainer(
        model=their_model(args, folder / "model"),
        ref_model=their_reference(args, folder / "model"),
        args=KTOConfig(**their_settings(args, folder), beta=BETA),
        train_dataset=Dataset.from_dict(texts | {"label": rows.labels() * sides.total_steps(args)}),
        processing_class=sides.word_tokenizer(args.vocab),
    )


def their_reward(args: argparse.Namespace, folder: Path) -> Any:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows, steps = rows_of(args), sides.total_steps(args)
    both = {"chosen_ids": rows.chosen, "rejected_ids": rows.rejected}
    whole = {name: [p + own for p, own in zip(rows.prompts, side, strict=True)] * steps for name, side in both.items()}
    return RewardTrainer(
        model=their_model(args, folder / "scalar", "AutoModelForSequenceClassification"),
        args=RewardConfig(**their_settings(args, folder)),
        train_dataset=Dataset.from_dict(whole),
        processing_class=sides.word_tokenizer(args.vocab),
    )


def theirs(line: Connection, args: argparse.Namespace, folder: Path, build: Callable[..., Any]) -> None:
    """TRL's process."""
    sides.settle_torch()
    import transformers
    import trl

    assert trl.DPOTrainer and trl.KTOTrainer and trl.RewardTrainer  # loaded when they are first named: here
    imported = sides.megabytes("VmRSS")
    trainer = build(args, folder)
    trainer.add_callback(sides.step_clock(line, args, []))
    trainer.remove_callback(transformers.PrinterCallback)  # its lines would stand among ours
    loss = trainer.train().training_loss
    line.send({"loss": loss, "megabytes": {"imported": imported, "peak": sides.megabytes("VmHWM")}})


# Both


class Configuration(NamedTuple):
    """Both sides' builders, and the rows to a prompt that ours takes together."""

    ours: Callable[..., Ours]
    theirs: Callable[..., Any]
    group_size: int


CONFIGURATIONS = {
    "dpo_live": Configuration(partial(our_dpo, precomputed=False), partial(their_dpo, precomputed=False), 2),
    "dpo_precomputed": Configuration(partial(our_dpo, precomputed=True), partial(their_dpo, precomputed=True), 2),
    "kto": Configuration(our_kto, their_kto, 1),
    "reward_model": Configuration(our_reward, their_reward, 2),
}


def tiny(args: argparse.Namespace) -> tuple[Any, Any]:
    import jax

    from rlax_llm.models.decoder import init_decoder

    config = sides.tiny_shape(args)
    return config, init_decoder(config, jax.random.key(0))


def smollm2(_: argparse.Namespace) -> tuple[Any, Any]:
    from rlax_llm.models.loading import load_model

    return load_model("smollm2")[:2]


MODELS = {"tiny": tiny, "smollm2": smollm2}


def write_weights(args: argparse.Namespace, folder: Path) -> dict[str, int]:
    """The models and adapters that both sides read; their sizes."""
    import jax

    from rlax_llm.models.adapter_files import write_adapter
    from rlax_llm.models.config import Lora
    from rlax_llm.models.huggingface import write_model, write_scalar
    from rlax_llm.models.lora import init_adapter
    from rlax_llm.models.scalar import init_scalar

    config, params = MODELS[args.model](args)
    scalar = init_scalar(params, jax.random.key(1))
    write_model(folder / "model", config, params)
    write_scalar(folder / "scalar", config, scalar)
    if args.lora_rank:
        shape = replace(config, lora=Lora(args.lora_rank, 2.0 * args.lora_rank))
        adapter = init_adapter(shape, jax.random.key(2))
        for name, leaves in (("model", adapter), ("scalar", adapter | {"score": scalar["score"]})):
            write_adapter(folder / name / "adapter", shape, leaves, str(folder / name))
    return {"width": config.hidden_size, "layers": config.num_layers, "vocab": config.vocab_size}


def check_losses(losses: Mapping[str, float]) -> None:
    """Sides that compute different things have no ratio."""
    low, high = min(losses.values()), max(losses.values())
    if not high - low <= 0.02 * abs(high):
        raise SystemExit(f"The sides' mean losses are {dict(losses)}, wanted the same: the sides do different things.")


def measure(name: str, args: argparse.Namespace, folder: Path, shape: Mapping[str, int]) -> None:
    """One line."""
    from common import interleaved, report

    found = CONFIGURATIONS[name]
    workers = {"ours": sides.Worker(ours, args, folder, found.ours, found.group_size)}
    if args.own_prompts and found.group_size > 1:
        workers["ours_own_prompts"] = sides.Worker(ours, args, folder, found.ours, 1)
    workers["trl"] = sides.Worker(theirs, args, folder, found.theirs)
    seconds = interleaved(workers, args.repeats)
    facts = {side: worker.close() for side, worker in workers.items()}
    losses, memory = ({side: fact[key] for side, fact in facts.items()} for key in ("loss", "megabytes"))
    check_losses(losses)
    peaks = {side: held["peak"] for side, held in memory.items()}
    told = ("model", "pairs", "prompt_tokens", "completion_tokens", "lora_rank", "remat")
    report(
        "preference_step",
        configuration=name,
        **{option: getattr(args, option) for option in told},
        **shape,
        steps=args.block * args.repeats,
        seconds=seconds,
        ratio={side: seconds["trl"] / taken for side, taken in seconds.items() if side != "trl"},
        megabytes=memory,
        peak_ratio=peaks["trl"] / peaks["ours"] if all(peaks.values()) else None,
        mean_loss=losses,
    )


def options() -> argparse.Namespace:
    from common import parser

    made = parser(__doc__, repeats=5)
    made.formatter_class = sides.Help
    made.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), help="configurations")
    made.add_argument("--model", choices=MODELS, default="tiny", help="smollm2 is SmolLM2-135M")
    made.add_argument("--pairs", type=int, default=8, help="a step's pairs, of KTO its labeled completions; 2 or more")
    made.add_argument("--prompt-tokens", type=int, default=64)
    made.add_argument("--completion-tokens", type=int, default=32, help="of each completion, its stop token included")
    made.add_argument("--lora-rank", type=int, default=0, help="adapters on every projection; 0 trains the whole model")
    made.add_argument("--own-prompts", action="store_true", help="one more side of ours, with a prompt to each row")
    made.add_argument("--remat", action="store_true", help="recompute activations in the backward pass, on both sides")
    sides.shape_options(made, block=5)
    return sides.checked(made, pairs=2, prompt_tokens=1, completion_tokens=2, lora_rank=0)


def main() -> None:
    args = options()
    with tempfile.TemporaryDirectory() as name:
        shape = write_weights(args, Path(name))
        args.vocab = shape["vocab"]
        for configuration in args.only:
            measure(configuration, args, Path(name), shape)


if __name__ == "__main__":
    main()
