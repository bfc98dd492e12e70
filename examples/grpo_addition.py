"""GRPO teaches a small language model to add: from random weights to a curve in a minute on two cores.

python examples/grpo_addition.py [--quick]
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

quick = "--quick" in sys.argv
warm_steps, steps = (5, 5) if quick else (200, 600)

# The task: 37+45= is answered by 082. A token is a character.
ALPHABET = "0123456789+="


def encode(texts: list[str]) -> jax.Array:
    """Token ids ``[N, T]`` of texts of one length."""
    return jnp.array([[ALPHABET.index(character) for character in text] for text in texts])


problems = [(a, b) for a in range(100) for b in range(100)]
questions = encode([f"{a:02d}+{b:02d}=" for a, b in problems])
answers = encode([f"{a + b:03d}" for a, b in problems])
width, longest = questions.shape[1], answers.shape[1]

# The model: a Llama of two layers. Its parameters are a dictionary of arrays.
shape = rl.DecoderConfig(len(ALPHABET), 128, 256, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32)
params = rl.init_decoder(shape, jax.random.key(0))

# A warm start on answers, which is the policy loss of advantage 1: a model that is never right learns from no reward.
rows = jnp.concatenate([questions, answers], axis=1)
log_probs = rl.row_log_probs(shape)
start, supervised_step = rl.supervised_loop(log_probs, optax.adam(2e-3))


def warm(state: rl.loops.TrainState, key: jax.Array) -> tuple[rl.loops.TrainState, dict[str, jax.Array]]:
    """One step of maximum likelihood on some rows."""
    tokens = rows[jax.random.randint(key, (128,), 0, len(rows))]
    chosen = jnp.broadcast_to(jnp.arange(width + longest) >= width, tokens.shape)
    nothing = jnp.zeros(tokens.shape)
    batch = rl.Completions(tokens, jnp.ones_like(chosen), chosen, nothing, jnp.zeros(len(tokens), bool))
    return supervised_step(state, batch)


warm_keys = jax.random.split(jax.random.key(1), warm_steps)
params = jax.jit(lambda params: jax.lax.scan(warm, start(params), warm_keys)[0].params)(params)


# Reinforcement learning: sample eight answers to each of 32 questions, score them, learn; all of it one program.
def reward(completions: rl.Completions, wanted: jax.Array) -> jax.Array:
    """1 for the right answer, 0 for any other."""
    return jnp.all(completions.tokens[:, width:] == wanted, axis=-1).astype(float)


prompts = rl.Prompts(questions, jnp.ones(questions.shape, bool), columns=answers)
request = rl.Request(rl.Categorical(), stop_ids=(), max_new_tokens=longest, group_size=8)
collector = rl.fresh_sampling(shape, prompts, reward, request, batch_size=32)
update = rl.group_loop(rl.group_log_probs(shape, (8, width)), rl.grpo(kl_coef=0.0), optax.adam(1e-3))
begin, step = rl.language_loop(collector, update)
keys = jax.random.split(jax.random.key(2), steps)
state, metrics = jax.jit(lambda params: jax.lax.scan(step, begin(params), keys))(params)

first, last = (metrics["reward"][part].mean() for part in (slice(0, 10), slice(-10, None)))
print(f"right answers: {first:.0%} of the first ten steps' samples, {last:.0%} of the last ten steps'")
plt.plot(metrics["reward"], linewidth=1)
plt.title("GRPO learns to add two numbers of two digits")
plt.xlabel("step of GRPO (256 samples each)")
plt.ylabel("share of right answers")
plt.ylim(0, 1)
plt.savefig("grpo_addition.png")
