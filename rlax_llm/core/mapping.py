"""``vmap`` that on a CPU keeps what it works on in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from rlax_llm.core.platform import platform

CACHE = 2**19  # float32 numbers, 2 MB


def map_in_cache(function: Callable[..., Any], items: tuple[Any, ...], numbers: int) -> Any:
    """``vmap(function)(*items)``: on a CPU, as many items at a time as fit its cache together.

    An operation over all items at once reads them from memory each time; items one by one would cost more in calls
    than in work, where they are small. An accelerator takes all together. Parts are of one size where one that is more
    than half of that divides the items: for what is left over the function would be compiled once more.

    Args:
        function: of one item of each.
        items: pytrees of arrays with the items on axis 0.
        numbers: float32 numbers that the function holds for one item.

    Returns:
        What ``vmap`` returns.

    >>> map_in_cache(lambda x, y: x + y, (jax.numpy.arange(3), jax.numpy.ones(3, int)), 2).tolist()
    [1, 2, 3]
    """
    if platform() != "cpu":
        return jax.vmap(function)(*items)
    count = jax.tree.leaves(items)[0].shape[0]
    most = min(max(CACHE // numbers, 1), count)
    return jax.lax.map(lambda item: function(*item), items, batch_size=_even(count, most))


def _even(count: int, most: int) -> int:
    """Items of a part: the most that divide their count and are more than half of ``most``; else ``most``.

    >>> _even(4, 3), _even(7, 3), _even(30, 16)
    (2, 3, 15)
    """
    return next((size for size in range(most, most // 2, -1) if count % size == 0), most)
