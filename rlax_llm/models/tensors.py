"""Safetensors files, looked into before anything is read, with errors that name the file and the tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

_DTYPES = ("F32", "BF16", "F16")
_MADE_WIDE = "MXFP4"
_PART = 4_000_000  # numbers compared at a time


class Held(Protocol):
    """What is read of a tensor, whatever the file keeps it as."""

    @property
    def path(self) -> Path:
        """Of the file."""
        ...

    @property
    def name(self) -> str:
        """Of the tensor in it."""
        ...

    @property
    def dtype(self) -> str:
        """What the file keeps it as."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the numbers."""
        ...

    def part(self, bounds: tuple[slice, ...]) -> Any:
        """Some of the numbers."""
        ...


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

    @property
    def dtype(self) -> str:
        """As the file's header says."""
        return self.handle.get_slice(self.name).get_dtype()

    def read(self) -> Any:
        """The numbers, as a numpy array of the file's own dtype."""
        return self.handle.get_tensor(self.name)

    def part(self, bounds: tuple[slice, ...]) -> Any:
        """A part of it, as ``read``; no more of the file is read.

        Args:
            bounds: of each dimension, with a start and a stop; what a step leaves out is read, and left out then.
        """
        whole = all((along.start, along.stop) == (0, size) for along, size in zip(bounds, self.shape, strict=True))
        runs = tuple(slice(along.start, along.stop) for along in bounds)
        values = self.read() if whole else self.handle.get_slice(self.name)[runs]
        return values[tuple(slice(None, None, along.step) for along in bounds)]


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


def check_tensor(tensor: Held, wanted: tuple[int, ...], source: str = "config.json") -> None:
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
    if tensor.dtype not in (*_DTYPES, _MADE_WIDE):
        raise ValueError(
            f"{tensor.path}: tensor {tensor.name} has dtype {tensor.dtype}, wanted one of {', '.join(_DTYPES)}; "
            "use the weights that are not quantized."
        )


def read_finite(values: Any, dtype: Any, file: Path, name: str) -> Any:
    """The numbers of a tensor in the dtype that is wanted, none of them infinite or no number at all.

    Args:
        values: numpy array.
        dtype: that is wanted; a number that it cannot hold becomes infinite.
        file: that holds the tensor.
        name: of the tensor in it.

    Raises:
        ValueError: naming file and tensor.

    >>> read_finite(np.array([1.0, np.nan]), np.float32, Path("model.safetensors"), "model.norm.weight")
    Traceback (most recent call last):
    ValueError: model.safetensors: tensor model.norm.weight holds 1 numbers that are not finite, wanted none; use ...
    """
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.asarray(values).astype(np.dtype(dtype), copy=False)
    bad = cast.size - int(np.count_nonzero(np.isfinite(cast)))
    if bad:
        raise ValueError(
            f"{file}: tensor {name} holds {bad} numbers that are not finite, wanted none; use the weights of a run "
            f"that did not diverge{_other_dtype(values, cast)}."
        )
    return cast


def _other_dtype(values: Any, cast: Any) -> str:
    return f", or another dtype than {cast.dtype.name}" if bool(np.isfinite(values).all()) else ""


def same_numbers(left: Held, right: Held) -> bool:
    """Whether two matrices hold the same numbers; read by parts, up to the first that differs."""
    if left.shape != right.shape or len(left.shape) != 2:
        return False
    count, width = left.shape
    rows = max(_PART // max(width, 1), 1)
    parts = [(slice(at, min(at + rows, count)), slice(0, width)) for at in range(0, count, rows)]
    return all(bool((left.part(part) == right.part(part)).all()) for part in parts)
