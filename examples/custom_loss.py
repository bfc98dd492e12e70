"""A policy loss of your own in place of PPO's clip: one function, and every loop takes it.

python examples/custom_loss.py [--quick]
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

quick = "--quick" in sys.argv
seeds, steps = (1, 5) if quick else (4, 120)
rl.cores_as_devices(seeds)


def smooth(eps: float = 0.2) -> rl.policy.TrustRegion:
    """A trust region: the ratio's excess over 1 saturates smoothly at ``eps``, where PPO's clip has a corner.

    Loss per token: ``-advantage · eps · tanh((ratio - 1) / eps)``. At ratio 1 its slope is the policy gradient's.
    """

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        excess = jnp.expm1(log_ratio)
        return -advantages * eps * jnp.tanh(excess / eps)

    return loss


# The task: write the prompt's own token, over and over.
VOCABULARY, LENGTH, GROUP = 16, 8, 8
shape = rl.DecoderConfig(VOCABULARY, 32, 64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
tokens = jnp.arange(VOCABULARY)
prompts = rl.Prompts(tokens[:, None], jnp.ones((VOCABULARY, 1), bool), columns=tokens)


def reward(completions: rl.Completions, wanted: jax.Array) -> jax.Array:
    """Share of the completion's tokens that are the prompt's."""
    return jnp.mean(completions.tokens[:, 1:] == wanted[:, None], axis=-1)


def rewards_of(objective: rl.Objective) -> jax.Array:
    """Rewards ``[seeds, steps]`` of whole runs that learn by an objective."""
    request = rl.Request(rl.Categorical(), stop_ids=(), max_new_tokens=LENGTH, group_size=GROUP)
    collector = rl.fresh_sampling(shape, prompts, reward, request, batch_size=8)
    log_probs = rl.group_log_probs(shape, (GROUP, 1))
    # Four optimizer steps per batch: only after the first do ratios leave 1, where trust regions differ.
    learning = rl.GroupLearning(epochs=2, minibatches=2)
    update = rl.group_loop(log_probs, objective, optax.adam(5e-3), learning)
    init, step = rl.language_loop(collector, update)

    def run(key: jax.Array) -> jax.Array:
        first, rest = jax.random.split(key)
        state = init(rl.init_decoder(shape, first))
        return jax.lax.scan(step, state, jax.random.split(rest, steps))[1]["reward"]

    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(rl.over_seeds(run, seeds))(rl.on_devices(keys, seeds))


# An objective is a record of five functions; a recipe is one of its points, and yours differs in one.
grpo = rl.grpo(kl_coef=0.0)
objectives = {"clip": grpo, "smooth": grpo._replace(trust_region=smooth(eps=0.2))}
for name, objective in objectives.items():
    curves = rewards_of(objective)
    print(f"{name}: reward {curves[:, -5:].mean():.2f} at the end, mean of {seeds} seeds")
    plt.plot(curves.mean(axis=0), label=name)
plt.title("Two trust regions, one loop")
plt.xlabel("step (64 completions each)")
plt.ylabel(f"share of right tokens, mean of {seeds} seeds")
plt.ylim(0, 1)
plt.legend()
plt.savefig("custom_loss.png")
