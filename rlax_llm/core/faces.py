"""The names that a package shows: each is imported when first used, and a wrong one raises, naming the nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from sys import modules
from typing import Any


def lazy_face(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that shows names of its modules, and the modules themselves.

    Args:
        package: its full name, ``__name__`` in its ``__init__.py``.
        homes: the names to show, by the module or package in it that has them.

    Returns:
        The two functions, to be given these names in the package.

    >>> show, names = lazy_face("rlax_llm.credit", {"returns": ("gae",)})
    >>> show("gae").__module__, show("streams").__name__, "groups" in names()
    ('rlax_llm.credit.returns', 'rlax_llm.credit.streams', True)
    >>> show("gea")
    Traceback (most recent call last):
    AttributeError: module 'rlax_llm.credit' has no attribute 'gea'; did you mean 'gae'?
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def show(name: str) -> Any:
        if name in home_of:
            value = getattr(import_module(f"{package}.{home_of[name]}"), name)
            setattr(modules[package], name, value)
            return value
        if not name.startswith("_") and find_spec(f"{package}.{name}"):
            return import_module(f"{package}.{name}")
        raise AttributeError(_no_such(package, name, shown()))

    def shown() -> list[str]:
        here = modules[package]
        inside = (module.name for module in iter_modules(here.__path__) if not module.name.startswith("_"))
        return sorted({*home_of, *inside, "__doc__", "__name__", "__path__"})

    return show, shown


def _no_such(package: str, name: str, known: Sequence[str]) -> str:
    from rlax_llm.core.names import did_you_mean  # here, since no import of the package needs it

    deeper = [f"{inner}.{name}" for inner in _packages_in(package) if name in dir(import_module(inner))]
    hint = f"; it is {' or '.join(deeper)}." if deeper else did_you_mean(name, known)
    return f"module {package!r} has no attribute {name!r}{hint}"


def _packages_in(package: str) -> list[str]:
    return [f"{package}.{module.name}" for module in iter_modules(modules[package].__path__) if module.ispkg]
