"""DPO on preference pairs: right sums preferred to wrong ones, from random weights in half a minute on two cores.

python examples/dpo_pairs.py [--quick]
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

quick = "--quick" in sys.argv
warm_steps, steps = (5, 5) if quick else (200, 300)

# The task: 37+45= is answered by 082. A token is a character.
ALPHABET = "0123456789+="


def encode(texts: list[str]) -> jax.Array:
    """Token ids ``[N, T]`` of texts of one length."""
    return jnp.array([[ALPHABET.index(character) for character in text] for text in texts])


problems = [(a, b) for a in range(100) for b in range(100)]
questions = encode([f"{a:02d}+{b:02d}=" for a, b in problems])
right = encode([f"{a + b:03d}" for a, b in problems])
wrong = jax.random.permutation(jax.random.key(0), right)  # answers of other questions: form gives nothing away


def rows_of(prompts: jax.Array, answers: jax.Array) -> rl.Completions:
    """Rows of a prompt and its answer, whose tokens the policy has chosen."""
    tokens = jnp.concatenate([prompts, answers], axis=1)
    mask = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= prompts.shape[1], tokens.shape)
    nothing = jnp.zeros(tokens.shape)
    return rl.Completions(tokens, jnp.ones_like(mask), mask, nothing, jnp.zeros(len(tokens), bool))


# The model, after a warm start on some right answers: DPO starts from a policy that knows what an answer looks like.
shape = rl.DecoderConfig(len(ALPHABET), 128, 256, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32)
start, supervised_step = rl.supervised_loop(rl.row_log_probs(shape), optax.adam(2e-3))


def warm(state: rl.loops.TrainState, key: jax.Array) -> tuple[rl.loops.TrainState, dict[str, jax.Array]]:
    """One step of maximum likelihood on some right answers."""
    some = jax.random.randint(key, (128,), 0, len(problems))
    return supervised_step(state, rows_of(questions[some], right[some]))


params = rl.init_decoder(shape, jax.random.key(1))
warm_keys = jax.random.split(jax.random.key(2), warm_steps)
reference = jax.jit(lambda params: jax.lax.scan(warm, start(params), warm_keys)[0].params)(params)

# Row 2b of a batch is chosen, row 2b + 1 rejected, and both follow one prompt, which is computed once.
log_probs = rl.group_log_probs(shape, (2, questions.shape[1]))
init, step = rl.preference_loop(log_probs, rl.dpo(beta=0.1), optax.adam(2e-4))


def learn(state: rl.loops.TrainState, key: jax.Array) -> tuple[rl.loops.TrainState, dict[str, jax.Array]]:
    """One step of DPO on some pairs."""
    some = jax.random.randint(key, (64,), 0, len(problems))
    answers = jnp.stack([right[some], wrong[some]], axis=1).reshape(-1, right.shape[1])
    batch = rl.PairedCompletions(rows_of(jnp.repeat(questions[some], 2, axis=0), answers))
    return step(state, batch, reference=reference)


keys = jax.random.split(jax.random.key(3), steps)
state, metrics = jax.jit(lambda params: jax.lax.scan(learn, init(params), keys))(reference)

first, last = (metrics["accuracy"][part].mean() for part in (slice(0, 10), slice(-10, None)))
print(f"pairs ranked right: {first:.0%} in the first ten steps, {last:.0%} in the last ten")
plt.plot(metrics["accuracy"], linewidth=1)
plt.title("DPO ranks right sums above wrong ones")
plt.xlabel("step of DPO (64 pairs each)")
plt.ylabel("share of pairs ranked right")
plt.savefig("dpo_pairs.png")
