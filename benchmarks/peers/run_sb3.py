"""stable-baselines3's PPO and sb3-contrib's TRPO on Gymnasium's environments, as they are installed.

    python run_sb3.py --algorithm trpo --environment CartPole-v1 --seeds 1 --steps 100000 --repeats 1

Needs stable-baselines3 and sb3-contrib (torch). Settings are those of rl-baselines3-zoo, ``hyperparams/ppo.yml`` and
``trpo.yml``; CPU. Seeds run one after another, as sb3 has no other way, so its steps/s are those of one run. Nothing
is compiled: ``trace_seconds`` is the time that building the learner takes, ``compile_seconds`` is 0.

``return`` is the mean return of the last 100 episodes of training (sb3's ``ep_info_buffer``, fewer where fewer ended);
``greedy`` that of 100 deterministic episodes after training. Neither counts in the time. ``steps`` are those that were
taken: whole rollouts, so sb3 may take more than it was asked for.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from protocol import arguments, print_line, spread


def falling(start: float) -> Any:
    """A rate that falls linearly to 0, the zoo's ``lin_``."""
    return lambda remaining: remaining * start


SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "CartPole-v1"): {"n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98}
    | {"n_epochs": 20, "ent_coef": 0.0, "learning_rate": "lin_0.001", "clip_range": "lin_0.2"},
    ("ppo", "Pendulum-v1"): {"n_envs": 4, "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10}
    | {"ent_coef": 0.0, "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4},
    ("trpo", "CartPole-v1"): {"n_envs": 2, "n_steps": 512, "batch_size": 512, "cg_damping": 1e-3, "gae_lambda": 0.98}
    | {"gamma": 0.99, "learning_rate": 1e-3, "n_critic_updates": 20},
    ("trpo", "Pendulum-v1"): {"n_envs": 2, "n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15}
    | {"use_sde": True, "sde_sample_freq": 4},
}


def learner(algorithm: str, environment: str, seed: int) -> Any:
    """An untrained learner of the zoo's settings."""
    from sb3_contrib import TRPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    settings = dict(SETTINGS[algorithm, environment])
    envs = make_vec_env(environment, n_envs=settings.pop("n_envs"), seed=seed)
    for name, value in settings.items():
        if isinstance(value, str):
            settings[name] = falling(float(value.removeprefix("lin_")))
    return {"ppo": PPO, "trpo": TRPO}[algorithm]("MlpPolicy", envs, seed=seed, device="cpu", verbose=0, **settings)


def main() -> None:
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    made = arguments(__doc__, ["CartPole-v1", "Pendulum-v1"])
    made.add_argument("--algorithm", choices=["ppo", "trpo"], required=True)
    made.add_argument("--threads", type=int, default=1, help="torch's threads; one is the fastest at this size")
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    building, taken, late, greedy, steps = [], [], [], [], 0
    for repeat in range(args.repeats):
        seconds = 0.0
        for seed in range(args.seeds):
            start = time.perf_counter()
            model = learner(args.algorithm, args.environment, seed)
            begun = time.perf_counter()
            model.learn(args.steps)
            seconds += time.perf_counter() - begun
            building.append(begun - start)
            if repeat:  # the same seeds give the same returns
                continue
            steps = model.num_timesteps
            late.append(statistics.fmean(episode["r"] for episode in model.ep_info_buffer))
            envs = make_vec_env(args.environment, seed=1000 + seed)
            greedy.append(evaluate_policy(model, envs, n_eval_episodes=100, deterministic=True)[0])
        taken.append(seconds)
    figures: dict[str, Any] = {"library": f"torch {torch.__version__}, cpu"}
    figures |= {"trace_seconds": statistics.median(building), "compile_seconds": 0.0}
    figures |= {"run_seconds": statistics.median(taken)} | spread("return", late) | spread("greedy", greedy)
    settings = SETTINGS[args.algorithm, args.environment] | {"threads": args.threads}
    print_line(f"sb3_{args.algorithm}", args, steps, figures | {"settings": settings})


if __name__ == "__main__":
    main()
