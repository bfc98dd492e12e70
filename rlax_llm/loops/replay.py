"""Replay of groups that had something to compare, in the place of those that have not.

What is remembered and what is given are two functions of places, so that they serve groups in a program (``replayed``)
as well as groups of text beside one. Places count what is remembered first, then the fresh groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Groups, Metrics, Params
from rlax_llm.loops.group import compared, informative_groups
from rlax_llm.loops.language import Collector, ages, by_group, dated, in_rows, no_groups

_OWN = 2**31 - 1  # folded into a step's key; smaller numbers may be those of the wrapped collector's rounds


@check_arguments
def given_places(informative: jax.Array, there: jax.Array, most: int | jax.Array, key: jax.Array) -> jax.Array:
    """For each of a step's places, what stands in it: the fresh group, or a remembered one if that is uninformative.

    Remembered groups are drawn without replacement, all alike, until there are none or ``most`` places have one.
    Limiting cases: the fresh groups for ``most = 0``, where all are informative, and where nothing is remembered.

    Args:
        informative: ``[P]`` bool, of the fresh groups.
        there: ``[N]`` bool, the places of the memory that hold a group.
        most: ≥ 0, places that may have a remembered group.
        key: randomness.

    Returns:
        ``[P]`` int32, places of ``[memory, fresh]``.

    >>> here = jnp.array([True, False, False]), jnp.array([True, False])
    >>> given_places(*here, 2, jax.random.key(0)).tolist(), given_places(*here, 0, jax.random.key(0)).tolist()
    ([2, 0, 4], [2, 3, 4])
    """
    size = there.shape[0]
    order = jnp.argsort(jnp.where(there, jax.random.uniform(key, (size,)), jnp.inf))
    turn = jnp.cumsum(~informative) - 1
    taken = ~informative & (turn < jnp.minimum(most, there.sum()))
    fresh = size + jnp.arange(informative.shape[0])
    return jnp.where(taken, order[jnp.clip(turn, 0, size - 1)], fresh).astype(jnp.int32)


@check_arguments
def remembered_places(informative: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is remembered after a step: its informative groups, then what was remembered, as much as there is room for.

    Args:
        informative: ``[P]`` bool, of the fresh groups.
        there: ``[N]`` bool, the places of the memory that hold a group, the newest first.

    Returns:
        ``[N]`` int32, places of ``[memory, fresh]``, and ``[N]`` bool, whether they hold a group.

    >>> places, there = remembered_places(jnp.array([True, False, True]), jnp.array([True, False]))
    >>> places.tolist(), there.tolist()
    ([4, 2], [True, True])
    """
    size, fresh = there.shape[0], informative.shape[0]
    newest = jnp.concatenate([size + jnp.arange(fresh)[::-1], jnp.arange(size)])
    holds = jnp.concatenate([there, informative])[newest]
    kept = jnp.argsort(~holds, stable=True)[:size]
    return newest[kept].astype(jnp.int32), holds[kept]


class Remembered(NamedTuple):
    """The last informative groups.

    Attributes:
        groups: ``by_group``, N of them, the newest first, with the versions of the policies that drew them.
        there: ``[N]`` bool, the places that hold one.
        inner: the wrapped collector's memory.
    """

    groups: Groups
    there: jax.Array
    inner: Any


@check_arguments
def replayed(collector: Collector, size: int, share: float | jax.Array) -> Collector:
    """Fresh groups, of which uninformative ones give their places to earlier groups that were informative.

    A group is informative where its scores differ, or with ``known.step_rewards`` the rewards of its steps.
    At most ``share · P`` places of a step, rounded. A replayed group has the log-probabilities of the policy that drew
    it, so that ratios and corrections are those of that policy, its scores, and its version. TRL and NeMo-RL ship such
    a memory; TRL's keeps the groups of the largest spread, this one the last. Limiting cases: the collector itself for
    a share of 0, and where all groups are informative.

    Args:
        collector: of P groups per step.
        size: N ≥ 1, groups that are remembered.
        share: of a step's places, from 0 to 1; may be traced.

    Returns:
        A collector; metrics of it are ``replay/share``, the share of the places that have a replayed group, and
        ``replay/age``, the mean number of updates since the policies that drew these (0 without any).

    Raises:
        ValueError: for a size below 1 or a share out of its range.
    """
    checks.at_least_one("replayed", size=size)
    checks.not_negative("replayed", share=share, **{"1 − share": 1 - share})

    def fresh(inner: Any, params: Params, key: jax.Array, version: jax.typing.ArrayLike) -> tuple[Any, Groups, Metrics]:
        inner, groups, metrics = collector.collect(inner, params, key, version)
        return inner, by_group(dated(groups, version)), metrics

    def init(params: Params) -> Remembered:
        inner = collector.init(params)
        one = no_groups(lambda key: fresh(inner, params, key, 0)[1])
        empty = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), one)
        return Remembered(empty, jnp.zeros(size, bool), inner)

    def collect(
        memory: Remembered, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Remembered, Groups, Metrics]:
        inner, new, metrics = fresh(memory.inner, params, key, version)
        informative = informative_groups(compared(in_rows(new)))
        most = jnp.round(share * informative.size).astype(jnp.int32)
        given = given_places(informative, memory.there, most, jax.random.fold_in(key, _OWN))
        kept, there = remembered_places(informative, memory.there)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), memory.groups, new)
        taken, left = (jax.tree.map(lambda x, at=at: x[at], both) for at in (given, kept))
        metrics = metrics | _told(given < size, taken.completions.mask, ages(taken.completions, version))
        return Remembered(left, there, inner), in_rows(taken), metrics

    return Collector(init, collect)


def _told(again: jax.Array, mask: jax.Array, staleness: jax.Array) -> Metrics:
    """Of the places that have a replayed group."""
    there = mask & again[:, None, None]
    old = jnp.where(there, staleness, 0.0)
    return {"replay/share": again.mean(), "replay/age": old.sum() / jnp.maximum(there.sum(), 1)}
