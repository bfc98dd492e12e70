"""Prompts by their pass rates: what is remembered of them, and how often they are drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.loops.curriculum import (
    by_pass_rate,
    chances,
    kept_all,
    near_rate,
    running_rates,
    settled,
    solved,
    uniform_choosing,
)

N, WINDOW, G = 5, 3, 2
KEY = jax.random.key(0)
RULES = {"solved": solved, "settled": settled, "kept_all": kept_all}
LITERAL = {"solved": ({1.0},), "settled": ({1.0}, {0.0}), "kept_all": ()}


@pytest.mark.parametrize("rule", RULES)
def test_rates_and_chances_are_those_of_lists(rule):
    """Visits written down prompt by prompt; a prompt that is there twice is visited once, without a score never."""
    choosing = by_pass_rate(N, near_rate(0.4, 0.3), RULES[rule], WINDOW)
    rng, visits = np.random.default_rng(1), [[] for _ in range(N)]
    learn, memory = jax.jit(choosing.learn), choosing.init()
    for number in range(12):
        chosen = rng.integers(0, N, 4)
        scores = rng.choice([0.0, 0.5, 1.0, np.nan], (4, G))
        scores[chosen == 0], scores[chosen == 1] = 1.0, 0.0
        # As two rewards, which are added up.
        memory, told = learn(memory, jnp.asarray(chosen), jnp.asarray(np.stack([scores / 2, scores / 2])))
        for prompt in set(chosen.tolist()):
            own = scores[chosen == prompt].ravel()
            own = own[~np.isnan(own)]
            visits[prompt] += [np.mean(own == 1)] if own.size else []
        last = [seen[-WINDOW:] for seen in visits]
        rates = np.array([np.mean(seen) if seen else 0.5 for seen in last])
        retired = np.array([len(seen) == WINDOW and set(seen) in LITERAL[rule] for seen in last])
        weights = np.where(retired, 0.0, np.exp(-0.5 * ((rates - 0.4) / 0.3) ** 2))
        np.testing.assert_allclose(running_rates(memory), rates, atol=1e-6)
        np.testing.assert_array_equal(RULES[rule](memory), retired)
        found = chances(near_rate(0.4, 0.3)(running_rates(memory)), RULES[rule](memory))
        np.testing.assert_allclose(found, weights / weights.sum(), atol=1e-6)
        assert told["curriculum/retired"] == pytest.approx(retired.mean())
        mean = np.mean([rate for rate, seen in zip(rates, last, strict=True) if seen])
        assert told["curriculum/mean_pass_rate"] == pytest.approx(mean, abs=1e-6), number
    assert retired.sum() == len(LITERAL[rule])
    drawn = np.bincount(choosing.choose(memory, KEY, 4000), minlength=N) / 4000
    np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.03)


def test_equal_weights_draw_as_uniform_choosing_does():
    choosing = by_pass_rate(N, jnp.ones_like, kept_all)
    memory = choosing.learn(choosing.init(), jnp.arange(N), jnp.eye(N)[:, :G])[0]
    np.testing.assert_allclose(chances(jnp.ones(N), kept_all(memory)), 1 / N, atol=1e-7)
    for one in (choosing, uniform_choosing(N)):
        counts = np.bincount(one.choose(memory, KEY, 5000), minlength=N)
        # 18.5 is the 99.9 % quantile of chi-squared at four degrees of freedom.
        assert ((counts - 1000) ** 2 / 1000).sum() < 18.5
    wide = near_rate(0.5, jnp.inf)(running_rates(memory))
    np.testing.assert_array_equal(wide, 1.0)


def test_a_run_whose_prompts_are_done_goes_on():
    every, none = jnp.ones(2, bool), jnp.zeros(2, bool)
    assert chances(jnp.array([1.0, 3.0]), every).tolist() == [0.25, 0.75]
    assert chances(jnp.zeros(2), none).tolist() == chances(jnp.zeros(2), every).tolist() == [0.5, 0.5]
    assert chances(jnp.zeros(2), jnp.array([True, False])).tolist() == [0.0, 1.0]


def test_mistakes_are_told():
    for prompts, window, told in ((0, 1, "prompts is 0"), (1, 0, "window is 0")):
        with pytest.raises(ValueError, match=told):
            by_pass_rate(prompts, near_rate(), window=window)
    with pytest.raises(ValueError, match="width is 0"):
        near_rate(width=0.0)
