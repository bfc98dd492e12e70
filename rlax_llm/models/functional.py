"""The edge between Flax and the rest: a module factory becomes ``init(key) → params`` and ``apply(params, …)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rlax_llm.core.types import Params


def pure_functions(factory: Callable[[nnx.Rngs], Any]) -> tuple[Callable[[jax.Array], Params], Callable[..., Any]]:
    """Turn a factory of NNX modules into two pure functions over a nested dict of arrays.

    Args:
        factory: ``nnx.Rngs → module``; the module is called with the arguments of ``apply``.

    Returns:
        ``init(key) → params``, a pure nested dict, and ``apply(params, *args)``. Both trace under ``jit``, ``vmap`` and
        ``grad``; no NNX state leaves them.

    >>> init, apply = pure_functions(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> params = init(jax.random.key(0))
    >>> sorted(params), apply(params, jax.numpy.ones((1, 2))).shape
    (['bias', 'kernel'], (1, 3))
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: factory(nnx.Rngs(0))))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(factory(nnx.Rngs(key)))[1])

    def apply(params: Params, *args: Any) -> Any:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(*args)

    return init, apply
