"""What the experiments share: arguments, intervals, figures, and a report that is written from its own numbers.

An experiment is ``python -m experiments.NAME``: its ``report(numbers)`` gives the text of ``README.md`` from what
stands in ``numbers.json`` and nothing else, so that the two cannot disagree.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.types import Trajectory
from rlax_llm.envs.environment import Environment
from rlax_llm.host.outputs import check_directory
from rlax_llm.host.spread import student_quantile
from rlax_llm.loops.collect import Steps
from rlax_llm.loops.control import trajectory
from rlax_llm.models.actor_critic import ActorCritic, Params

COLORS = ("#1f4e79", "#c8553d", "#3a7d44", "#8a5a9e", "#b8860b", "#4a9ba8", "#6b7280", "#d16ba5")
_TEXT, _GRID = "#30363d", "#e4e7eb"


class Task(NamedTuple):
    """An environment with what belongs to it."""

    name: str
    discount: float
    limit_steps: int
    scales_rewards: bool


TASKS = (Task("CartPole-v1", 0.99, 500, False), Task("Pendulum-v1", 0.95, 200, True))


def arguments(where: str, description: str | None, given: Sequence[str] | None) -> argparse.Namespace:
    """``--quick`` and ``--out``; ``where`` is the experiment's ``__file__``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: shows that it runs, no more")
    parser.add_argument("--out", type=Path, default=Path(where).parent, help="directory of the figure and the numbers")
    args = parser.parse_args(given)
    check_directory(args.out)
    return args


def interval(samples: Any) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) of independent samples ``[N]``; those that are NaN are left out."""
    values = np.asarray(samples, float).ravel()
    values = values[np.isfinite(values)]
    count = len(values)
    if count == 0:
        return {"mean": None, "low": None, "high": None, "samples": 0}
    half = student_quantile(count - 1) * values.std(ddof=1) / np.sqrt(count) if count > 1 else 0.0
    mean = values.mean()
    return {"mean": short(mean), "low": short(mean - half), "high": short(mean + half), "samples": count}


def short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def plain(settings: Any) -> Any:
    """What JSON keeps of settings, with the names of those in them.

    >>> plain(Task("CartPole-v1", 0.99, 500, False))["limit_steps"]
    500
    """
    if hasattr(settings, "_asdict"):
        return {name: plain(value) for name, value in settings._asdict().items()}
    return [plain(value) for value in settings] if isinstance(settings, (tuple, list)) else settings


def said(measured: Mapping[str, Any], digits: int = 2, scale: float = 1.0) -> str:
    """``mean (low to high)``.

    >>> said({"mean": 0.5, "low": 0.25, "high": 0.75})
    '0.50 (0.25 to 0.75)'
    """
    if measured["mean"] is None:
        return "none"
    mean, low, high = (f"{scale * measured[name]:,.{digits}f}".replace("-", "−") for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def percent(measured: Mapping[str, Any], digits: int = 1) -> str:
    """A share, in percent, with its interval."""
    if measured["mean"] is None:
        return "none"
    mean, low, high = (f"{100 * measured[name]:.{digits}f}".replace("-", "−") for name in ("mean", "low", "high"))
    return f"{mean} % ({low} to {high})"


def verdict_of(parts: Iterable[bool]) -> str:
    """Whether a claim of several parts held."""
    held = list(parts)
    return "held" if all(held) else "held in part" if any(held) else "did not hold"


def each(parts: Mapping[str, bool]) -> str:
    """A claim's parts in words, one by one."""
    return "; ".join(f"{part}: {'yes' if held else 'no'}" for part, held in parts.items())


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write(out: Path, figure: Any, numbers: Mapping[str, Any], report: Callable[[Mapping[str, Any]], str]) -> None:
    """``figure.png``, ``numbers.json`` and ``README.md`` in ``out``, and the report on the terminal."""
    out.mkdir(parents=True, exist_ok=True)
    save_small(figure, out / "figure.png")
    (out / "numbers.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = reflowed(report(json.loads((out / "numbers.json").read_text(encoding="utf-8"))))
    (out / "README.md").write_text(text, encoding="utf-8")
    print(text)


def save_small(figure: Any, path: Path) -> None:
    """A PNG of 128 colors: a third of the bytes, and no difference to the eye in a plot."""
    from PIL import Image

    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    Image.open(whole).convert("RGB").quantize(128).save(path, optimize=True)


def reflowed(text: str) -> str:
    """Markdown with its paragraphs filled to 120 columns; headings, pictures and tables stay."""

    def filled(block: str) -> str:
        # A space in code is no place to break a line.
        words = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(block.split()))
        lines = textwrap.fill(words, 120, break_on_hyphens=False, break_long_words=False)
        return lines.replace("\0", " ")

    blocks = text.strip().split("\n\n")
    return "\n\n".join(block if block[0] in "#!| " else filled(block) for block in blocks) + "\n"


