"""Environments by name, as the command line takes them."""

from __future__ import annotations

import sys
from typing import Any

from rlax_llm.core.names import check_parameters, did_you_mean
from rlax_llm.envs.brax_env import BRAX_NAMES, brax
from rlax_llm.envs.environment import Environment
from rlax_llm.envs.gymnax_envs import GYMNAX_IDS, gymnax
from rlax_llm.envs.probes import PROBES
from rlax_llm.envs.rock_paper_scissors import rock_paper_scissors


def names() -> list[str]:
    """All names that ``make`` knows without importing Gymnax or Brax.

    >>> "CartPole-v1" in names(), "brax:ant" in names(), "probe:time_limit" in names()
    (True, True, True)
    """
    return [*GYMNAX_IDS, "RockPaperScissors", *(f"brax:{x}" for x in BRAX_NAMES), *(f"probe:{x}" for x in PROBES)]


def make(name: str, **parameters: Any) -> Environment:
    """The environment of that name.

    Args:
        name: an id of Gymnax, one of those registered with it included; ``brax:ant`` and so on;
            ``RockPaperScissors``; ``probe:time_limit`` and so on.
        parameters: of its factory (``gymnax``, ``brax``, ``rock_paper_scissors``, the probe's).

    Returns:
        The environment.

    Raises:
        ImportError: where the package it comes from is missing.
        ValueError: for an unknown name or parameter.

    >>> make("RockPaperScissors", horizon_steps=10).actions
    Discrete(n=3)
    """
    family, _, rest = name.partition(":")
    if family == "brax" and rest:
        return brax(rest, **parameters)
    if family == "probe" and rest in PROBES:
        check_parameters(name, PROBES[rest], parameters)
        return PROBES[rest](**parameters).environment
    if name == "RockPaperScissors":
        check_parameters(name, rock_paper_scissors, parameters)
        return rock_paper_scissors(**parameters)
    if name in GYMNAX_IDS or _registered_with_gymnax(name):
        return gymnax(name, **parameters)
    raise ValueError(f"make: there is no environment {name!r}{did_you_mean(name, names())} names() lists them.")


def _registered_with_gymnax(name: str) -> bool:
    # Whoever registered an environment has imported Gymnax, so a misspelled name need not wait for that.
    library = sys.modules.get("gymnax")
    return library is not None and name in library.registered_envs
