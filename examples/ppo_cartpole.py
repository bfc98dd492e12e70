"""PPO learns CartPole, eight seeds side by side in one compiled program: half a minute, half of it compilation.

python examples/ppo_cartpole.py [--quick]
"""

import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

quick = "--quick" in sys.argv
seeds, iterations = (2, 20) if quick else (8, 400)

environment = rl.make("CartPole-v1")
policy = rl.perceptron(environment, hidden=(64, 64))

collecting = rl.Collecting(environments=4, horizon_steps=128, discount=0.99)
learning = rl.Learning(epochs=4, minibatches=4, target=rl.credit.streams.lambda_return(0.95), entropy_coef=0.01)
rate = optax.linear_schedule(1e-3, 0.0, iterations * learning.epochs * learning.minibatches)
optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))

# Any point of the product does: rl.ppo()._replace(trust_region=rl.dual_clip()), rl.a2c(), rl.reinforce(), ...
update = rl.gradient_update(policy, rl.ppo(gae_lambda=0.95, eps=0.2), optimizer, learning)
init, step = rl.control_loop(environment, policy, update, collecting)
evaluate = rl.evaluate_greedily(environment, policy, collecting, limit_steps=500)


def run(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """A whole training run of one seed, and the returns of greedy episodes after it."""
    start, training, testing = jax.random.split(key, 3)
    state, metrics = jax.lax.scan(step, init(start), jax.random.split(training, iterations))
    return metrics, evaluate(state, testing)[0]


begin = time.perf_counter()
keys = jax.random.split(jax.random.key(0), seeds)
program = jax.jit(jax.vmap(run)).lower(keys).compile()
compiled = time.perf_counter()
metrics, greedy = jax.block_until_ready(program(keys))
seconds = time.perf_counter() - compiled

steps = seeds * iterations * collecting.environments * collecting.horizon_steps
print(f"compiled in {compiled - begin:.1f} s; {steps:,} steps in {seconds:.1f} s: {steps / seconds:,.0f} steps/s")
for part, returns in enumerate(jnp.array_split(metrics["episode_return"], 5, axis=1)):
    print(f"return in fifth {part + 1}:", " ".join(f"{x:.0f}" for x in jnp.nanmean(returns, axis=1)))
print(f"greedy return, mean over seeds: {greedy.mean():.1f}")

for returns in metrics["episode_return"]:
    plt.plot(returns, color="tab:blue", alpha=0.2, linewidth=1)
plt.plot(jnp.nanmean(metrics["episode_return"], axis=0), color="black", label=f"mean of {seeds} seeds")
plt.title("PPO on CartPole-v1")
plt.xlabel("update (512 steps of the environment each)")
plt.ylabel("return of the episodes that ended (steps)")
plt.legend(loc="lower right")
plt.savefig("ppo_cartpole.png")