def new_figure(title: str, columns: int, rows: int = 1) -> tuple[Any, np.ndarray]:
    """A figure and its axes ``[rows · columns]``, in one style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((4.6 * columns, 3.6 * rows + 0.4), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11.5, color=_TEXT, fontweight="bold", x=0.012, ha="left")
    axes = np.ravel(figure.subplots(rows, columns))
    for panel in axes:
        panel.grid(color=_GRID, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8.5, colors=_TEXT, length=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_GRID)
    return figure, axes


def label(panel: Any, title: str, x: str, y: str, legend: bool = True) -> None:
    """Title, axes with units, legend."""
    panel.set_title(title, fontsize=10, color=_TEXT, loc="left")
    panel.set_xlabel(x, fontsize=9, color=_TEXT)
    panel.set_ylabel(y, fontsize=9, color=_TEXT)
    if legend:
        panel.legend(fontsize=8, frameon=False)


def band(panel: Any, x: Any, samples: Any, name: str | None, color: str, **style: Any) -> None:
    """The mean of ``samples [N, T]`` over ``x [T]`` and its 95 % interval over N."""
    samples = np.asarray(samples, float)
    mean, deviation = np.nanmean(samples, 0), np.nanstd(samples, 0, ddof=1)
    half = student_quantile(len(samples) - 1) * deviation / np.sqrt(len(samples))
    panel.plot(x, mean, label=name, color=color, linewidth=1.8, **style)
    panel.fill_between(x, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)


def bars(panel: Any, names: Sequence[str], measured: Sequence[Mapping[str, float]], colors: Sequence[str]) -> None:
    """Points with intervals, one a name."""
    for place, (one, color) in enumerate(zip(measured, colors)):
        panel.plot([place, place], [one["low"], one["high"]], color=color, linewidth=2.4)
        panel.plot([place], [one["mean"]], "o", color=color, markersize=6)
    panel.set_xticks(range(len(names)), names, fontsize=8)


def windowed(metrics: Mapping[str, jax.Array], points: int) -> np.ndarray:
    """Mean return of the episodes that ended in each of ``points`` windows of a run's metrics ``[…, U]``."""
    episodes = np.asarray(metrics["episodes"], float)
    returns = np.nan_to_num(np.asarray(metrics["episode_return"], float)) * episodes
    size = episodes.shape[-1] // points
    cut = (*episodes.shape[:-1], points, size)
    count, total = (x[..., : points * size].reshape(cut).sum(-1) for x in (episodes, returns))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def returns_of_policy(
    environment: Environment, policy: ActorCritic, episodes: int, limit_steps: int
) -> Callable[[Params, jax.Array], jax.Array]:
    """``(params, key) → [episodes]`` undiscounted returns of the stochastic policy, cut at ``limit_steps``."""

    def evaluate(params: Params, key: jax.Array) -> jax.Array:
        reset_key, noise_key, step_key = jax.random.split(key, 3)
        states, observations = jax.vmap(environment.reset)(jax.random.split(reset_key, episodes))
        parameters = jax.eval_shape(lambda: policy.act(params, (), observations)[0])
        all_steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((limit_steps, *x.shape), x.dtype), parameters)
        noise = policy.distribution.noise(noise_key, all_steps)

        def one(now: tuple, given: tuple) -> tuple[tuple, None]:
            states, observations, returns, over = now
            noise, key = given
            actions = policy.distribution.transform(noise, policy.act(params, (), observations)[0])
            step = jax.vmap(environment.step)(jax.random.split(key, episodes), states, actions)
            returns = returns + jnp.where(over, 0.0, step.reward)
            return (step.state, step.observation, returns, over | step.terminated | step.truncated), None

        start = (states, observations, jnp.zeros(episodes), jnp.zeros(episodes, bool))
        return jax.lax.scan(one, start, (noise, jax.random.split(step_key, limit_steps)))[0][2]

    return evaluate


def trajectory_of(policy: ActorCritic, params: Params, steps: Steps, discount: float) -> Trajectory:
    """Steps ``[T, B]`` with the critic's values, for credits along axis 0; the policy has no memory."""
    stream = trajectory(policy, lambda observations: observations, params, (), steps)
    return stream._replace(discounts=discount * stream.discounts)
