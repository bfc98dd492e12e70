"""What a command is to read, looked at before a model is loaded to read it."""

from __future__ import annotations

from collections.abc import Sequence

from rlax_llm.commands.settings import Settings, flat

_TABLES = ("data", "eval_data")
_STORED = ".parquet"  # how a teacher ends that is a file of what one said


def check_inputs(settings: Settings) -> None:
    """Raise where a table that the settings name is not there, or a task is unknown.

    Args:
        settings: of a command; those that read neither pass.

    Raises:
        DataError: naming the setting, and what is there and has a similar name.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> check_inputs(SftSettings.of(data=("answer.jsonl",)))
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: data is answer.jsonl, and there is no such file.
    """
    given = flat(settings)
    tables = [(path, name) for name in _TABLES for path in _several(given.get(name))]
    tables += [(path, "teacher") for path in _several(given.get("teacher")) if path.endswith(_STORED)]
    tasks = _several(given.get("task"))
    if not (tables or tasks):
        return
    # Here, as other commands need none of it.
    from rlax_llm.data.tables import check_there
    from rlax_llm.data.tasks import check_known

    for path, name in tables:
        check_there(path, name)
    for task in tasks:
        check_known(task)


def _several(given: str | Sequence[str] | None) -> Sequence[str]:
    """One text or several as several; none of None."""
    return (given,) if isinstance(given, str) else given or ()
