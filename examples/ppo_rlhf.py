"""RLHF with PPO: a reward model learns from pairs, a policy from the reward model; two minutes on two cores.

python examples/ppo_rlhf.py [--quick]
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

warm_steps, reward_steps, steps = (5, 5, 5) if "--quick" in sys.argv else (60, 800, 200)

# The task: 07+15= is answered by 22. A token is a character of twelve.
sums = [(a, b) for a in range(20) for b in range(20)]
questions = jnp.array([["0123456789+=".index(character) for character in f"{a:02d}+{b:02d}="] for a, b in sums])
right = jnp.array([[int(character) for character in f"{a + b:02d}"] for a, b in sums])
width = questions.shape[1]


def rows_of(prompts: jax.Array, answers: jax.Array) -> rl.Completions:
    """Rows of a prompt and its answer, whose tokens the policy has chosen."""
    tokens = jnp.concatenate([prompts, answers], axis=1)
    mask = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= width, tokens.shape)
    return rl.Completions(tokens, jnp.ones_like(mask), mask, jnp.zeros(tokens.shape), jnp.zeros(len(tokens), bool))


# A policy that has seen some answers, and a reward model that begins as that policy.
shape = rl.DecoderConfig(12, 128, 256, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32)
start, imitate = rl.supervised_loop(rl.row_log_probs(shape), optax.adam(2e-3))
start_judge, compare = rl.reward_loop(rl.sequence_scores(shape, (2, width)), rl.logistic, optax.adam(1e-3))


def warm(state: rl.loops.TrainState, key: jax.Array) -> tuple[rl.loops.TrainState, dict[str, jax.Array]]:
    """One step of maximum likelihood on some right answers."""
    some = jax.random.randint(key, (128,), 0, len(sums))
    return imitate(state, rows_of(questions[some], right[some]))


def rank(state: rl.loops.TrainState, key: jax.Array) -> tuple[rl.loops.TrainState, dict[str, jax.Array]]:
    """One step of the reward model on some pairs: the right answer, and that of another question."""
    some = jax.random.randint(key, (64,), 0, len(sums))
    answers = jnp.stack([right[some], jax.random.permutation(key, right[some])], axis=1).reshape(-1, right.shape[1])
    return compare(state, rl.PairedCompletions(rows_of(jnp.repeat(questions[some], 2, axis=0), answers)))


keys = jax.random.split(jax.random.key(0), reward_steps)
begin = start(rl.init_decoder(shape, jax.random.key(1)))
policy = jax.jit(lambda state: jax.lax.scan(warm, state, keys[:warm_steps])[0].params)(begin)
begin = start_judge(rl.init_scalar(policy, jax.random.key(2)))
judge = jax.jit(lambda state: jax.lax.scan(rank, state, keys)[0].params)(begin)

# PPO with four models: policy, value model (which begins as the reward model), frozen reference, reward model.
score = rl.sequence_scores(shape, (1, width))
values = rl.token_values(shape, (1, width))
optimizers = {"policy": optax.adam(3e-4), "value": optax.adam(1e-3)}
init, step = rl.rlhf_loop(rl.row_log_probs(shape), values, rl.ppo(), optimizers, rl.Shaping(), rl.RlhfLearning(2))
request = rl.Request(rl.Categorical(), stop_ids=(), max_new_tokens=right.shape[1])


def learn(state: rl.loops.RlhfState, key: jax.Array) -> tuple[rl.loops.RlhfState, dict[str, jax.Array]]:
    """Sample answers to some questions, score them, take a step of PPO."""
    some = jax.random.randint(key, (128,), 0, len(sums))
    prompts = (questions[some], jnp.ones((128, width), bool))
    drawn = rl.generate_at_once(shape, state.params["policy"], prompts, key, request)
    state, metrics = step(state, rl.ScoredCompletions(drawn, score(judge, drawn)), key=key, reference=policy)
    return state, metrics | {"right": jnp.all(drawn.tokens[:, width:] == right[some], axis=1).mean()}


keys = jax.random.split(jax.random.key(3), steps)
state, metrics = jax.jit(lambda models: jax.lax.scan(learn, init(models), keys))({"policy": policy, "value": judge})
plt.figure(figsize=(6.4, 6), layout="constrained").suptitle("PPO against a reward model")
for place, (name, unit) in enumerate({"score": "logits", "kl": "nats", "right": "share"}.items(), start=1):
    print(f"{name}: {metrics[name][:10].mean():.2f} in the first ten steps, then {metrics[name][-10:].mean():.2f}")
    plt.subplot(3, 1, place, ylabel=f"{name} ({unit})").plot(metrics[name], linewidth=1)
plt.xlabel("step of PPO (128 answers each)")
plt.savefig("ppo_rlhf.png")
