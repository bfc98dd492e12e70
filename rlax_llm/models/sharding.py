"""Where on a mesh each parameter lies: the one table from names to axes, read for states and references alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rlax_llm.core.mesh import AXES, TENSOR, Axis, devices_along, dividing
from rlax_llm.models.config import DecoderConfig

_COLUMNS = (None, "fsdp", TENSOR)
_ROWS = (None, TENSOR, "fsdp")

RULES: dict[str, tuple[Axis, ...]] = {
    "embed": (TENSOR, "fsdp"),
    "head": (TENSOR, "fsdp"),
    **dict.fromkeys(("q", "k", "v", "gate", "up"), _COLUMNS),
    **dict.fromkeys(("o", "down"), _ROWS),
    **dict.fromkeys(("q_bias", "k_bias", "v_bias", "gate_bias", "up_bias"), (None, TENSOR)),
    "router": (None, "fsdp", None),
    **dict.fromkeys(("expert_gate", "expert_up"), (None, TENSOR, "fsdp", None)),
    "expert_down": (None, TENSOR, None, "fsdp"),
    **dict.fromkeys(("expert_gate_bias", "expert_up_bias", "expert_down_bias"), (None, TENSOR, None)),
    "sinks": (None, TENSOR),
    **{f"{name}_lora_a": (None, "fsdp", None) for name in ("q", "k", "v", "gate", "up")},
    **{f"{name}_lora_b": (None, None, TENSOR) for name in ("q", "k", "v", "gate", "up")},
    **{f"{name}_lora_m": (None, TENSOR) for name in ("q", "k", "v", "gate", "up")},
    **{f"{name}_lora_m": (None, "fsdp") for name in ("o", "down")},
    **{f"{name}_lora_a": (None, TENSOR, None) for name in ("o", "down")},
    **{f"{name}_lora_b": (None, None, "fsdp") for name in ("o", "down")},
}
"""The axis of each dimension of a parameter, by its name; the layers are stacked on the first. Others lie whole on
every device: norms, scores, counters."""


def sampling_rules() -> dict[str, tuple[Axis, ...]]:
    """``RULES`` without ``fsdp``: a sampler reads every matrix at every token, and would gather it each time.

    >>> sampling_rules()["down"]
    (None, 'tensor', None)
    """
    return {name: tuple(None if axis == "fsdp" else axis for axis in axes) for name, axes in RULES.items()}


def shardings(mesh: Mesh | AbstractMesh, tree: Any, rules: dict[str, tuple[Axis, ...]] | None = None) -> Any:
    """Where each leaf of ``tree`` lies: by its name and rank what ``rules`` say, and else whole on every device.

    So that a parameter, its moments in an optimizer's state, its gradient and its reference lie alike. An axis that
    does not divide a dimension is left out there.

    Args:
        mesh: of ``core.mesh``.
        tree: a state, parameters, or their ``jax.eval_shape``.
        rules: ``RULES`` if None.

    Returns:
        The same tree of ``NamedSharding``.

    >>> from rlax_llm.core.mesh import mesh
    >>> found = shardings(mesh(devices=jax.devices()[:1]), {"layers": {"q": jax.numpy.ones((2, 4, 4))}})
    >>> tuple(found["layers"]["q"].spec)
    (None, 'fsdp', 'tensor')
    """
    table = RULES if rules is None else rules

    def of(path: tuple, leaf: Any) -> NamedSharding:
        axes = table.get(_name(path), ())
        if len(axes) != len(leaf.shape):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, dividing(leaf.shape, axes))

    abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(abstract):
        return jax.tree_util.tree_map_with_path(of, tree)


def pinned(step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """A loop's step whose state lies by the rules afterwards, and whose metrics lie whole on every device.

    Without it a compiler chooses where a state lies, and the next call compiles anew. Limiting case: without an
    ambient mesh ``step``.

    Args:
        step: ``(state, …) → (state, metrics)``.
    """

    @functools.wraps(step)
    def stepped(*given: Any, **named: Any) -> tuple[Any, Any]:
        state, metrics = step(*given, **named)
        return laid(state), laid(metrics, {})

    return stepped


def placed(tree: Any) -> Any:
    """``tree``, outside of programs, laid over the ambient mesh by the rules; as it is without one.

    >>> placed({"norm": jax.numpy.ones(2)})["norm"].tolist()
    [1.0, 1.0]
    """
    if devices_along(*AXES) == 1:
        return tree
    return jax.device_put(tree, shardings(jax.sharding.get_mesh(), tree))


def from_parts(
    name: str, shape: tuple[int, ...], dtype: Any, part: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """A parameter laid over the ambient mesh by the rules, of which each process makes only what lies on its devices.

    Limiting case: without a mesh, or on one device, the whole on the host's device.

    Args:
        name: of the parameter.
        shape: of the whole.
        dtype: of it.
        part: of each dimension's bounds, those values; called once for each part that is different.

    >>> from_parts("norm", (2,), np.float32, lambda where: np.ones(2, np.float32)[where]).tolist()
    [1.0, 1.0]
    """
    if devices_along(*AXES) == 1:
        return jnp.asarray(part((slice(None),) * len(shape)))
    wanted = {name: jax.ShapeDtypeStruct(shape, dtype)}
    sharding = shardings(jax.sharding.get_mesh(), wanted)[name]
    made: dict[tuple[tuple[int, int, int], ...], np.ndarray] = {}

    def once(where: Any) -> np.ndarray:
        key = tuple(along.indices(size) for along, size in zip(where, shape, strict=True))
        if key not in made:
            made[key] = part(where)
        return made[key]

    return jax.make_array_from_callback(shape, sharding, once, dtype=dtype)


def laid(tree: Any, rules: dict[str, tuple[Axis, ...]] | None = None) -> Any:
    """``tree``, inside a program, laid over the ambient mesh by the rules; as it is without one.

    Args:
        tree: arrays by name.
        rules: as of ``shardings``.

    >>> laid({"norm": jax.numpy.ones(2)})["norm"].tolist()
    [1.0, 1.0]
    """
    if devices_along(*AXES) == 1:
        return tree
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(tree, shardings(mesh, tree, rules))


def _name(path: tuple) -> str:
    """The last name on the way to a leaf."""
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return names[-1] if names else ""


def check_divides(where: str, config: DecoderConfig) -> None:
    """Raise where the ``tensor`` axis of the ambient mesh does not divide what it splits.

    Args:
        where: that the message begins with.
        config: shapes.

    Raises:
        ValueError: naming the heads, the width or the experts that it does not divide.
    """
    size = devices_along(TENSOR)
    split = {"query heads": config.num_heads, "key heads": config.num_kv_heads, "MLP width": config.intermediate_size}
    if config.experts is not None:
        split |= {"experts": config.experts.count}
    for what, count in split.items():
        if count % size:
            raise ValueError(
                f"{where}: mesh has tensor={size}, which does not divide the {count} {what} of the model; give a "
                "divisor of them."
            )
