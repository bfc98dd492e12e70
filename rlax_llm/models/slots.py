"""Which leaves of a decoder each tensor of a model's files holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlax_llm.core.mesh import fetch
from rlax_llm.models.family import Family

OF_EXPERTS = 4
"""Dimensions of a stacked leaf that has a matrix for each expert."""


class Slot(NamedTuple):
    """Which leaves one tensor of the file holds, one behind the other in its rows, and its shape in the file.

    Attributes:
        leaves: their names.
        layer: their layer; None outside the layers.
        shape: of the tensor.
        transposed: the file has ``[out, in]``, the leaf ``[in, out]``.
        rows: of each leaf.
        expert: whose matrix it is, or None.
    """

    leaves: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool
    rows: tuple[int, ...]
    expert: int | None = None

    def begin(self, leaf: str) -> int:
        """The first row of a leaf."""
        return sum(self.rows[: self.leaves.index(leaf)])


def slots_of(shapes: Mapping[str, Any], family: Family) -> dict[str, Slot]:
    """Every tensor of the model by its name, in the order of the file.

    Args:
        shapes: of the parameters.
        family: says the names.

    >>> shapes = {"norm": (4,), "layers": {"q": (1, 4, 6)}}
    >>> found = slots_of(shapes, Family("Llama", ()))
    >>> found["model.layers.0.self_attn.q_proj.weight"].shape
    (6, 4)
    """
    shapes = dict(shapes)
    layers = shapes.pop("layers")
    # The score is a linear map to one label: a row in the file, a vector here.
    whole = {leaf: (1, *shape) if leaf == "score" else shape for leaf, shape in shapes.items()}
    slots = {family.tensor(leaf, None): Slot((leaf,), None, shape, False, shape[:1]) for leaf, shape in whole.items()}
    for layer in range(layers["q"][0]):
        for leaf in layers:
            slots |= _layer_slots(layers, family, leaf, layer)
    return slots


def _layer_slots(layers: Mapping[str, tuple[int, ...]], family: Family, leaf: str, layer: int) -> dict[str, Slot]:
    """The tensor of a leaf, or of each expert in it."""
    name, leaves = family.tensor(leaf, layer), family.leaves_with(leaf)
    if len(layers[leaf]) < OF_EXPERTS:
        return {name: _layer_slot([layers[leaf][1:] for leaf in leaves], leaves, layer)}
    count, *shape = layers[leaf][1:]
    one = _layer_slot([tuple(shape)], leaves, layer)
    return {name.format(expert=expert): one._replace(expert=expert) for expert in range(count)}


def _layer_slot(shapes: Sequence[tuple[int, ...]], leaves: tuple[str, ...], layer: int) -> Slot:
    kernel = len(shapes[0]) == 2  # [in, out] here, [out, in] in torch
    rows = tuple(shape[-1] for shape in shapes)
    return Slot(leaves, layer, (sum(rows), shapes[0][0]) if kernel else (sum(rows),), kernel, rows)


def tensor_of(params: Mapping[str, Any], slot: Slot) -> np.ndarray:
    """What a file holds of parameters in one tensor.

    Args:
        params: of which all that are in the slot are there.
        slot: the tensor.

    >>> slot = Slot(("q", "k"), 0, (3, 2), True, (1, 2))
    >>> tensor_of({"layers": {"q": np.ones((1, 2, 1)), "k": np.zeros((1, 2, 2))}}, slot).tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    if slot.layer is None:
        return np.ascontiguousarray(fetch(params[slot.leaves[0]])).reshape(slot.shape)
    where = slot.layer if slot.expert is None else (slot.layer, slot.expert)
    values = [fetch(params["layers"][leaf][where]) for leaf in slot.leaves]
    return np.concatenate([np.ascontiguousarray(value.T if slot.transposed else value) for value in values])
