"""What kind of device a program is made for: that of this machine, or the one that ``targeting`` names."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

from rlax_llm.core.names import did_you_mean

PLATFORMS = ("cpu", "gpu", "tpu")

# A context of JAX's own: it is part of the key of every compilation, so that no program of one platform serves another.
_target = jax.make_user_context(None)


def platform() -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``: what a program that is traced now will run on.

    Limiting case: outside ``targeting`` the default backend of this machine.
    """
    return _target.value or jax.default_backend()


def targeting(name: str) -> AbstractContextManager[None]:
    """A context in which programs are traced for devices that need not be here, so that their compiler can be asked.

    Args:
        name: cpu, gpu or tpu.

    Raises:
        ValueError: for another name.

    >>> with targeting("tpu"):
    ...     platform()
    'tpu'
    """
    if name not in PLATFORMS:
        raise ValueError(
            f"targeting: platform {name!r} is unknown{did_you_mean(name, PLATFORMS)} There are cpu, gpu and tpu."
        )
    return _target(name)
