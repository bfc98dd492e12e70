"""rejax's PPO (``rejax.PPO``, 0.1.3), as it is installed.

    python run_rejax.py --environment CartPole-v1 --seeds 8 --steps 100000 --repeats 3 [--settings matched]

Needs rejax, gymnax 1.x and six. What is changed:

- Gymnax 1.x is put behind the step of 0.0.x, which rejax calls (``protocol.FiveTuple``).
- Its evaluations during training (128 episodes every 1,000 or 2,000 steps, more steps than training takes) are left
  out of the timed program, so that steps and seconds are those of training alone; it is evaluated afterwards.

``--settings published``: rejax's own ``configs/gymnax`` files. ``matched``, CartPole-v1 only: PureJaxRL's numbers of
environments, steps, epochs and minibatches, rate and coefficients; rejax still neither anneals its rate nor initializes
orthogonally, clips the gradient elementwise, and adds 1e-8, not 1e-5, in Adam.

``return`` is the mean return of 128 episodes sampled from the final policy, as rejax evaluates; ``greedy`` that of the
distribution's mode.
"""

from __future__ import annotations

from typing import Any

from protocol import FiveTuple, arguments, evaluate, measure_jax, print_line, spread

COMMON = {"gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5}
CARTPOLE = COMMON | {"agent_kwargs": {"activation": "tanh"}, "max_grad_norm": 0.5, "gamma": 0.99, "ent_coef": 0.01}
PENDULUM = COMMON | {"agent_kwargs": {"activation": "swish"}, "max_grad_norm": 10, "gamma": 0.995, "ent_coef": 0.0}
SETTINGS = {
    ("CartPole-v1", "published"): CARTPOLE
    | {"num_envs": 5, "num_steps": 100, "num_epochs": 5, "num_minibatches": 5, "learning_rate": 7.5e-4},
    ("CartPole-v1", "matched"): CARTPOLE
    | {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 2.5e-4},
    ("Pendulum-v1", "published"): PENDULUM
    | {"num_envs": 100, "num_steps": 100, "num_epochs": 10, "num_minibatches": 10, "learning_rate": 1e-3}
    | {"normalize_observations": True},
}


def acting(algorithm: Any, mode: bool) -> Any:
    """``act(state, observation, key)``: a sample from the policy, or the mode of its distribution."""

    def act(state: Any, observation: Any, key: Any) -> Any:
        if not mode:
            return algorithm.make_act(state)(observation, key)
        if algorithm.normalize_observations:
            observation = algorithm.normalize_obs(state.obs_rms_state, observation)
        distribution = algorithm.actor.apply(state.actor_ts.params, observation[None], method="_action_dist")
        return distribution.mode().squeeze()

    return act


def main() -> None:
    import gymnax
    import rejax

    made = arguments(__doc__, sorted({name for name, _ in SETTINGS}))
    made.add_argument("--settings", choices=["published", "matched"], default="published")
    args = made.parse_args()
    settings = SETTINGS.get((args.environment, args.settings))
    if settings is None:
        made.error(f"no {args.settings} settings for {args.environment}; use --settings published")
    env, params = gymnax.make(args.environment)
    env = FiveTuple(env)
    update = settings["num_envs"] * settings["num_steps"]
    steps = args.steps // update * update
    if not steps:
        made.error(f"--steps {args.steps} is less than one update of {update}; give at least that")
    algorithm = rejax.PPO.create(
        env=env, env_params=params, total_timesteps=steps, eval_freq=steps, skip_initial_evaluation=True, **settings
    )
    algorithm = algorithm.replace(eval_callback=lambda *_: ())
    times, (state, _) = measure_jax(lambda key: algorithm.train(rng=key), args.seeds, args.repeats)
    returns = spread("return", evaluate(env, params, acting(algorithm, mode=False), state))
    returns |= spread("greedy", evaluate(env, params, acting(algorithm, mode=True), state))
    print_line("rejax", args, steps, times | returns | {"settings": settings})


if __name__ == "__main__":
    main()
