"""Finding a reward function by name: a built-in one, ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from rlax_llm.rewards.calling import Reward, RewardError
from rlax_llm.rewards.functions import exact_answer, integer_answer

BUILT_IN = {"exact_answer": exact_answer, "integer_answer": integer_answer}


def load_reward(spec: str) -> Reward:
    """Reward function that ``spec`` names, with weight 1.

    Args:
        spec: ``exact_answer``, ``integer_answer``, ``MODULE:FUNCTION`` (looked up in the working directory first) or
            ``FILE.py:FUNCTION``.

    Raises:
        RewardError: no such module, file or function (with the closest name there is), a module that fails while it is
            imported (chained), or a name that is not a function.

    >>> load_reward("integer_answer").name
    'integer_answer'
    >>> load_reward("rlax_llm.rewards.functions:exact_anser")
    Traceback (most recent call last):
    rlax_llm.rewards.calling.RewardError: reward 'rlax_llm.rewards.functions:exact_anser':
    rlax_llm.rewards.functions has no function 'exact_anser'; did you mean 'exact_answer'?
    """
    place, colon, name = spec.rpartition(":")
    if not colon and spec in BUILT_IN:
        return Reward(spec, BUILT_IN[spec])
    if not (place and name):
        known = ", ".join(BUILT_IN)
        hint = closest(spec, BUILT_IN)
        raise RewardError(f"reward {spec!r}: wanted MODULE:FUNCTION, FILE.py:FUNCTION or one of {known}{hint}")
    module = _file_module(spec, Path(place)) if place.endswith(".py") else _named_module(spec, place)
    if not hasattr(module, name):
        functions = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise RewardError(f"reward {spec!r}: {place} has no function {name!r}{closest(name, functions)}")
    function = getattr(module, name)
    if not callable(function):
        kind = type(function).__name__
        raise RewardError(f"reward {spec!r}: {name} is of type {kind}, wanted a function.")
    return Reward(name, function)


def _named_module(spec: str, name: str) -> ModuleType:
    try:
        with _searched_first(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(spec, name, error) from error
        hint = closest(name, [path.stem for path in Path.cwd().glob("*.py")])
        raise RewardError(f"reward {spec!r}: there is no module {name!r} here or installed{hint}") from error
    except Exception as error:
        raise _failed(spec, name, error) from error


def _file_module(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        hint = closest(path.name, [other.name for other in path.parent.glob("*.py")])
        raise RewardError(f"reward {spec!r}: there is no file {path}{hint}")
    found = importlib.util.spec_from_file_location(f"{path.stem}@{path.resolve()}".replace(".", "_"), path)
    if found is None or found.loader is None:
        raise RewardError(f"reward {spec!r}: {path} cannot be imported.")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        with _searched_first(path.resolve().parent):
            found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[found.name]
        raise _failed(spec, str(path), error) from error
    return module


@contextlib.contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    """Have imports look in ``folder`` before anywhere else."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _failed(spec: str, place: str, error: Exception) -> RewardError:
    return RewardError(f"reward {spec!r}: importing {place} raised {type(error).__name__}: {error}.")


def closest(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: the most similar known one as a question, or a full stop.

    >>> closest("max", ["min", "maximum"]), closest("x", ["min"])
    ("; did you mean 'maximum'?", '.')
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else "."
