"""An open GGUF file: its metadata and its tensors, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rlax_llm.models.fields import Fields
from rlax_llm.models.tensors import read_finite


class GgufFile:
    """An open GGUF file: ``file[key]`` is a metadata value, ``{arch}`` in a key its architecture.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not whole.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file, wanted a GGUF model; check the path.")
        try:
            reader = GGUFReader(path)
        except Exception as error:  # the reader raises whatever a short buffer happens to cause
            raise ValueError(f"{path} is not a whole GGUF file ({error}); download it again.") from error
        self._fields = reader.fields
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or the default."""
        field = self._fields.get(key.replace("{arch}", getattr(self, "architecture", "")))
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.path}: {key} is missing; convert or download the model again.")
        return value

    def fields(self, names: Iterable[str]) -> Fields:
        """Some metadata of the architecture, which are checked as those of a config.json are."""
        found = {name: self.get(f"{{arch}}.{name}") for name in names}
        raw = {name: value for name, value in found.items() if value is not None}
        return Fields(self.path, raw, f"{self.architecture}.")

    def refuse(self, what: str, got: Any, wanted: str, do: str) -> ValueError:
        """The error for what is not as it must be."""
        return ValueError(f"{self.path}: {what} is {got!r}, wanted {wanted}; {do}.")

    def dequantized(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The numbers of a tensor, which must be finite and of this shape.

        Raises:
            ValueError: they are not, or the ``gguf`` package does not dequantize them.
        """
        from gguf import dequantize

        tensor = self.tensors[name]
        self.check_shape(name, shape)
        try:
            return read_finite(dequantize(tensor.data, tensor.tensor_type), dtype, self.path, name)
        except NotImplementedError as error:
            got = tensor.tensor_type.name
            wanted = "one that the gguf package dequantizes"
            raise self.refuse(f"the quantization of {name}", got, wanted, "use F16, Q8_0 or Q4_K") from error

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise unless a tensor has this shape."""
        got = tuple(int(size) for size in self.tensors[name].shape[::-1])
        if got != shape:
            raise ValueError(
                f"{self.path}: tensor {name} has shape {got}, the metadata wants {shape}; use another file."
            )
