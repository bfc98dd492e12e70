"""Sixteen runs of RL of a language model as one program: four seeds of each of four learning rates, on all cores.

python examples/sweep_learning_rates.py [--quick]
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

quick = "--quick" in sys.argv
seeds, steps = (1, 5) if quick else (4, 150)
learning_rates = (1e-3, 1e-2) if quick else (3e-4, 1e-3, 3e-3, 1e-2)
runs = seeds * len(learning_rates)
rl.cores_as_devices(runs)  # before JAX is first used: each core takes a part of the runs

# The task: write the prompt's own token, over and over. The reward is the share of tokens that are.
VOCABULARY, LENGTH, GROUP = 16, 8, 8
shape = rl.DecoderConfig(VOCABULARY, 32, 64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
tokens = jnp.arange(VOCABULARY)
prompts = rl.Prompts(tokens[:, None], jnp.ones((VOCABULARY, 1), bool), columns=tokens)


def reward(completions: rl.Completions, wanted: jax.Array) -> jax.Array:
    """Share of the completion's tokens that are the prompt's."""
    return jnp.mean(completions.tokens[:, 1:] == wanted[:, None], axis=-1)


def run(key: jax.Array, learning_rate: jax.Array) -> jax.Array:
    """One whole run, from its own initial parameters: the mean reward of each step."""
    request = rl.Request(rl.Categorical(), stop_ids=(), max_new_tokens=LENGTH, group_size=GROUP)
    collector = rl.fresh_sampling(shape, prompts, reward, request, batch_size=8)
    log_probs = rl.group_log_probs(shape, (GROUP, 1))
    update = rl.group_loop(log_probs, rl.dapo(), optax.adam(learning_rate))
    init, step = rl.language_loop(collector, update)
    first, rest = jax.random.split(key)
    state = init(rl.init_decoder(shape, first))
    return jax.lax.scan(step, state, jax.random.split(rest, steps))[1]["reward"]


keys = jax.random.split(jax.random.key(0), runs)
rates = jnp.repeat(jnp.array(learning_rates), seeds)
rewards = jax.jit(rl.over_seeds(run, runs))(*rl.on_devices((keys, rates), runs))

for rate, curves in zip(learning_rates, rewards.reshape(-1, seeds, steps), strict=True):
    print(f"learning rate {rate:g}: reward {curves[:, -5:].mean():.2f} at the end, mean of {seeds} seeds")
    plt.plot(curves.mean(axis=0), label=f"{rate:g}")
plt.title(f"{runs} runs as one program")
plt.xlabel("step (64 completions each)")
plt.ylabel(f"share of right tokens, mean of {seeds} seeds")
plt.ylim(0, 1)
plt.legend(title="learning rate", loc="upper left", bbox_to_anchor=(1, 1))
plt.savefig("sweep_learning_rates.png", bbox_inches="tight")
