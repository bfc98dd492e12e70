"""Moving pictures of an episode, from its states: classic control by its geometry, grids by their observation.

Drawn with Pillow, which comes with matplotlib: no window, no pygame.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from rlax_llm.core import checks
from rlax_llm.envs.environment import State
from rlax_llm.envs.gymnax_envs import with_parameters

Point = tuple[float, float]
SIZE = (480, 320)
GRID_PIXELS = 320
SHARPNESS = 2
INK = (32, 34, 37)
STEEL = (130, 138, 150)
WOOD = (202, 152, 101)
SIGNAL = (204, 51, 51)


class Canvas:
    """A white picture in the units of the world that it shows; drawn large and scaled down, for smooth edges."""

    def __init__(self, center: Point, width: float) -> None:
        self.image: Any = Image.new("RGB", (SIZE[0] * SHARPNESS, SIZE[1] * SHARPNESS), "white")
        self.pen: Any = ImageDraw.Draw(self.image)
        self.center: Point = center
        self.scale: float = SIZE[0] * SHARPNESS / width

    def pixel(self, point: Point) -> Point:
        """Where a point of the world lies in the large picture."""
        x, y = ((a - b) * self.scale for a, b in zip(point, self.center, strict=True))
        return self.image.width / 2 + x, self.image.height / 2 - y

    def line(self, points: list[Point], width: float, color: tuple[int, int, int]) -> None:
        """A line through the points, ``width`` in the world's units."""
        self.pen.line([self.pixel(p) for p in points], color, max(1, round(width * self.scale)), joint="curve")

    def disc(self, center: Point, radius: float, color: tuple[int, int, int]) -> None:
        """A filled circle."""
        x, y = self.pixel(center)
        r = radius * self.scale
        self.pen.ellipse([x - r, y - r, x + r, y + r], color)

    def array(self) -> np.ndarray:
        """The picture, ``[H, W, 3]`` uint8."""
        return np.asarray(self.image.resize(SIZE, Image.Resampling.BOX))


def frames(name: str, states: State, **parameters: Any) -> np.ndarray:
    """Pictures of an episode's states.

    Args:
        name: CartPole-v1, Pendulum-v1, MountainCar-v0, MountainCarContinuous-v0, Acrobot-v1, the five of MinAtar,
            Catch-bsuite, DeepSea-bsuite or Pong-misc.
        states: the environment's states, stacked on axis 0 (``[T, …]``), as ``jax.lax.scan`` returns them.
        parameters: those that the environment was made with.

    Returns:
        ``[T, H, W, 3]`` uint8.

    Raises:
        ValueError: for an environment that can't be drawn, no states, or a parameter that it does not have.

    >>> from rlax_llm.envs.gymnax_envs import gymnax
    >>> states, _ = jax.vmap(gymnax("Pendulum-v1").reset)(jax.random.split(jax.random.key(0), 2))
    >>> frames("Pendulum-v1", states).shape
    (2, 320, 480, 3)
    """
    if name not in DRAWINGS and name not in GRIDS:
        raise ValueError(f"cannot render {name}; wanted one of {[*DRAWINGS, *GRIDS]}.")
    if any(np.ndim(leaf) == 0 or len(leaf) == 0 for leaf in jax.tree.leaves(states)):
        raise ValueError(f"frames: the states of {name} have no axis of steps; stack at least one on axis 0.")
    source, chosen = with_parameters(name, parameters)
    if name in GRIDS:
        observations = jax.vmap(lambda state: source.observe(jax.random.key(0), state, None, chosen))(states)
        return _grids(np.asarray(observations, np.float32))
    draw = DRAWINGS[name]
    states = jax.tree.map(np.asarray, states)
    count = len(jax.tree.leaves(states)[0])
    return np.stack([draw(jax.tree.map(lambda x, t=t: x[t], states), chosen) for t in range(count)])


