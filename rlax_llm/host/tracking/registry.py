"""The trackers by name; without their packages, which are imported once a run has something to say."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlax_llm.core.names import did_you_mean
from rlax_llm.host.tracking.tracker import TrackedRun, Tracker


class Named(NamedTuple):
    """A tracker that can be asked for.

    Attributes:
        name: of the tracker, of its package and of the extra that installs it.
        place: ``module:class`` of ours.
    """

    name: str
    place: str

    def open(self, run: TrackedRun) -> Tracker:
        """The tracker of a run.

        Args:
            run: to be tracked.
        """
        module, _, name = self.place.partition(":")
        made: Callable[[TrackedRun], Tracker] = getattr(importlib.import_module(module), name)
        return made(run)


_HERE = "rlax_llm.host.tracking"
TRACKERS = {
    name: Named(name, f"{_HERE}.to_{name}:{kind}")
    for name, kind in (
        ("tensorboard", "TensorBoard"),
        ("wandb", "Wandb"),
        ("trackio", "Trackio"),
        ("mlflow", "MLflow"),
    )
}
"""Those that there are."""


NONE = "none"
"""No tracker, in a word."""


def tracker_names(given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of trackers, of which some may stand in one word with commas between them.

    Args:
        given: as ``track`` holds them; None is none, and so is the one word ``none``, which a resumed run can be told.

    Raises:
        ValueError: a name that no tracker has, one that is there twice, or a tracker whose package is not installed.

    >>> tracker_names(["tensorbord"])
    Traceback (most recent call last):
    ValueError: track is 'tensorbord', which is no tracker; did you mean 'tensorboard'?
    """
    names = tuple(name.strip() for word in given or () for name in word.split(","))
    if names == (NONE,):
        return ()
    for index, name in enumerate(names):
        if name == NONE:
            raise ValueError(
                f"track has {NONE} beside {', '.join(x for x in names if x != NONE)}; give one or the other."
            )
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS, f"; there are {', '.join(TRACKERS)}.")
            raise ValueError(f"track is {name!r}, which is no tracker{hint}")
        if name in names[:index]:
            raise ValueError(f"track has {name} twice; give it once.")
        if not _installed(name):
            raise ValueError(
                f"track is {name!r}, whose package is not installed; pip install 'rlax-llm[{name}]', or leave it out."
            )
    return names


def _installed(package: str) -> bool:
    """Whether it can be imported; a mere folder of that name, such as W&B leaves where it ran, cannot."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
