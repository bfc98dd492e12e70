"""The directories of several runs, as a shell's ``runs/*`` gives them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlax_llm.host.run_directory import RunDirectory


def runs_among(paths: Sequence[str]) -> list[RunDirectory]:
    """The runs of several directories; those that hold none are named on standard error and passed over.

    Args:
        paths: of directories.

    Raises:
        FileNotFoundError: none of them holds a run.
    """
    found, others = [], []
    for path in paths:
        try:
            found.append(RunDirectory.reopen(path))
        except FileNotFoundError as error:
            others.append(error)
    if not found:
        raise others[0]
    for error in others:
        print(f"Passed over: {error}", file=sys.stderr)
    return found
