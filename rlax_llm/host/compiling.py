"""Compiling for a run that starts now: on a CPU the optimizing compiler's effort costs more than it brings."""

from __future__ import annotations

from typing import Any

from rlax_llm.core.platform import platform

CPU_EFFORT = 1


def compile_with_effort(lowered: Any, effort: int = CPU_EFFORT) -> Any:
    """``lowered.compile()``, on a CPU at a level of effort from 0 to 3 (the compiler's own choice is 3).

    Level 1 compiles control programs in about two thirds of the time and runs them within a tenth as fast;
    level 0 runs them three times slower. An accelerator's programs are compiled as always.

    Args:
        lowered: what ``jax.jit(f).lower(…)`` gives.
        effort: the level.

    >>> import jax
    >>> compile_with_effort(jax.jit(lambda x: x + 1).lower(1))(2).tolist()
    3
    """
    if platform() != "cpu":
        return lowered.compile()
    return lowered.compile(compiler_options={"xla_backend_optimization_level": effort})