def gif(name: str, states: State, path: str | Path, frames_per_second: float = 30.0, **parameters: Any) -> None:
    """Write ``frames`` as an animated GIF that repeats.

    Args:
        name: as ``frames`` takes it.
        states: as ``frames`` takes them.
        path: of the file, whose folder exists.
        frames_per_second: at most 50; a GIF counts in hundredths of a second.
        parameters: as ``frames`` takes them.

    Raises:
        ValueError: as ``frames``, and for a rate that is not greater than 0 or is above 50.

    >>> gif("Ant", None, "ant.gif")
    Traceback (most recent call last):
    ValueError: cannot render Ant; wanted one of ['CartPole-v1', ...
    """
    checks.positive("gif", frames_per_second=frames_per_second)
    if frames_per_second > 50:
        raise ValueError(f"gif: frames_per_second is {frames_per_second}, wanted at most 50; viewers slow down above.")
    first, *others = (Image.fromarray(frame) for frame in frames(name, states, **parameters))
    hundredths = round(100 / frames_per_second)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=10 * hundredths, loop=0)


def _cart_pole(state: Any, parameters: Any) -> np.ndarray:
    canvas = Canvas((0.0, 0.6), 2.2 * parameters.x_threshold)
    x = float(state.x)
    lean = float(state.theta)
    length = 2 * parameters.length
    canvas.line([(-parameters.x_threshold, 0.0), (parameters.x_threshold, 0.0)], 0.02, STEEL)
    canvas.line([(x - 0.25, 0.0), (x + 0.25, 0.0)], 0.3, INK)
    canvas.line([(x, 0.15), (x + length * np.sin(lean), 0.15 + length * np.cos(lean))], 0.1, WOOD)
    canvas.disc((x, 0.15), 0.05, STEEL)
    return canvas.array()


def _pendulum(state: Any, parameters: Any) -> np.ndarray:
    canvas = Canvas((0.0, 0.0), 3.6 * parameters.l)
    angle = float(state.theta)
    end = (-parameters.l * np.sin(angle), parameters.l * np.cos(angle))
    canvas.line([(0.0, 0.0), end], 0.2 * parameters.l, SIGNAL)
    canvas.disc(end, 0.1 * parameters.l, SIGNAL)
    canvas.disc((0.0, 0.0), 0.05 * parameters.l, INK)
    return canvas.array()


def _mountain_car(state: Any, parameters: Any) -> np.ndarray:
    low = parameters.min_position
    high = parameters.max_position
    canvas = Canvas(((low + high) / 2, 0.55), 1.1 * (high - low))

    def ground(x: float) -> Point:
        return x, 0.45 * float(np.sin(3 * x)) + 0.55

    canvas.line([ground(x) for x in np.linspace(low, high, 100)], 0.01, INK)
    x = float(state.position)
    flag = ground(parameters.goal_position)
    canvas.line([flag, (flag[0], flag[1] + 0.15)], 0.01, STEEL)
    canvas.disc((flag[0], flag[1] + 0.15), 0.025, SIGNAL)
    canvas.disc((x, ground(x)[1] + 0.04), 0.04, INK)
    return canvas.array()


def _acrobot(state: Any, parameters: Any) -> np.ndarray:
    first = parameters.link_length_1
    second = parameters.link_length_2
    upper = float(state.joint_angle1)
    lower = upper + float(state.joint_angle2)
    elbow = (first * np.sin(upper), -first * np.cos(upper))
    tip = (elbow[0] + second * np.sin(lower), elbow[1] - second * np.cos(lower))
    canvas = Canvas((0.0, 0.0), 3.3 * (first + second))
    canvas.line([(-first - second, 1.0), (first + second, 1.0)], 0.02, SIGNAL)
    canvas.line([(0.0, 0.0), elbow, tip], 0.15, WOOD)
    for joint in ((0.0, 0.0), elbow, tip):
        canvas.disc(joint, 0.1, INK)
    return canvas.array()


def _grids(observations: np.ndarray) -> np.ndarray:
    """``[T, H, W]`` or ``[T, H, W, C]``: a color for each channel, the last one on top where several are set."""
    if observations.ndim == 3:
        observations = observations[..., None]
    channels = observations.shape[-1]
    colors = [colorsys.hsv_to_rgb(c / channels, 0.7, 1.0) for c in range(channels)]
    palette = np.array([(0.0, 0.0, 0.0), *colors])
    top = ((observations > 0) * np.arange(1, channels + 1)).max(-1)
    pixels = (255 * palette[top]).astype(np.uint8)
    larger = max(1, GRID_PIXELS // max(pixels.shape[1:3]))
    return pixels.repeat(larger, 1).repeat(larger, 2)


DRAWINGS: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "CartPole-v1": _cart_pole,
    "Pendulum-v1": _pendulum,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "Acrobot-v1": _acrobot,
}
GRIDS = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "Pong-misc",
)
