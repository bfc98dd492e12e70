"""Safetensors files, looked into before anything is read, with errors that name the file and the tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_DTYPES = ("F32", "BF16", "F16")


class Tensor(NamedTuple):
    """One tensor of an open file.

    Attributes:
        path: of the file.
        handle: the file, open and mapped.
        name: of the tensor in it.
    """

    path: Path
    handle: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file's header says."""
        return tuple(self.handle.get_slice(self.name).get_shape())

    def read(self) -> Any:
        """The numbers, as a numpy array of the file's own dtype."""
        return self.handle.get_tensor(self.name)


@contextmanager
def open_tensors(file: Path) -> Iterator[dict[str, Tensor]]:
    """Every tensor of a file by name; the file stays open for the block.

    Raises:
        ValueError: the file is truncated or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # jax brings ml_dtypes along, which is what gives numpy its bfloat16.
        opened = safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not whole ({error}); download or export the model again.") from error
    with opened as handle:
        yield {name: Tensor(file, handle, name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)


def check_tensor(tensor: Tensor, wanted: tuple[int, ...], source: str = "config.json") -> None:
    """Raise unless a tensor has a shape, and a dtype that is read here.

    Args:
        tensor: of an open file.
        wanted: its shape in the file.
        source: the file that asks for the shape.

    Raises:
        ValueError: naming file, tensor, what it is and what ``source`` wants.
    """
    if tensor.shape != wanted:
        raise ValueError(
            f"{tensor.path}: tensor {tensor.name} has shape {tensor.shape}, {source} wants {wanted}; "
            f"use the {source} that belongs to these weights."
        )
    kind = tensor.handle.get_slice(tensor.name).get_dtype()
    if kind not in _DTYPES:
        raise ValueError(
            f"{tensor.path}: tensor {tensor.name} has dtype {kind}, wanted one of {', '.join(_DTYPES)}; "
            "use the weights that are not quantised."
        )
