"""What the peers' runners share: arguments, timing of a compiled training run, evaluation, the JSON line.

It runs in the peers' virtual environments, so it imports nothing of the repository, and JAX only where JAX is used.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

EPISODES = 128


def arguments(description: str | None, environments: Sequence[str]) -> argparse.ArgumentParser:
    """``--environment``, ``--seeds``, ``--steps`` and ``--repeats``, as every runner and ours take them."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--environment", choices=environments, default=environments[0])
    made.add_argument("--seeds", type=positive, default=1, help="independent runs")
    made.add_argument("--steps", type=positive, default=100_000, help="environment steps of each run")
    made.add_argument("--repeats", type=positive, default=3, help="timed repeats; the median counts")
    return made


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def checkout(text: str) -> Path:
    """A directory that exists, put first on the module path."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no directory; give the peer's checkout")
    sys.path.insert(0, str(path.resolve()))
    return path


class FiveTuple:
    """Gymnax 1.x behind the step of Gymnax 0.0.x, which the peers call.

    A time limit counts as ``done``, as it did there; the entries that 1.x adds to ``info`` are left out, so that no
    peer stores or shuffles more than it was written to.
    """

    def __init__(self, env: Any):
        self._env = env

    def __getattr__(self, name: str) -> Any:
        if name == "_env":  # a copy in the making has none yet
            raise AttributeError(name)
        return getattr(self._env, name)

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> tuple:
        observation, state, reward, terminated, truncated, info = self._env.step(key, state, action, params)
        return observation, state, reward, terminated | truncated, {"discount": info["discount"]}


def gram_schmidt(matrix: Any) -> tuple[Any, Any]:
    """``q, r`` of a tall matrix, without LAPACK: as many matrix-vector products as it has columns, done twice."""
    import jax
    import jax.numpy as jnp

    def column(index: Any, q: Any) -> Any:
        vector = matrix[:, index]
        for _ in range(2):
            vector = vector - q @ (q.T @ vector)
        return q.at[:, index].set(vector / jnp.linalg.norm(vector))

    q = jax.lax.fori_loop(0, matrix.shape[1], column, jnp.zeros_like(matrix))
    return q, q.T @ matrix


def measure_jax(train: Callable, seeds: int, repeats: int) -> tuple[dict[str, Any], Any]:
    """Times of ``jit(vmap(train))`` over ``seeds`` keys: tracing, compiling, one run (median), and its result.

    Many QR factorizations at once, as orthogonal initializers ask for, hang on a CPU of few cores: above 8 seeds they
    are done by ``gram_schmidt``.
    """
    import jax

    if seeds > 8 and jax.default_backend() == "cpu":
        # The module that jax.random.orthogonal looks it up in; jax.numpy.linalg only hands it on.
        importlib.import_module("jax._src.numpy.linalg").qr = gram_schmidt
    keys = jax.random.split(jax.random.PRNGKey(0), seeds)
    start = time.perf_counter()
    lowered = jax.jit(jax.vmap(train)).lower(keys)
    traced = time.perf_counter()
    run = lowered.compile()
    compiled = time.perf_counter()
    taken, result = [], None
    for _ in range(repeats):
        del result  # two results at once would count twice in the peak
        result = None
        begun = time.perf_counter()
        result = jax.block_until_ready(run(keys))
        taken.append(time.perf_counter() - begun)
    times = {"trace_seconds": traced - start, "compile_seconds": compiled - traced}
    times |= {"run_seconds": statistics.median(taken)}
    return times | {"library": f"jax {jax.__version__}, {jax.default_backend()}"}, result


def evaluate(env: Any, params: Any, act: Callable, states: Any) -> Any:
    """Mean return of 128 first episodes of ``act(state, observation, key)``, one figure for each training state."""
    import jax
    import jax.numpy as jnp

    def episode(state: Any, key: Any) -> Any:
        key, reset_key = jax.random.split(key)
        observation, env_state = env.reset(reset_key, params)

        def step(carry: tuple, key: Any) -> tuple:
            observation, env_state, alive, total = carry
            act_key, step_key = jax.random.split(key)
            action = act(state, observation, act_key)
            observation, env_state, reward, done, _ = env.step(step_key, env_state, action, params)
            return (observation, env_state, alive & ~done, total + alive * jnp.squeeze(reward)), None

        start = observation, env_state, jnp.array(True), jnp.array(0.0)
        return jax.lax.scan(step, start, jax.random.split(key, params.max_steps_in_episode))[0][3]

    @partial(jax.jit)
    def all_episodes(states: Any) -> Any:
        keys = jax.random.split(jax.random.PRNGKey(1), EPISODES)
        return jax.lax.map(lambda state: jax.vmap(partial(episode, state))(keys).mean(), states)

    return all_episodes(states)


def late_episodes(returns: Any, ended: Any) -> Any:
    """Mean return of the episodes that ended in the last tenth of the updates, for each seed.

    Args:
        returns, ended: ``[seeds, updates, ...]``, an episode's return where one ended, and whether one did.
    """
    import numpy as np

    last = max(1, returns.shape[1] // 10)
    late, mask = np.asarray(returns[:, -last:]), np.asarray(ended[:, -last:])
    return np.array([value[where].mean() if where.any() else math.nan for value, where in zip(late, mask, strict=True)])


def spread(name: str, values: Any) -> dict[str, float | None]:
    """``name_mean`` and ``name_std`` (over seeds, ddof 0); None where a figure is missing."""
    listed = [float(value) for value in values]
    if not all(map(math.isfinite, listed)):
        return {f"{name}_mean": None, f"{name}_std": None}
    return {f"{name}_mean": statistics.fmean(listed), f"{name}_std": statistics.pstdev(listed)}


def print_line(peer: str, args: argparse.Namespace, steps: int, figures: Mapping[str, Any]) -> None:
    """One JSON line; ``steps`` are those of one run, whole updates only."""
    line = {"peer": peer, "environment": args.environment, "seeds": args.seeds, "steps": steps, **figures}
    line["steps_per_second"] = args.seeds * steps / line["run_seconds"]
    unit = 1e6 if platform.system() == "Darwin" else 1e3  # bytes there, kilobytes elsewhere
    line["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}), flush=True)
