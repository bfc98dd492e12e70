"""Functions of a user's own by name: ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rlax_llm.core.names import did_you_mean

_SHOWN = 300


def is_own(spec: str) -> bool:
    """Whether a text is written as ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``; nothing is looked up.

    >>> is_own("losses.py:mine"), is_own("package.losses:mine"), is_own("dpo"), is_own("dpo:0.8")
    (True, True, False, False)
    """
    place, _, name = spec.rpartition(":")
    return bool(place) and name.isidentifier()


def whole_path(spec: str) -> str:
    """``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` so that it is found from any directory: a file here by its path.

    What is no file of the working directory stays as it is, a module in a package too.

    >>> whole_path("no_such_file.py:score")
    'no_such_file.py:score'
    """
    place, _, name = spec.strip().rpartition(":")
    # A module is looked up in the working directory first.
    path = Path(place if place.endswith(".py") else f"{place}.py")
    return f"{path.resolve()}:{name}" if place and path.is_file() else spec


def named_function(what: str, spec: str, failure: type[ValueError] = ValueError) -> Callable[..., Any]:
    """The function that ``spec`` names; its module, or file, is imported and so runs.

    Modules of Python's own library are not imported: nothing in them is what is wanted (``os:system``).

    Args:
        what: what the function is to be, which the messages begin with.
        spec: ``MODULE:FUNCTION``, looked up in the working directory first, or ``FILE.py:FUNCTION``.
        failure: the class of what is raised.

    Raises:
        ValueError: no such module, file or function (with the closest name there is), a module that fails or leaves
            while it is imported (chained), a name that is not a function.

    >>> named_function("optimizer", "optax:sgdd")
    Traceback (most recent call last):
    ValueError: optimizer 'optax:sgdd': optax has no function 'sgdd'; did you mean 'sgd'?
    >>> named_function("optimizer", "os:system")
    Traceback (most recent call last):
    ValueError: optimizer 'os:system': os is a module of Python itself, wanted one of yours.
    """
    place, _, name = spec.rpartition(":")
    if not (place and name):
        raise failure(f"{what} {spec!r}: wanted MODULE:FUNCTION or FILE.py:FUNCTION.")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _by_name(place)
    except _NotThere as error:
        raise failure(f"{what} {spec!r}: {error}") from error.__cause__
    if not hasattr(module, name):
        functions = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise failure(f"{what} {spec!r}: {place} has no function {name!r}{did_you_mean(name, functions)}")
    function = getattr(module, name)
    if not callable(function):
        raise failure(f"{what} {spec!r}: {name} is of type {type(function).__name__}, wanted a function.")
    return function


def call_named(
    what: str,
    spec: str,
    wanted: Mapping[str, Any],
    *arguments: Any,
    failure: type[ValueError] = ValueError,
    **named: Any,
) -> Any:
    """What the function that ``spec`` names returns.

    Args:
        what: what the function is to be, which the messages begin with.
        spec: as ``named_function`` takes it.
        wanted: the classes that it may return, by what the message calls one.
        arguments: that it is called with.
        failure: the class of what is raised.
        named: arguments by name.

    Raises:
        ValueError: as ``named_function``; where the function raises (chained), or returns something else.

    >>> call_named("optimizer", "optax:sgd", {"a number": float}, 0.1)
    Traceback (most recent call last):
    ValueError: optimizer 'optax:sgd' returned a value of type GradientTransformationExtraArgs, wanted a number.
    """
    return call_checked(
        f"{what} {spec!r}", named_function(what, spec, failure), wanted, *arguments, failure=failure, **named
    )


def call_checked(
    where: str,
    function: Callable[..., Any],
    wanted: Mapping[str, Any],
    /,
    *arguments: Any,
    failure: type[ValueError] = ValueError,
    **named: Any,
) -> Any:
    """What a function of somebody else's returns, once it is of a class that is wanted.

    Args:
        where: what the messages begin with.
        function: that is called.
        wanted: the classes that it may return, by what the message calls one.
        arguments: that it is called with.
        failure: the class of what is raised.
        named: arguments by name.

    Raises:
        ValueError: the function raises (chained), or returns something else.

    >>> call_checked("half", lambda x: x / 2, {"a number": float}, 3)
    1.5
    """
    try:
        made = function(*arguments, **named)
    except (Exception, SystemExit) as error:
        raise failure(f"{where} raised {told(error)}.") from error
    if not isinstance(made, tuple(wanted.values())):
        raise failure(f"{where} returned a value of type {type(made).__name__}, wanted {' or '.join(wanted)}.")
    return made


class _NotThere(Exception):
    """Why there is no module, as the end of a sentence."""


def told(error: BaseException) -> str:
    """The class of an exception of somebody else's code and what it says, in one line that is not long.

    >>> told(KeyError("a")), told(SystemExit(3)), told(StopIteration()), len(told(ValueError("x" * 5000)))
    ("KeyError: 'a'", 'SystemExit: 3', 'StopIteration', 303)
    """
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    except Exception:
        return f"{type(error).__name__}, which cannot be printed"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _by_name(name: str) -> ModuleType:
    if not all(name.split(".")):
        raise _NotThere(f"{name!r} is no module's name; write it as package.module, or as a file.py.")
    top = name.partition(".")[0]
    mine = Path.cwd() / top
    if top in sys.stdlib_module_names and not (mine.is_dir() or mine.with_suffix(".py").is_file()):
        raise _NotThere(f"{top} is a module of Python itself, wanted one of yours.")
    try:
        with _searched_first(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(name, error) from error
        hint = did_you_mean(name, [path.stem for path in Path.cwd().glob("*.py")])
        raise _NotThere(f"there is no module {name!r} here or installed{hint}") from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        hint = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        raise _NotThere(f"there is no file {path}{hint}")
    found = importlib.util.spec_from_file_location(f"{path.stem}@{path.resolve()}".replace(".", "_"), path)
    if found is None or found.loader is None:
        raise _NotThere(f"{path} cannot be imported.")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        with _searched_first(path.resolve().parent):
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[found.name]
        raise _failed(str(path), error) from error
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


def _failed(place: str, error: BaseException) -> _NotThere:
    return _NotThere(f"importing {place} raised {told(error)}.")
