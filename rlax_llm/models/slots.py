"""Which tensors a model's files have, and where in them the leaves of a decoder's parameters lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlax_llm.core.mesh import fetch, within_reach
from rlax_llm.models.family import Family

Bounds = tuple[slice, ...]
"""Of each dimension the first and the last, and every how many."""
_EXPERT = "{expert}"


def of_experts(leaf: str) -> bool:
    """Whether a leaf of a layer has a part for each expert.

    >>> of_experts("expert_up"), of_experts("router")
    (True, False)
    """
    return leaf.startswith("expert_")


class Rows(NamedTuple):
    """Leaves that lie one behind the other in the rows of a tensor.

    Attributes:
        sizes: rows of each.
        transposed: kernels are ``[out, in]`` in the file, and ``[in, out]`` here.
    """

    sizes: tuple[int, ...]
    transposed: bool = False

    def inside(self, index: int, part: Bounds) -> Bounds:
        """Where a part of a leaf is."""
        begin = sum(self.sizes[:index])
        rows, *rest = part[::-1] if self.transposed else part
        return (slice(rows.start + begin, rows.stop + begin), *rest)

    def turned(self, values: np.ndarray) -> np.ndarray:
        """What was read there, as it lies here."""
        return values.T if self.transposed else values

    def taken(self, index: int, values: np.ndarray) -> np.ndarray:
        """A leaf of the whole tensor, as it lies here."""
        return self.turned(values[sum(self.sizes[:index]) :][: self.sizes[index]])

    def joined(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of all leaves."""
        return np.concatenate([np.ascontiguousarray(self.turned(each)) for each in values])


class Turns(NamedTuple):
    """Leaves that take turns in the last dimension of a tensor, of all experts (gpt-oss); they lie as here.

    Attributes:
        among: how many leaves there are.
    """

    among: int

    def inside(self, index: int, part: Bounds) -> Bounds:
        """Where a part of a leaf is."""
        last = part[-1]
        begin, end = last.start * self.among + index, (last.stop - 1) * self.among + index + 1
        return (*part[:-1], slice(begin, end, self.among))

    def turned(self, values: np.ndarray) -> np.ndarray:
        """What was read there."""
        return values

    def taken(self, index: int, values: np.ndarray) -> np.ndarray:
        """A leaf of the whole tensor."""
        return values[..., index :: self.among]

    def joined(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor of all leaves."""
        return np.stack(values, -1).reshape(*values[0].shape[:-1], -1)


class Slot(NamedTuple):
    """A tensor of the file.

    Attributes:
        leaves: that it holds.
        layer: None outside the layers.
        shape: in the file.
        laid: where the leaves lie in it.
        expert: the one that it is of; None where it is of none, or of all.
    """

    leaves: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    laid: Rows | Turns
    expert: int | None = None

    def inside(self, leaf: str, part: Bounds, expert: int) -> Bounds:
        """Where in the tensor a part of a leaf is, of an expert where it holds all of them.

        >>> Slot(("q", "k"), 0, (6, 2), Rows((4, 2), True)).inside("k", (slice(0, 2), slice(1, 2)), 0)
        (slice(5, 6, None), slice(0, 2, None))
        """
        bounds = self.laid.inside(self.leaves.index(leaf), part)
        # Experts, and the score's row, are an axis more.
        return (slice(expert, expert + 1),) * (len(self.shape) - len(part)) + bounds


def slots_of(shapes: Mapping[str, Any], family: Family) -> dict[str, Slot]:
    """Every tensor of a model by its name, in the order of the file.

    Args:
        shapes: of the decoder's parameters.
        family: whose names they have.

    >>> shapes = {"norm": (4,), "layers": {"q": (1, 4, 6)}}
    >>> found = slots_of(shapes, Family("Llama", ()))
    >>> found["model.layers.0.self_attn.q_proj.weight"].shape
    (6, 4)
    """
    # The score is a linear map to one label: a row in the file, a vector here.
    whole = {leaf: (1, *shape) if leaf == "score" else shape for leaf, shape in shapes.items() if leaf != "layers"}
    slots = {family.tensor(leaf, None): Slot((leaf,), None, shape, Rows(shape[:1])) for leaf, shape in whole.items()}
    layers = shapes["layers"]
    for layer in range(layers["q"][0]):
        for leaf in layers:
            slots |= _of_leaf(layers, family, leaf, layer)
    return slots


def _of_leaf(layers: Mapping[str, tuple[int, ...]], family: Family, leaf: str, layer: int) -> dict[str, Slot]:
    """The tensor of a leaf, or of each expert in it."""
    name, leaves = family.tensor(leaf, layer), family.leaves_with(leaf)
    shapes = [layers[each][1:] for each in leaves]
    if not of_experts(leaf):
        return {name: _in_rows(shapes, leaves, layer)}
    if _EXPERT not in name:
        *front, last = shapes[0]
        return {name: Slot(leaves, layer, (*front, last * len(leaves)), Turns(len(leaves)))}
    one = _in_rows([shape[1:] for shape in shapes], leaves, layer)
    return {name.format(expert=expert): one._replace(expert=expert) for expert in range(shapes[0][0])}


def _in_rows(shapes: Sequence[tuple[int, ...]], leaves: tuple[str, ...], layer: int) -> Slot:
    kernel = len(shapes[0]) == 2  # [in, out] here, [out, in] in torch
    rows = tuple(shape[-1] for shape in shapes)
    return Slot(leaves, layer, (sum(rows), shapes[0][0]) if kernel else (sum(rows),), Rows(rows, kernel))


def tensor_of(params: Mapping[str, Any], slot: Slot) -> np.ndarray:
    """What a file holds of parameters in one tensor.

    Args:
        params: of which all that are in the slot are there.
        slot: the tensor.

    >>> slot = Slot(("q", "k"), 0, (3, 2), Rows((1, 2), True))
    >>> tensor_of({"layers": {"q": np.ones((1, 2, 1)), "k": np.zeros((1, 2, 2))}}, slot).tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    if slot.layer is None:
        return np.ascontiguousarray(fetch(params[slot.leaves[0]])).reshape(slot.shape)
    where = slot.layer if slot.expert is None else (slot.layer, slot.expert)
    return slot.laid.joined([fetch(within_reach(params["layers"][leaf])[where]) for leaf in slot.leaves])
