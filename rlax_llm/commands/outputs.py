"""Where a command is to write, looked at before anything is computed for it."""

from __future__ import annotations

from rlax_llm.commands.settings import Settings, flat, keys
from rlax_llm.host.outputs import check_directory, check_file, check_new_run

_RUNS = "runs"  # where a run goes that is given no place
_OF_A_DIRECTORY = "DIR"


def check_outputs(settings: Settings) -> None:
    """Raise where a file or a directory that the settings name could not be written.

    Args:
        settings: of a command; those that write nothing pass.

    Raises:
        OSError: naming the flag.

    >>> from rlax_llm.commands.report.settings import ReportSettings
    >>> check_outputs(ReportSettings.of(runs=("a",), out="/dev"))
    Traceback (most recent call last):
    IsADirectoryError: /dev is a directory, wanted a file; choose another --out.
    """
    given = flat(settings)
    out = given.get("out")
    if given.get("write_teacher") is not None:
        check_file(given["write_teacher"], "--write-teacher")
    elif given.get("resume") is not None:
        check_directory(given["resume"], "--resume")
    elif out is not None and keys(type(settings))["out"].field.metadata["metavar"] != _OF_A_DIRECTORY:
        check_file(out)
    elif out is not None:
        check_new_run(out)
    elif "resume" in given:
        check_directory(_RUNS)
