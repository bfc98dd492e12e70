"""Stoix's feed-forward Anakin PPO (``stoix/systems/ppo/anakin/ff_ppo.py``: ``get_learner_fn``), from a checkout of it.

    python run_stoix.py --stoix CHECKOUT --environment CartPole-v1 --seeds 8 --steps 100000 --repeats 3

Needs jax, flax, optax, distrax, gymnax 1.x, six and stoa-env 0.1.x, a checkout that steps its environments through
stoa, and what that checkout imports. What is changed:

- ``stoix.evaluator``, ``stoix.utils.make_env``, ``.checkpointing`` and ``.logger`` are empty modules: the learner calls
  nothing of them, and they import every environment suite.
- Gymnax 1.x is put behind the step of 0.0.x (``protocol.FiveTuple``), with an empty ``info`` (stoa's reset has none,
  and a scan wants both alike), then Stoix's chain: ``GymnaxToStoa``, ``AutoResetWrapper(next_obs_in_extras=True)``,
  ``RecordEpisodeMetrics``, ``VmapWrapper``.
- Networks, optimizers and the learner's state are made here as ``learner_setup`` makes them, inside the timed program
  as with the other peers; the device axis is a ``vmap`` of one, not a ``pmap``, so that ``vmap`` can run over seeds.
- One evaluation period: the whole run is one program.

The settings are PureJaxRL's (2 × 64, tanh, 4 environments × 128 steps, clip 0.2), in which Stoix differs by two
optimizers, advantages standardized over the whole batch, and one more critic call in each step.

``return`` is the mean return of the episodes that ended in the last tenth of training, from Stoix's own metrics;
``greedy`` that of 128 episodes of the distribution's mode after training. Neither counts in the time.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from protocol import FiveTuple, arguments, checkout, evaluate, late_episodes, measure_jax, print_line, spread

SETTINGS: dict[str, Any] = {"rollout_length": 128, "epochs": 4, "num_minibatches": 4, "gamma": 0.99, "gae_lambda": 0.95}
SETTINGS |= {"clip_eps": 0.2, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5, "standardize_advantages": True}
SETTINGS |= {"reward_scale": 1.0}
ENVIRONMENTS, RATE = 4, 2.5e-4


class WithoutInfo(FiveTuple):
    """No entries in ``info``."""

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> tuple:
        return *super().step(key, state, action, params)[:4], {}


def anything(name: str) -> types.ModuleType:
    """An empty module from which every name can be imported."""
    module: Any = types.ModuleType(name)
    module.__getattr__ = lambda _: None
    return module


def networks(actions: int) -> tuple[Any, Any]:
    base, torso, heads = (importlib.import_module(f"stoix.networks.{name}") for name in ("base", "torso", "heads"))
    torsos = [torso.MLPTorso(layer_sizes=(64, 64), activation="tanh") for _ in range(2)]
    actor = base.FeedForwardActor(torso=torsos[0], action_head=heads.CategoricalHead(action_dim=actions))
    return actor, base.FeedForwardCritic(torso=torsos[1], critic_head=heads.ScalarCriticHead())


def training(env: Any, params: Any, updates: int) -> tuple[Callable, Any]:
    """``train(key)``, one run, and the actor."""
    import jax
    import optax
    import stoa
    from stoa.core_wrappers.vmap import VmapWrapper

    ff_ppo, records = (importlib.import_module(f"stoix.{name}") for name in ("systems.ppo.anakin.ff_ppo", "base_types"))
    chain = stoa.AutoResetWrapper(stoa.GymnaxToStoa(env, params), next_obs_in_extras=True)
    envs = VmapWrapper(stoa.RecordEpisodeMetrics(chain), num_envs=ENVIRONMENTS)
    actor, critic = networks(env.action_space(params).n)
    config: Any = types.SimpleNamespace(system=types.SimpleNamespace(**SETTINGS))
    config.arch = types.SimpleNamespace(num_envs=ENVIRONMENTS, num_updates_per_eval=updates)
    rate = optax.linear_schedule(RATE, 0.0, updates * SETTINGS["epochs"] * SETTINGS["num_minibatches"])
    clipped = optax.clip_by_global_norm(SETTINGS["max_grad_norm"])
    optimizer = optax.chain(clipped, optax.adam(rate, eps=1e-5))
    learn = ff_ppo.get_learner_fn(envs, (actor.apply, critic.apply), (optimizer.update, optimizer.update), config)

    def train(key: Any) -> Any:
        actor_key, critic_key, env_key, step_key = jax.random.split(key, 4)
        env_state, timestep = envs.reset(env_key)
        first = timestep.observation[:1]
        weights = records.ActorCriticParams(actor.init(actor_key, first), critic.init(critic_key, first))
        states = records.ActorCriticOptStates(*map(optimizer.init, weights))
        start = records.OnPolicyLearnerState(weights, states, step_key, env_state, timestep)
        single = jax.tree.map(lambda x: x[None, None], start)  # one device, one batch
        return jax.tree.map(lambda x: x[0], jax.vmap(learn, axis_name="device")(single))

    return train, actor


def main() -> None:
    import gymnax
    import jax

    made = arguments(__doc__, ["CartPole-v1"])
    made.add_argument("--stoix", type=checkout, required=True, metavar="DIR", help="a checkout of Stoix")
    args = made.parse_args()
    for name in ("evaluator", "utils.make_env", "utils.checkpointing", "utils.logger"):
        sys.modules[f"stoix.{name}"] = anything(f"stoix.{name}")
    env, params = gymnax.make(args.environment)
    env = WithoutInfo(env)
    update = ENVIRONMENTS * SETTINGS["rollout_length"]
    updates = args.steps // update
    if not updates:
        made.error(f"--steps {args.steps} is less than one update of {update}; give at least that")
    train, actor = training(env, params, updates)
    times, result = measure_jax(train, args.seeds, args.repeats)
    log = result.episode_metrics
    returns = spread("return", late_episodes(log["episode_return"], log["is_terminal_step"]))
    weights = jax.tree.map(lambda x: x[:, 0], result.learner_state.params.actor_params)  # the batch axis of one
    mode = evaluate(env, params, lambda w, observation, key: actor.apply(w, observation).mode(), weights)
    returns |= spread("greedy", mode)
    settings = SETTINGS | {"num_envs": ENVIRONMENTS, "learning_rate": RATE}
    print_line("stoix", args, updates * update, times | returns | {"settings": settings})


if __name__ == "__main__":
    main()
