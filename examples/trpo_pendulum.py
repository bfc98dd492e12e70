"""TRPO swings a pendulum up, four seeds side by side in one compiled program: over a minute on two cores.

python examples/trpo_pendulum.py [--quick]
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import rlax_llm as rl

quick = "--quick" in sys.argv
seeds, iterations = (2, 5) if quick else (4, 100)
kl_radius = 0.02  # nats that the policy may move per update

environment = rl.make("Pendulum-v1")
policy = rl.perceptron(environment, hidden=(64, 64))

collecting = rl.Collecting(
    environments=2,
    horizon_steps=1024,
    discount=0.95,
    observation_scaling=rl.standardization(),
    reward_scaling=rl.unit_return(),
)
# TRPO is a direction and a search: rl.full_step in place of the search is the natural policy gradient.
direction = rl.natural_direction(kl_radius, damping=1e-3, iterations=15)
search = rl.backtracking_search(rl.improves_within(kl_radius), shrink=0.8)
critic = rl.Learning(epochs=20, minibatches=2, target=rl.credit.streams.lambda_return(0.95))
update = rl.natural_update(policy, rl.credit.streams.gae(0.95), direction, search, optax.adam(1e-3), critic)
init, step = rl.control_loop(environment, policy, update, collecting)
evaluate = rl.evaluate_greedily(environment, policy, collecting, limit_steps=200)


@jax.jit
@jax.vmap
def run(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """A whole training run of one seed, and the returns of greedy episodes after it."""
    start, training, testing = jax.random.split(key, 3)
    state, metrics = jax.lax.scan(step, init(start), jax.random.split(training, iterations))
    return metrics, evaluate(state, testing)[0]


metrics, greedy = run(jax.random.split(jax.random.key(0), seeds))
steps = iterations * collecting.environments * collecting.horizon_steps
print(f"{steps:,} steps of each of {seeds} seeds")
for part, returns in enumerate(jnp.array_split(metrics["episode_return"], 5, axis=1)):
    print(f"return in fifth {part + 1}:", " ".join(f"{x:.0f}" for x in jnp.nanmean(returns, axis=1)))
print(f"accepted by the line search: {metrics['accepted'].mean():.0%}, largest KL {metrics['kl'].max():.4f} nats")
print(f"greedy return, mean over seeds: {greedy.mean():.1f}")

for returns in metrics["episode_return"]:
    plt.plot(returns, color="tab:blue", alpha=0.4, linewidth=1)
plt.plot(jnp.nanmean(metrics["episode_return"], axis=0), color="black", label=f"mean of {seeds} seeds")
plt.title("TRPO on Pendulum-v1")
plt.xlabel("update (2,048 steps of the environment each)")
plt.ylabel("return of the episodes that ended")
plt.legend(loc="lower right")
plt.savefig("trpo_pendulum.png", bbox_inches="tight")
