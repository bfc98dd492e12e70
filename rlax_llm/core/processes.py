"""What several processes of one program tell each other: small values, over the devices, in the same order everywhere.

Each function here is called by all processes at the same point of the program, or none goes on. Of one process alone
they give what it gave.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")

_LEAST = 1024  # bytes of a message's buffer, which grows in powers of 2: few programs to compile


def several() -> bool:
    """Whether this program runs in several processes.

    >>> several()
    False
    """
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all.

    >>> is_first()
    True
    """
    return jax.process_index() == 0


def gathered(value: Any) -> list[Any]:
    """What each process gave, in their order.

    Args:
        value: what JSON has; NaN and infinity too.

    >>> gathered({"reward": 0.5})
    [{'reward': 0.5}]
    """
    if not several():
        return [value]
    own = json.dumps(value).encode()
    sizes = _everyones(np.array([len(own)], np.int32))[:, 0]
    room = _LEAST
    while room < sizes.max():
        room *= 2
    texts = _everyones(np.frombuffer(own.ljust(room), np.uint8))
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def _everyones(own: np.ndarray) -> np.ndarray:
    """The arrays of all processes, ``[processes, …]``, of one shape and type."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(own)).reshape(jax.process_count(), *own.shape)


def first_says(value: Any) -> Any:
    """What the first process gave: for what depends on a clock, or on a file that one process writes.

    Args:
        value: what JSON has.

    >>> first_says(3)
    3
    """
    return gathered(value)[0]


def share(count: int) -> slice:
    """This process's part of so many things in order; those of all processes are all of them.

    >>> share(5)
    slice(0, 5, None)
    """
    size, index = jax.process_count(), jax.process_index()
    return slice(count * index // size, count * (index + 1) // size)


def done_by_all(action: Callable[[], T], *errors: type[Exception]) -> list[T]:
    """What ``action`` gives on each process; an error on any is raised on all.

    Args:
        action: gives what JSON has.
        errors: what it may raise; the others raise one of the first of them that says the same.

    >>> done_by_all(lambda: 2, ValueError)
    [2]
    """
    if not several():
        return [action()]
    failed, own = None, None
    try:
        own = action()
    except errors as raised:
        failed = raised
    told = gathered([own, None if failed is None else str(failed)])
    sentences = [sentence for _, sentence in told if sentence is not None]
    if failed is not None and str(failed) == sentences[0]:
        raise failed
    if sentences:
        raise errors[0](sentences[0])
    return [result for result, _ in told]


def check_alike(what: str, value: Any) -> None:
    """Raise, on all processes, where they do not have the same.

    Args:
        what: that a message begins with.
        value: of this process: what JSON has, named tuples and arrays.

    Raises:
        ValueError: a process has another value than the first.

    >>> check_alike("data.jsonl", [{"prompt": "1+1="}])
    """
    if not several():
        return
    written = json.dumps(value, default=lambda x: x.tolist() if hasattr(x, "tolist") else type(x).__name__)
    sums = gathered(hashlib.sha256(written.encode()).hexdigest())
    for index, other in enumerate(sums):
        if other != sums[0]:
            raise ValueError(f"{what} is not the same on processes 0 and {index}; give all the same files.")


def told_to_all(action: Callable[[], T]) -> T:
    """What ``action`` gives on this process; where it cannot on any, all raise an error that says the same.

    Args:
        action: reads something, and computes nothing over the devices.

    >>> told_to_all(lambda: {1})
    {1}
    """
    found: list[T] = []
    done_by_all(lambda: found.append(action()), ValueError, OSError, RuntimeError, ImportError)
    return found[0]
