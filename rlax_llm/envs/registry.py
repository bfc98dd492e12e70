"""Environments by name, as the command line takes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from rlax_llm.core.names import check_parameters, did_you_mean
from rlax_llm.core.user_code import call_named, is_own
from rlax_llm.envs.brax_env import brax
from rlax_llm.envs.environment import Environment
from rlax_llm.envs.gymnax_envs import gymnax
from rlax_llm.envs.ids import BRAX_NAMES, GYMNAX_IDS
from rlax_llm.envs.probes import PROBES
from rlax_llm.envs.rock_paper_scissors import rock_paper_scissors

ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"RockPaperScissors": rock_paper_scissors}
"""This library's environments by name."""


def names() -> list[str]:
    """All names that ``make`` knows without importing Gymnax or Brax.

    >>> "CartPole-v1" in names(), "brax:ant" in names(), "probe:time_limit" in names()
    (True, True, True)
    """
    return [*GYMNAX_IDS, *ENVIRONMENTS, *(f"brax:{x}" for x in BRAX_NAMES), *(f"probe:{x}" for x in PROBES)]


def make(name: str, **parameters: Any) -> Environment:
    """The environment of that name.

    Args:
        name: an id of Gymnax, one of those registered with it included; ``brax:ant`` and so on;
            ``RockPaperScissors``; ``probe:time_limit`` and so on; or one of your own as ``MODULE:FUNCTION`` or
            ``FILE.py:FUNCTION``, which returns an ``Environment``.
        parameters: of its factory (``gymnax``, ``brax``, ``rock_paper_scissors``, the probe's).

    Returns:
        The environment.

    Raises:
        ImportError: where the package it comes from is missing.
        ValueError: for an unknown name or parameter; as ``call_named`` for one of your own.

    >>> make("RockPaperScissors", horizon_steps=10).actions
    Discrete(n=3)
    """
    family, _, rest = name.partition(":")
    if family == "brax" and rest:
        return brax(rest, **parameters)
    if family == "probe" and rest in PROBES:
        check_parameters(name, PROBES[rest], parameters)
        return PROBES[rest](**parameters).environment
    if name in ENVIRONMENTS:
        check_parameters(name, ENVIRONMENTS[name], parameters)
        return ENVIRONMENTS[name](**parameters)
    if name in GYMNAX_IDS or _registered_with_gymnax(name):
        return gymnax(name, **parameters)
    if is_own(name) and family not in ("brax", "probe"):
        return call_named("environment", name, {"an Environment": Environment}, **parameters)
    raise ValueError(f"make: there is no environment {name!r}{did_you_mean(name, names())} names() lists them.")


def _registered_with_gymnax(name: str) -> bool:
    # Whoever registered an environment has imported Gymnax, so a misspelled name need not wait for that.
    library = sys.modules.get("gymnax")
    return library is not None and name in library.registered_envs
