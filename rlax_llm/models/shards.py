"""The weights of a model's directory: one safetensors file, or the shards that an index lists."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path, PureWindowsPath

from rlax_llm.models.fields import Fields
from rlax_llm.models.files import read_json
from rlax_llm.models.mxfp4 import with_mxfp4
from rlax_llm.models.tensors import Held, Tensor, open_tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TEXT = re.compile(r"(model\.)?language_model\.(model\.)?")
_BESIDE = re.compile(r"(model\.)?(vision_tower|vision_model|multi_modal_projector)\.")


def has_weights(directory: Path) -> bool:
    """Whether a directory holds a model's own weights."""
    return (directory / SINGLE).is_file() or (directory / INDEX).is_file()


def model_tensors(directory: Path, stack: ExitStack) -> dict[str, Held]:
    """Every tensor of the directory by name; the files stay open (and mapped) as long as ``stack``.

    What is in MXFP4, in two tensors, is one, which is wide as it is read.

    Raises:
        FileNotFoundError: there is neither the file nor an index, or a shard of the index is missing.
        ValueError: a file is truncated or corrupt, the index is not one or leads out of the directory, or two shards
            hold one tensor, or codes have no scales.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(directory):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, {INDEX} lists it; download the model again.")
        found = stack.enter_context(open_tensors(file))
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ValueError(
                f"{file}: tensor {twice[0]} is also in {tensors[twice[0]].path.name}, wanted it once; "
                "download or export the model again."
            )
        tensors |= found
    return with_mxfp4(_of_text(tensors))


def _of_text(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a language model by its own names, where the checkpoint holds others beside it."""
    if not any(_TEXT.match(name) for name in tensors):
        return tensors
    kept = {name: tensor for name, tensor in tensors.items() if not _BESIDE.match(name)}
    return {_own_name(name): tensor for name, tensor in kept.items()}


def _own_name(name: str) -> str:
    if not _TEXT.match(name):
        return name
    rest = _TEXT.sub("", name)
    return rest if rest.startswith("lm_head.") else f"model.{rest}"


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    path = directory / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has neither {SINGLE} nor {INDEX}; convert its weights to safetensors "
            "(transformers' save_pretrained does)."
        )
    listed = Fields(path, read_json(path)).nested("weight_map")
    if not listed.raw:
        raise Fields(path, read_json(path)).refused("weight_map", "the file of each tensor")
    for name in listed.raw:
        _check_inside(listed, name)
    return [directory / name for name in sorted(set(listed.raw.values()))]


def _check_inside(listed: Fields, tensor: str) -> None:
    """Raise unless a tensor's file is named below the directory.

    By its name and not by where it leads: the hub's cache links every file to a folder of its own.
    """
    name = listed.raw[tensor]
    named = isinstance(name, str) and name.endswith(".safetensors") and "\0" not in name
    if not named or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise listed.refused(tensor, "the name of a safetensors file in the same directory")


def check_layers(place: Path, layers: int, tensors: int) -> None:
    """Raise where a configuration asks for more layers than there are tensors, before anything is made for so many.

    Args:
        place: of the model.
        layers: of the configuration.
        tensors: of the file, of which a layer has several.

    Raises:
        ValueError: naming ``place`` and both numbers.

    >>> check_layers(Path("here"), 10_000_000, 29)
    Traceback (most recent call last):
    ValueError: here: the configuration has 10000000 layers (num_hidden_layers), the weights hold 29 tensors; use ...
    """
    if layers > tensors:
        raise ValueError(
            f"{place}: the configuration has {layers} layers (num_hidden_layers), the weights hold {tensors} tensors; "
            "use the configuration that belongs to them."
        )
