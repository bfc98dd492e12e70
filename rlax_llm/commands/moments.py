"""An optimizer's memory in a narrower number format than it computes in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def store_moments(optimizer: optax.GradientTransformation, dtype: str) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` with what it remembers of each parameter kept in ``dtype`` between its steps.

    Each step widens the memory to float32, does what ``optimizer`` does, and rounds it again. In bfloat16 the two
    moments of Adam take 4 bytes per parameter and not 8 (both are stored so in arXiv:2412.19437, section 3.3.2).
    A second moment must not be slow: one of ``b2 = 0.999`` moves by less than bfloat16 resolves.

    Limiting case: of ``float32`` the steps are those of ``optimizer``.

    Args:
        optimizer: any whose memory is of float32; numbers (arrays without a dimension) and integers stay as they are.
        dtype: of the memory.

    >>> adam = store_moments(optax.adam(1e-3), "bfloat16")
    >>> [str(leaf.dtype) for leaf in jax.tree.leaves(adam.init({"w": jnp.zeros(3)}))]
    ['int32', 'bfloat16', 'bfloat16']
    """
    wide = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return _cast(wide.init(params), jnp.float32, dtype)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = wide.update(updates, _cast(state, dtype, jnp.float32), params, **extra)
        return updates, _cast(state, jnp.float32, dtype)

    return optax.GradientTransformationExtraArgs(init, update)


def _cast(state: Any, of: Any, to: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(to) if x.ndim and x.dtype == of else x, state)
