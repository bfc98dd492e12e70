"""Pictures of states: that what moves in the world moves in the picture, and what can't be drawn says so."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

from rlax_llm.envs.gymnax_envs import gymnax
from rlax_llm.envs.rendering import DRAWINGS, GRIDS, INK, SIGNAL, SIZE, WOOD, frames, gif


def starts(name: str, count: int = 2, **fields: Any) -> Any:
    states, _ = jax.jit(jax.vmap(gymnax(name).reset))(jax.random.split(jax.random.key(0), count))
    return states.replace(**{field: jnp.array(value) for field, value in fields.items()})


def place(picture, color):
    """Mean pixel, right and up from the middle, of those of about one color."""
    rows, columns = np.nonzero(np.abs(picture.astype(int) - color).max(-1) < 30)
    return columns.mean() - picture.shape[1] / 2, picture.shape[0] / 2 - rows.mean()


@pytest.mark.parametrize("name", DRAWINGS)
def test_classic_control_has_a_picture_for_each_state(name):
    pictures = frames(name, starts(name, 3))
    assert pictures.shape == (3, SIZE[1], SIZE[0], 3) and pictures.dtype == np.uint8
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 3 for picture in pictures)


def test_cart_and_pole_are_where_the_state_says():
    left, right = frames("CartPole-v1", starts("CartPole-v1", x=[-1.2, 1.2], theta=[0.2, -0.2]))
    (x, _), (y, _) = place(left, INK), place(right, INK)
    np.testing.assert_allclose([x, y], [-1.2 * SIZE[0] / 5.28, 1.2 * SIZE[0] / 5.28], atol=2)
    assert place(left, WOOD)[0] > x and place(right, WOOD)[0] < y


def test_a_pendulum_stands_at_zero_and_turns_to_the_left():
    up, left, down = frames("Pendulum-v1", starts("Pendulum-v1", 3, theta=[0.0, np.pi / 2, np.pi]))
    assert place(up, SIGNAL)[1] > 30 and place(down, SIGNAL)[1] < -30 and place(left, SIGNAL)[0] < -30


def test_an_acrobot_hangs_at_zero():
    states = starts("Acrobot-v1", joint_angle1=[0.0, np.pi], joint_angle2=[0.0, 0.0])
    down, up = frames("Acrobot-v1", states)
    assert place(down, WOOD)[1] < -30 and place(up, WOOD)[1] > 30


@pytest.mark.parametrize("name", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_a_car_is_in_the_valley_or_on_the_hill(name):
    valley, hill = frames(name, starts(name, position=[-0.52, 0.45]))
    moved = (valley != hill).any(-1)
    rows, columns = np.nonzero(moved)
    assert np.ptp(rows) > SIZE[1] / 2 and np.ptp(columns) > SIZE[0] / 3


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "Catch-bsuite", "DeepSea-bsuite"])
def test_a_grid_is_black_where_nothing_is(name):
    assert name in GRIDS
    environment, states = gymnax(name), starts(name, 1)
    _, observation = environment.reset(jax.random.split(jax.random.key(0), 1)[0])
    picture, occupied = frames(name, states)[0], np.asarray(observation > 0).reshape(*observation.shape[:2], -1)
    cell = picture.shape[0] // len(occupied)
    np.testing.assert_array_equal((picture[::cell, ::cell] > 0).any(-1), occupied.any(-1))


def test_parameters_are_drawn():
    states = starts("Pendulum-v1", 1, theta=[0.0])
    assert place(frames("Pendulum-v1", states, l=1.0)[0], SIGNAL) == place(frames("Pendulum-v1", states)[0], SIGNAL)
    assert frames("Catch-bsuite", starts("Catch-bsuite", 1), columns=10).shape[2] == 320


def test_a_gif_plays_at_its_rate(tmp_path):
    path = tmp_path / "pendulum.gif"
    gif("Pendulum-v1", starts("Pendulum-v1", 4, theta=[0.0, 1.0, 2.0, 3.0]), path, frames_per_second=20)
    with Image.open(path) as picture:
        assert picture.info["duration"] == 50 and picture.info["loop"] == 0 and picture.size == SIZE
        assert len(list(ImageSequence.Iterator(picture))) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frames("Reacher-misc", None), "cannot render Reacher-misc; wanted one of .*'CartPole-v1', "),
        (lambda: frames("CartPole-v1", gymnax("CartPole-v1").reset(jax.random.key(0))[0]), "have no axis of steps"),
        (lambda: gif("CartPole-v1", None, "x.gif", 0.0), "gif: frames_per_second is 0.0, wanted a number greater"),
        (lambda: gif("CartPole-v1", None, "x.gif", 60.0), "gif: frames_per_second is 60.0, wanted at most 50"),
        (lambda: frames("CartPole-v1", starts("CartPole-v1"), size=3), "CartPole-v1 has no parameter 'size'"),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
