"""Print `docs/algorithms.md` from the objects themselves.

python docs/print_algorithms.py > docs/algorithms.md
"""

import inspect
import re

from rlax_llm.policy.coupled import Coupled
from rlax_llm.policy.objectives import Objective
from rlax_llm.preference.pairs import Preference
from rlax_llm.recipes import control as control_recipes
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import openrlhf, trl, verl
from rlax_llm.recipes import preference as preference_recipes

# What an algorithm cannot be made without, for the table.
NEEDED = {"reward_weights": (1.0,), "max_new_tokens": 1024, "kl_coef": 0.001, "ceiling": 5.0}
PEERS = {"TRL": trl, "verl": verl, "OpenRLHF": openrlhf}

HEADER = """# Algorithms

Printed from the objects by `docs/print_algorithms.py`; a test compares. A policy objective is a point in a product of
five functions; a preference loss is *rewards × link*. A function stands with what its factory was called with.
"""


def describe(choice):
    """A function's name, with what its factory was called with."""
    choice = inspect.unwrap(choice) if callable(choice) else choice  # vmap is the layout, no choice
    if isinstance(choice, Coupled):
        return describe(choice.loss)
    if isinstance(choice, tuple):
        return ", ".join(describe(part) for part in choice)
    if not callable(choice):
        return "none" if choice is None else f"{choice:g}" if isinstance(choice, float) else str(choice)
    if hasattr(choice, "func"):
        name, values = describe(choice.func), choice.keywords
    else:
        name, values = choice.__qualname__.split(".")[0], inspect.getclosurevars(choice).nonlocals
    wrapped = [values[inner] for inner in ("kept", "loss") if inner in values]
    if name.startswith("_") and wrapped:  # what is wrapped says more
        return describe(wrapped[0])
    # A function says what it is by its name, a number by its argument's.
    named = {key: not (callable(value) or isinstance(value, tuple)) for key, value in values.items()}
    texts = [f"{key}=" * named[key] + describe(value) for key, value in values.items()]
    name = name.lstrip("_")
    return f"{name}({', '.join(texts)})" if values else name


def made(function):
    """The algorithm with its defaults, and a stand-in for what has none."""
    parameters = inspect.signature(function).parameters.values()
    return function(**{p.name: NEEDED[p.name] for p in parameters if p.default is p.empty})


def algorithms(module, kind):
    """Name, function and object of each algorithm that a module defines."""
    for name, function in vars(module).items():
        own = inspect.isfunction(function) and function.__module__ == module.__name__
        if own and inspect.signature(function).return_annotation == kind.__name__:
            yield name, function, made(function)


def reference(function):
    """The arXiv number that the docstring names."""
    found = re.search(r"arXiv (\d{4}\.\d{4,5})", function.__doc__)
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def row(*cells):
    """One line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def head(*cells):
    """A table's head."""
    return [row(*cells), row(*("---" for _ in cells))]


def policies(module=recipes):
    """The policy objectives of the papers."""
    yield from head("recipe", "reference", *(field.replace("_", " ") for field in Objective._fields))
    for name, function, objective in algorithms(module, Objective):
        yield row(f"`{name}`", reference(function), *(f"`{describe(choice)}`" for choice in objective))


def peers():
    """Where each peer's algorithm differs from the paper's."""
    yield from head("peer", "preset", "differs from the recipe in", "what it is there")
    for peer, module, home, kind in [
        (peer, module, home, kind)
        for peer, module in PEERS.items()
        for home, kind in ((recipes, Objective), (preference_recipes, Preference))
    ]:
        own = {name: choice for name, _, choice in algorithms(home, kind)}
        for name, function, choice in algorithms(module, kind):
            pairs = zip(kind._fields, choice, own.get(name, own.get("grpo")), strict=True)
            differs = [(field, describe(here)) for field, here, there in pairs if describe(here) != describe(there)]
            text = "<br>".join(f"{field.replace('_', ' ')}: `{choice}`" for field, choice in differs) or "nothing"
            what = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
            yield row(peer, f"`{name}`", text, what)


def preferences():
    """The preference losses."""
    yield from head("recipe", "reference", "rewards", "link", "likelihood")
    for name, function, preference in algorithms(preference_recipes, Preference):
        yield row(f"`{name}`", reference(function), *(f"`{describe(choice)}`" for choice in preference))


def page():
    """The whole page."""
    sections = {
        "Policy objectives": policies,
        "The peers' variants": peers,
        "Control objectives": lambda: policies(control_recipes),
        "Preference losses": preferences,
    }
    lines = [HEADER]
    for title, section in sections.items():
        lines += [f"## {title}", "", *section(), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
