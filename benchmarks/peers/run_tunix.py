"""Tunix's GRPO on a model that we wrote, in blocks of steps on demand.

    python run_tunix.py DIRECTORY --settings '{"prompts": 8, …}'

Needs google-tunix. ``grpo_step.py`` starts it: every line on standard input asks for a block, and is answered with the
seconds of its steps, a JSON list. ``DIRECTORY`` holds ``config.json``, ``model.safetensors``, ``tokenizer.json`` and
``prompts.json``. The clock is the data set's: a step is what lies between two batches that Tunix asks for, its update
waited for; it generates by its own ("vanilla") engine, and learns with ``GRPOLearner``, both at their defaults but for
the settings that all sides share.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def model(folder: Path) -> tuple[Any, Any]:
    """Tunix's Llama with the weights of the directory, and its mesh of one device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tunix.models.llama3.model import ModelConfig
    from tunix.models.llama3.params import create_model_from_safe_tensors

    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = ModelConfig(
        num_layers=said["num_hidden_layers"],
        vocab_size=said["vocab_size"],
        embed_dim=said["hidden_size"],
        hidden_dim=said["intermediate_size"],
        num_heads=said["num_attention_heads"],
        head_dim=said["head_dim"],
        num_kv_heads=said["num_key_value_heads"],
        rope_theta=said.get("rope_theta") or said["rope_parameters"]["rope_theta"],
        norm_eps=said["rms_norm_eps"],
        weight_tying=said["tie_word_embeddings"],
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    return create_model_from_safe_tensors(str(folder), config, mesh, dtype=jnp.float32), mesh


def batches(folder: Path, settings: SimpleNamespace, answer: Any, finished: Any) -> Any:
    """Prompts, a batch a step; between blocks it waits for a line. ``finished()`` waits for the last update."""
    import numpy as np

    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    draw = random.Random(0)
    for _ in range(settings.blocks):
        if not sys.stdin.readline():
            return
        taken, start = [], time.perf_counter()
        for _ in range(settings.block):
            yield {"prompts": np.array(draw.sample(prompts, settings.prompts))}
            finished()
            now = time.perf_counter()
            taken.append(now - start)
            start = now
        print(json.dumps(taken), file=answer, flush=True)


def reward(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    del prompts
    return [text.count("a") / max(len(text), 1) for text in completions]


def learner(settings: SimpleNamespace, tokenizer: Any, policy: Any, mesh: Any) -> Any:
    """GRPO as the other sides have it: clip 0.2, mean over tokens, no KL, AdamW behind a clip of the gradient."""
    import optax
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig

    training = RLTrainingConfig(
        actor_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(settings.learning_rate, weight_decay=0.0)
        ),
        eval_every_n_steps=1_000_000,
        max_steps=settings.block * settings.blocks + 1,  # the data set ends before it
        mini_batch_size=settings.prompts,
        train_micro_batch_size=settings.prompts,
        pbar_description=None,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=settings.tokens,
        max_prompt_length=settings.prompt,
        kv_cache_size=settings.prompt + settings.tokens,
        temperature=1.0,
        top_p=None,
        eos_tokens=[tokenizer.eos_token_id],
    )
    cluster = RLCluster(
        actor=policy,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh={Role.ACTOR: mesh, Role.ROLLOUT: mesh},
            training_config=training,
            rollout_config=rollout,
        ),
    )
    objective = GRPOConfig(
        num_generations=settings.group_size, num_iterations=1, beta=0.0, epsilon=0.2, loss_agg_mode="token-mean"
    )
    return GRPOLearner(rl_cluster=cluster, algo_config=objective, reward_fns=reward)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path)
    made.add_argument("--settings", type=json.loads, required=True, help="JSON: those of grpo_step.py")
    args = made.parse_args()
    # What the library prints is none of the answers.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import jax
    from flax import nnx
    from transformers import PreTrainedTokenizerFast

    settings = SimpleNamespace(**args.settings)
    policy, mesh = model(args.folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(args.folder / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<pad>",  # token 0 counts as none, so that prompts are as long as on the other sides
    )
    trainer = learner(settings, tokenizer, policy, mesh)
    trained = trainer.rl_cluster.actor_trainer.model
    trainer.train(batches(args.folder, settings, answer, lambda: jax.block_until_ready(nnx.state(trained))))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": int(peak.split()[1]) * 1024 / 1e6}), file=answer, flush=True)


if __name__ == "__main__":
    main()
