"""Seconds per GRPO step on a tiny model: ours against TRL's ``GRPOTrainer``, same weights, tokenizer and settings.

A step is a rollout (P prompts × G samples), a Python reward on the decoded texts, and one optimizer step (z-scored
groups, clip 0.2, the mean over tokens, no KL, AdamW, gradients clipped at norm 1). The two alternate in blocks of
steps, steady state only; TRL's clock is a callback's. Needs torch and TRL (the environment of `make parity`).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
from common import parser, report, torch_model

from rlax_llm.generation.engine import Request, generate
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.recipes import grpo
from rlax_llm.train.group import group_loop
from rlax_llm.weightings import token_mean


def tiny_tokenizer():
    """One token a character: a, b, c, …, and <pad> 0, <eos> 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<eos>": 1} | {chr(ord("a") + i): 2 + i for i in range(14)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def reward(completions: list[str], **_) -> list[float]:
    return [text.count("a") / max(len(text), 1) for text in completions]


def ours(config: DecoderConfig, params, tokenizer, prompts: list[str], args):
    """A function that does one step, and returns its seconds."""
    request = Request(Categorical(), (tokenizer.eos_token_id,), args.tokens, args.group_size)
    objective = grpo(kl_coef=0)._replace(weighting=token_mean)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(args.learning_rate, weight_decay=0.0))
    start, update = group_loop(group_log_probs(config, (args.group_size, args.prompt)), objective, optimizer)
    update, state = jax.jit(update, donate_argnums=0), start(params)
    draw = np.random.default_rng(0)

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        chosen = [prompts[i] for i in draw.choice(len(prompts), args.prompts, replace=False)]
        tokens, valid = pad_prompts(tokenizer(chosen)["input_ids"], 0, config.vocab_size)
        key = jax.random.key(int(state.step))
        drawn = jax.device_get(generate(config, state.params, (tokens, valid), key, request))
        texts = tokenizer.batch_decode(
            [row[mask] for row, mask in zip(drawn.tokens, drawn.mask, strict=True)], skip_special_tokens=True
        )
        scores = np.asarray(reward(texts), np.float32).reshape(args.prompts, args.group_size)
        state, metrics = update(state, drawn, scores)
        jax.device_get(metrics)
        return time.perf_counter() - began

    return step


def theirs(folder: Path, tokenizer, prompts: list[str], args, between):
    """Train with TRL; ``between()`` runs every ``block`` steps, outside of its clock. Returns seconds of each step."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        def __init__(self):
            self.taken, self.start = [], 0.0

        def on_step_begin(self, *_, **__):
            self.start = self.start or time.perf_counter()

        def on_step_end(self, arguments, state, control, **__):
            self.taken.append(time.perf_counter() - self.start)
            if state.global_step % args.block == 0:
                between()
            self.start = time.perf_counter()  # what is between two steps, the next batch, belongs to the next

    rows = args.prompts * args.group_size
    settings = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=rows,
        num_generations=args.group_size,
        max_completion_length=args.tokens,
        max_steps=args.block * (args.blocks + 1),
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        gradient_checkpointing=False,
        logging_steps=10_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        bf16=False,
        use_cpu=True,
    )
    clock = Clock()
    model = torch_model(folder / "model", torch.float32)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return clock.taken


def main() -> None:
    made = parser(__doc__, repeats=1)
    made.add_argument("--prompts", type=int, default=8)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--prompt", type=int, default=16, help="tokens")
    made.add_argument("--tokens", type=int, default=16, help="new tokens")
    made.add_argument("--width", type=int, default=64)
    made.add_argument("--layers", type=int, default=2)
    made.add_argument("--learning-rate", type=float, default=1e-4)
    made.add_argument("--block", type=int, default=10, help="steps of one side before the other's turn")
    made.add_argument("--blocks", type=int, default=6, help="measured blocks, after one to warm up")
    args = made.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    heads = args.width // 16
    config = DecoderConfig(16, args.width, 4 * args.width, args.layers, heads, heads, 16, tie_embeddings=False)
    params = init(config, jax.random.key(0))
    tokenizer, draw = tiny_tokenizer(), np.random.default_rng(0)
    prompts = ["".join(chr(ord("a") + c) for c in draw.integers(0, 14, args.prompt)) for _ in range(512)]
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name) / "model", config, params)
        step, own = ours(config, params, tokenizer, prompts, args), []
        peers = theirs(Path(name), tokenizer, prompts, args, lambda: own.extend(step() for _ in range(args.block)))
    medians = {
        "ours": statistics.median(own[args.block :]),
        "trl": statistics.median(peers[args.block :]),
    }
    shape = {"width": args.width, "layers": args.layers, "vocab": config.vocab_size}
    run = {"prompts": args.prompts, "group_size": args.group_size, "prompt": args.prompt, "new_tokens": args.tokens}
    counted = len(peers) - args.block
    report("grpo_step", **shape, **run, steps=counted, seconds=medians, ratio=medians["trl"] / medians["ours"])


if __name__ == "__main__":
    main()
