"""Rows of an embedding or a head that are trained by themselves (PEFT's ``trainable_token_indices``)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core.heads import Head, Patched
from rlax_llm.core.mesh import spread
from rlax_llm.models.config import ROWS_OF, DecoderConfig
from rlax_llm.models.functional import Params


def with_rows(config: DecoderConfig, params: Params) -> Params:
    """Parameters whose tables hold the trained rows, which leave the tree.

    Limiting case: without such rows the parameters as they are.

    Args:
        config: shapes, with the tokens of the rows in its ``lora``.
        params: ``embed_rows [n, D]`` and ``head_rows [m, D]`` beside the tables that they are of.

    >>> from rlax_llm.models.config import Lora
    >>> config = DecoderConfig(3, 2, 8, 1, 1, 1, 2, lora=Lora(1, 1.0, tokens=(2, 0)))
    >>> found = with_rows(config, {"embed": jnp.zeros((3, 2)), "embed_rows": jnp.array([[1.0, 1.0], [2.0, 2.0]])})
    >>> found["embed"].tolist(), list(found)
    ([[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]], ['embed'])
    """
    tables = {leaf: tokens for leaf, tokens in row_tokens(config).items() if f"{leaf}_rows" in params}
    if not tables:
        return params
    found = dict(params)
    for leaf, tokens in tables.items():
        rows = found.pop(f"{leaf}_rows")
        wide = jnp.promote_types(found[leaf].dtype, rows.dtype)  # a narrow table would round small steps away
        found[leaf] = found[leaf].astype(wide).at[jnp.array(tokens)].set(rows.astype(wide))
    return found


def head(config: DecoderConfig, params: Params) -> Head:
    """The output embedding ``[V, D]``, the head's own or the tied input embedding, and the rows that are trained of it.

    Limiting case: that of ``with_rows``, which puts them into a copy.

    Args:
        config: shapes, with the tokens of the rows in its ``lora``.
        params: the tables, and ``embed_rows`` or ``head_rows`` beside them where there are any.

    >>> head(DecoderConfig(3, 2, 8, 1, 1, 1, 2), {"embed": jnp.zeros((3, 2))}).shape
    (3, 2)
    """
    leaf = "head" if "head" in params else "embed"
    rows, tokens = params.get(f"{leaf}_rows"), row_tokens(config).get(leaf)
    if rows is None or tokens is None:
        return params[leaf]
    return Patched(params[leaf], spread(rows), jnp.array(tokens))


def row_tokens(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The tokens of the trained rows of each table that has any.

    >>> row_tokens(DecoderConfig(3, 2, 8, 1, 1, 1, 2))
    {}
    """
    lora = config.lora
    named = {} if lora is None else {leaf: getattr(lora, field) for leaf, field in ROWS_OF.items()}
    return {leaf: tokens for leaf, tokens in named.items() if tokens}


def read_rows(config: DecoderConfig, params: Params, tokens: jax.Array, taken: jax.Array) -> jax.Array:
    """Rows of the embedding that were taken for tokens, those that are trained in the place of the table's.

    They keep their own dtype, so that a row's slope is summed over its tokens in it.

    Args:
        config: shapes, with the tokens of the rows in its ``lora``.
        params: with ``embed_rows``, or without.
        tokens: ``[…]`` int32.
        taken: ``[…, D]``, of the table.
    """
    rows = params.get("embed_rows")
    if rows is None or config.lora is None:
        return taken
    same = tokens[..., None] == jnp.array(config.lora.tokens)
    # Whole on each device, as the table beside them is: a split along D would be that of all tokens.
    own = spread(rows)[jnp.argmax(same, -1)]
    return jnp.where(same.any(-1)[..., None], own, taken)
