"""When a generation has enough: so many groups of completions are whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np


class Enough(NamedTuple):
    """How many groups may be unfinished where a generation ends.

    Attributes:
        waiting: ``[P]`` bool, the groups of which some completion waits for a slot.
        size: scalar int32, completions of a group.
        spare: scalar int32, groups that may be unfinished.
    """

    waiting: Any
    size: Any
    spare: Any


def too_few(enough: Enough, going: jax.Array | np.ndarray, rows: jax.Array | np.ndarray) -> Any:
    """Whether more groups are unfinished than may be, a scalar bool; of NumPy's arrays it is found on the host.

    Args:
        enough: of the generation.
        going: ``[B]`` bool, the rows that draw a further token.
        rows: ``[B]`` int32, which completion each is.

    >>> enough = Enough(np.array([False, False, True]), 2, 1)  # completions 4 and 5 wait
    >>> bool(too_few(enough, np.array([True, False]), np.array([1, 2])))
    True
    >>> bool(too_few(enough, np.array([False, False]), np.array([1, 2])))
    False
    """
    numbers = np.arange(enough.waiting.shape[0])[:, None]
    unfinished = enough.waiting | (going & (rows // enough.size == numbers)).any(1)
    return unfinished.sum() > enough.spare
