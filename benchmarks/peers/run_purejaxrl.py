"""PureJaxRL's PPO (``purejaxrl/ppo.py``, ``ppo_continuous_action.py``), from a checkout of it.

    python run_purejaxrl.py --purejaxrl CHECKOUT --environment CartPole-v1 --seeds 8 --steps 100000 --repeats 3

Needs jax, flax, optax, distrax, gymnax 1.x and six. The checkout is used as it is; what it meets is changed:

- Gymnax 1.x is put behind the step of 0.0.x (``protocol.FiveTuple``).
- ``brax`` is an empty module (the wrappers import it; nothing here calls it), and ``wrappers`` is another name of
  ``purejaxrl.wrappers``, for one script imports it so.
- Pendulum-v1, which has no published settings, runs the continuous script with its own settings and network
  (2 × 256): its Brax environment is the Gymnax one, and actions are clipped to that one's range, not to (−1, 1).

The settings are those at the end of the two scripts, for MinAtar those of its example notebook, but for the number of
steps; ``--envs``, ``--rollout`` and ``--minibatches`` change them. ``return`` is the mean return of the episodes that
ended in the last tenth of training, from the script's own log; ``greedy`` that of 128 episodes of the distribution's
mode after training. Neither counts in the time.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

from protocol import FiveTuple, arguments, checkout, evaluate, late_episodes, measure_jax, positive, print_line, spread

COMMON = {"GAMMA": 0.99, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5, "UPDATE_EPOCHS": 4}
COMMON |= {"ACTIVATION": "tanh", "DEBUG": False}
DISCRETE = {"LR": 2.5e-4, "NUM_ENVS": 4, "NUM_STEPS": 128, "NUM_MINIBATCHES": 4, "ENT_COEF": 0.01, "ANNEAL_LR": True}
CONTINUOUS = {"LR": 3e-4, "NUM_ENVS": 2048, "NUM_STEPS": 10, "NUM_MINIBATCHES": 32, "ENT_COEF": 0.0, "ANNEAL_LR": False}
MINATAR = DISCRETE | {"LR": 5e-3, "NUM_ENVS": 64, "NUM_MINIBATCHES": 8, "ACTIVATION": "relu"}
SETTINGS = {"CartPole-v1": DISCRETE, "Acrobot-v1": DISCRETE, "Pendulum-v1": CONTINUOUS | {"NORMALIZE_ENV": True}}
SETTINGS |= {"Breakout-MinAtar": MINATAR, "Asterix-MinAtar": MINATAR}


class WithDefaults(FiveTuple):
    """The continuous script passes None as the environment's parameters."""

    def __init__(self, env: Any, params: Any):
        super().__init__(env)
        self._params = params

    def reset(self, key: Any, params: Any = None) -> tuple:
        return self._env.reset(key, self._params)

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> tuple:
        return super().step(key, state, action, self._params)

    def action_space(self, params: Any = None) -> Any:
        return self._env.action_space(self._params)

    def observation_space(self, params: Any = None) -> Any:
        return self._env.observation_space(self._params)


def script(environment: str) -> tuple[Any, Any, Any]:
    """The script's module, and the environment that it will make with its parameters."""
    import gymnax

    brax: Any = types.ModuleType("brax")
    brax.envs = None
    sys.modules["brax"] = brax
    made, params = gymnax.make(environment)
    gymnax.make = lambda name: (FiveTuple(made), params)
    wrappers = importlib.import_module("purejaxrl.wrappers")
    sys.modules["wrappers"] = wrappers
    if environment != "Pendulum-v1":
        return importlib.import_module("purejaxrl.ppo"), FiveTuple(made), params
    module: Any = importlib.import_module("purejaxrl.ppo_continuous_action")
    env = WithDefaults(made, params)
    space = env.action_space()
    module.BraxGymnaxWrapper = lambda name: env
    module.ClipAction = lambda inner: wrappers.ClipAction(inner, space.low, space.high)
    return module, env, params


def greedy(module: Any, env: Any, params: Any, runner_state: Any, activation: str) -> Any:
    """Mean return of the mode; observations are normalized where the script normalizes them."""
    train_state, env_state = runner_state[:2]
    discrete = hasattr(env.action_space(params), "n")
    actions = env.action_space(params).n if discrete else env.action_space(params).shape[0]
    network = module.ActorCritic(actions, activation=activation)
    states = {"params": train_state.params}
    if not discrete:  # the wrapper keeps a row of statistics for each environment; all rows are equal
        normalizer = env_state.env_state
        states |= {"mean": normalizer.mean[:, 0], "var": normalizer.var[:, 0]}

    def act(state: Any, observation: Any, key: Any) -> Any:
        if not discrete:
            observation = (observation - state["mean"]) / (state["var"] + 1e-8) ** 0.5
        return network.apply(state["params"], observation.reshape(-1))[0].mode()

    return evaluate(env, params, act, states)


def main() -> None:
    made = arguments(__doc__, list(SETTINGS))
    made.add_argument("--purejaxrl", type=checkout, required=True, metavar="DIR", help="a checkout of PureJaxRL")
    made.add_argument("--envs", type=positive, dest="NUM_ENVS")
    made.add_argument("--rollout", type=positive, dest="NUM_STEPS", help="steps of each environment in an update")
    made.add_argument("--minibatches", type=positive, dest="NUM_MINIBATCHES")
    args = made.parse_args()
    changed = {name: getattr(args, name) for name in ("NUM_ENVS", "NUM_STEPS", "NUM_MINIBATCHES")}
    settings = COMMON | SETTINGS[args.environment] | {name: value for name, value in changed.items() if value}
    update = settings["NUM_ENVS"] * settings["NUM_STEPS"]
    if args.steps < update:
        made.error(f"--steps {args.steps} is less than one update of {update}; give at least that")
    module, env, params = script(args.environment)
    config = settings | {"ENV_NAME": args.environment, "TOTAL_TIMESTEPS": args.steps}
    train = module.make_train(config)
    times, result = measure_jax(train, args.seeds, args.repeats)
    log = result["metrics"]
    returns = spread("return", late_episodes(log["returned_episode_returns"], log["returned_episode"]))
    returns |= spread("greedy", greedy(module, env, params, result["runner_state"], settings["ACTIVATION"]))
    print_line("purejaxrl", args, config["NUM_UPDATES"] * update, times | returns | {"settings": settings})


if __name__ == "__main__":
    main()
