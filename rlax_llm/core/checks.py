"""Trace-time errors: one sentence that says what, got, wanted and what to do.

Shapes are static under ``jit``, so every check here costs nothing in a compiled program.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


class NoReference(ValueError):
    """A KL is wanted and there is no reference; a loop that has another name for it says so in its place."""


def same_shape(where: str, **arrays: Any) -> None:
    """Raise unless all given arrays have one shape.

    ``None`` stands for an optional array that was not given and is passed over.

    Raises:
        ValueError: naming ``where``, the two arguments and their shapes.

    >>> import numpy as np
    >>> same_shape("f", log_probs=np.zeros((2, 3)), mask=np.zeros((2, 4)))
    Traceback (most recent call last):
    ValueError: f: mask has shape (2, 4), log_probs has (2, 3); give arrays of one shape.
    """
    given = {name: shape(where, name, array) for name, array in arrays.items() if array is not None}
    first = next(iter(given), None)
    for name, own in given.items():
        if first is not None and own != given[first]:
            raise ValueError(
                f"{where}: {name} has shape {own}, {first} has {given[first]}; give arrays of one shape"
                f"{_one_more(name, own, given[first])}."
            )


def shape(where: str, name: str, array: Any) -> tuple[int, ...]:
    """The shape of an array or a number.

    Raises:
        ValueError: a list or a tuple, naming the argument.

    >>> shape("group_loop", "scores", [1.0, 0.0])
    Traceback (most recent call last):
    ValueError: group_loop: scores is a list, wanted an array; give jnp.array(scores).
    """
    if isinstance(array, (list, tuple)):
        raise ValueError(f"{where}: {name} is a {type(array).__name__}, wanted an array; give jnp.array({name}).")
    return jnp.shape(array)


def returned_shape(where: str, function: str, value: Any, wanted: tuple[int, ...], each: str) -> None:
    """Raise unless what a given function returned has one number for each of something: no broadcast, no mean.

    Args:
        where: that calls it.
        function: its name there.
        value: that it returned.
        wanted: the shape.
        each: what there is a number for.

    Raises:
        ValueError: naming the function, and both shapes.

    >>> import numpy as np
    >>> returned_shape("pair_loss", "link", np.zeros(()), (3,), "pair")
    Traceback (most recent call last):
    ValueError: pair_loss: link returned shape (), wanted (3,), a number for each pair; sums and means are taken later.
    """
    if jnp.shape(value) != wanted:
        raise ValueError(
            f"{where}: {function} returned shape {jnp.shape(value)}, wanted {wanted}, a number for each {each}; "
            "sums and means are taken later."
        )


def _one_more(name: str, own: tuple[int, ...], steps: tuple[int, ...]) -> str:
    """What to do with the values of T + 1 states."""
    if name not in ("values", "next_values") or own[:1] != tuple(n + 1 for n in steps[:1]) or own[1:] != steps[1:]:
        return ""
    return ": of the values v of T + 1 states, values=v[:-1] and next_values=v[1:]"


def record(where: str, name: str, value: Any, kind: type) -> None:
    """Raise unless a value is the record that is wanted.

    Raises:
        ValueError: naming the argument, what it is, and the record's fields.

    >>> from rlax_llm.core.types import Groups
    >>> record("group_loop", "batch", [1.0], Groups)
    Traceback (most recent call last):
    ValueError: group_loop: batch is a list, wanted a Groups; give Groups(completions, scores).
    """
    if isinstance(value, kind):
        return
    defaults = getattr(kind, "_field_defaults", {})
    fields = ", ".join(field for field in getattr(kind, "_fields", ()) if field not in defaults)
    raise ValueError(
        f"{where}: {name} is a {type(value).__name__}, wanted a {kind.__name__}; give {kind.__name__}({fields})."
    )


def rank(where: str, name: str, array: Any, wanted: int, layout: str) -> None:
    """Raise unless ``array`` has ``wanted`` axes, laid out as ``layout`` says.

    Raises:
        ValueError: naming the argument, its shape and the layout.

    >>> import numpy as np
    >>> rank("z_score", "scores", np.zeros((2, 3)), 1, "[G]")
    Traceback (most recent call last):
    ValueError: z_score: scores has shape (2, 3), wanted [G]; vmap over the other axes.
    """
    if len(shape(where, name, array)) != wanted:
        raise ValueError(f"{where}: {name} has shape {jnp.shape(array)}, wanted {layout}; vmap over the other axes.")


def positive(where: str, **scalars: Any) -> None:
    """Raise unless every concrete scalar is greater than zero (traced values are passed over).

    Raises:
        ValueError: naming the argument and its value.

    >>> positive("clip", eps=-0.2)
    Traceback (most recent call last):
    ValueError: clip: eps is -0.2, wanted a number greater than 0.
    """
    for name, value in scalars.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{where}: {name} is {value}, wanted a number greater than 0.")


def not_negative(where: str, **scalars: Any) -> None:
    """Raise unless every concrete scalar is at least zero (traced values are passed over).

    Raises:
        ValueError: naming the argument and its value.

    >>> not_negative("add_damping", damping=-0.1)
    Traceback (most recent call last):
    ValueError: add_damping: damping is -0.1, wanted a number of at least 0.
    """
    for name, value in scalars.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{where}: {name} is {value}, wanted a number of at least 0.")


def at_least_one(where: str, **counts: Any) -> None:
    """Raise unless every concrete count is at least one (traced values are passed over).

    Raises:
        ValueError: naming the argument and its value.

    >>> at_least_one("conjugate_gradient", iterations=0)
    Traceback (most recent call last):
    ValueError: conjugate_gradient: iterations is 0, wanted a whole number of at least 1.
    """
    for name, value in counts.items():
        if isinstance(value, (int, float)) and not (value >= 1 and value % 1 == 0):
            raise ValueError(f"{where}: {name} is {value}, wanted a whole number of at least 1.")


def same_tree(where: str, **trees: Any) -> None:
    """Raise unless all given pytrees have one structure and their leaves one shape each.

    Raises:
        ValueError: naming ``where``, the two arguments and what they are.

    >>> same_tree("search", step={"w": 0.0}, params={"w": 0.0, "b": 0.0})
    Traceback (most recent call last):
    ValueError: search: params is PyTreeDef({'b': *, 'w': *}), step is PyTreeDef({'w': *}); give pytrees of one ...
    """
    (first, model), *others = trees.items()
    wanted = jax.tree.structure(model)
    for name, tree in others:
        if jax.tree.structure(tree) != wanted:
            raise ValueError(
                f"{where}: {name} is {jax.tree.structure(tree)}, {first} is {wanted}; give pytrees of one structure."
            )
        for leaf, model_leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(model), strict=True):
            same_shape(where, **{first: model_leaf, name: leaf})
