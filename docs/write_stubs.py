"""Write the stub of each face, `rlax_llm/__init__.pyi` and those of the topic folders, from the objects themselves.

python docs/write_stubs.py
"""

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import rlax_llm

WARNING = "# Written by docs/write_stubs.py; a test compares."


def faces() -> list[ModuleType]:
    """The package and the folders in it that show names."""
    found = [module.name for module in pkgutil.iter_modules(rlax_llm.__path__) if module.ispkg]
    packages = [rlax_llm, *(import_module(f"rlax_llm.{name}") for name in found)]
    return [package for package in packages if hasattr(package, "__getattr__")]


def homes(face: ModuleType) -> dict[str, str]:
    """The names that a face shows, each with the module that defines it."""
    return inspect.getclosurevars(face.__getattr__).nonlocals["home_of"]


def defining(face: ModuleType, name: str) -> str:
    """The module whose own name it is: a folder's, where the package's name is that of a folder."""
    home = f"{face.__name__}.{homes(face)[name]}"
    module = import_module(home)
    return defining(module, name) if hasattr(module, "__getattr__") else home


def stub(face: ModuleType) -> str:
    """The text of a face's stub: its modules and its names, which an editor follows to their definitions."""
    modules = sorted(module.name for module in pkgutil.iter_modules(face.__path__) if module.name[0] != "_")
    lines = [f'"""{inspect.getdoc(face)}"""' if "\n" not in face.__doc__ else f'"""{face.__doc__}"""', "", WARNING, ""]
    imports = [(face.__name__, name) for name in modules]
    imports += [(defining(face, name), name) for name in homes(face)]
    lines += [f"from {home} import {name} as {name}" for home, name in sorted(imports)]
    return "\n".join(lines) + "\n"


def place(face: ModuleType) -> Path:
    """Where the stub of a face stands."""
    return Path(face.__path__[0], "__init__.pyi")


if __name__ == "__main__":
    for each in faces():
        place(each).write_text(stub(each), encoding="utf-8")
