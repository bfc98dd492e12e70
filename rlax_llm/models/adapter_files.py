"""PEFT's directories of adapters: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.processes import is_first
from rlax_llm.models.adapter_parts import Update
from rlax_llm.models.adapter_tensors import (
    PREFIX,
    Reading,
    Widths,
    family_of_tensors,
    module_name,
    row_indices,
    row_tensors,
    saved_modules,
    target_name,
    tensors_of,
    updates_of,
    whole_slots,
)
from rlax_llm.models.config import TARGETS, DecoderConfig, Lora
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.family import Family
from rlax_llm.models.fields import Fields
from rlax_llm.models.files import existing_directory, read_json, replace_directory, write_json
from rlax_llm.models.functional import Params
from rlax_llm.models.huggingface_config import NOWHERE, Origin, config_fields
from rlax_llm.models.lora import check_adapter, lora_of
from rlax_llm.models.shards import has_weights
from rlax_llm.models.slots import tensor_of
from rlax_llm.models.tensors import open_tensors

_SLACK_BYTES = 1_000_000
_SETTINGS = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_FILES = re.compile(r"adapter_config\.json|adapter_model\.safetensors|README\.md")
# Settings of PEFT that change the computation, and the values for which this decoder computes it.
_NONE = (None, False, {}, [], "none")
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": _NONE,
    "use_qalora": _NONE,
    "fan_in_fan_out": _NONE,
    "lora_bias": _NONE,
    "layer_replication": _NONE,
    "target_parameters": _NONE,
    "alora_invocation_tokens": _NONE,
    "arrow_config": _NONE,
    "use_bdlora": _NONE,
    "kasa_config": _NONE,
    "monteclora_config": _NONE,
}
_BASE = "base_model_name_or_path"
_INITIAL = "init_lora_weights"
# Others (pissa, olora, corda, loftq, ...) take their first A·B out of the base, which they do not write.
_OVER_BASE = (None, True, False, "gaussian", "eva", "orthogonal")


def write_adapter(
    directory: str | Path,
    config: DecoderConfig,
    adapter: Params,
    base_model_name: str,
    origin: Origin = NOWHERE,
) -> None:
    """Write an adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``peft.PeftModel.from_pretrained`` loads it over a causal model, and over a sequence classifier with one label where
    the adapter holds a ``score``. Where the family's files join projections (Phi-3, GLM-4) the adapter does too, with
    the sum of the ranks and the same scale.

    Args:
        directory: created, or replaced where it holds an adapter and nothing else.
        config: shapes, with its ``lora``.
        adapter: ``config.adapter_shapes``, the trained ``score [D]`` of a scalar model, and what else is trained whole:
            ``embed``, ``head``, ``norm`` or leaves of the layers, PEFT's ``modules_to_save``.
        base_model_name: path or hub name of the base, for ``adapter_config.json``.
        origin: of the base, whose family says the names.

    Raises:
        ValueError: ``config.lora`` is None, or the adapter does not fit it.
        FileExistsError: the directory holds other things than an adapter.
        OSError: the disk is full.
    """
    lora = lora_of("write_adapter", config)
    check_adapter("write_adapter", config, adapter)
    family = FAMILIES[config_fields(config, origin)["model_type"]]
    updates = updates_of(config, family, adapter)
    tensors = {}
    for widths, update in updates:
        for layer in range(config.num_layers):
            tensors |= tensors_of(module_name(family, widths, layer), update, layer)
    whole = whole_slots(config, family, adapter)
    tensors |= {PREFIX + name: tensor_of(adapter, slot) for name, slot in whole.items()}
    tensors |= row_tensors(config, family, adapter)
    settings = _settings(lora, updates, family) | {_BASE: base_model_name}
    settings |= {
        "modules_to_save": saved_modules(whole) or None,
        "trainable_token_indices": row_indices(config, family),
    }
    settings |= {"task_type": "SEQ_CLS" if "score" in adapter else "CAUSAL_LM"}
    if config.tie_embeddings and "embed" in adapter and "score" not in adapter:
        settings |= {"ensure_weight_tying": True}
        # PEFT reads the one table by both its names.
        tensors[PREFIX + family.tensor("head", None)] = tensors[PREFIX + family.tensor("embed", None)].copy()
    if is_first():
        _write(Path(directory), settings, tensors)


def _write(directory: Path, settings: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    needed = sum(tensor.nbytes for tensor in tensors.values())
    with replace_directory(
        directory, needed + _SLACK_BYTES, lambda name: _FILES.fullmatch(name) is not None
    ) as staging:
        write_json(staging / _SETTINGS, settings)
        save_file(tensors, staging / _WEIGHTS, metadata={"format": "pt"})


def _is_file(name: str) -> bool:
    return _FILES.fullmatch(name) is not None


def read_adapter(
    directory: str | Path, config: DecoderConfig, dtype: Any = jnp.float32
) -> tuple[DecoderConfig, Params]:
    """An adapter that PEFT or ``write_adapter`` wrote.

    Modules of other ranks or scales than most (``rank_pattern``, ``alpha_pattern``) are padded with zeros, and their B
    is multiplied by their share of the scale.

    Args:
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        config: of the base; its own ``lora`` does not matter.
        dtype: of the arrays given back.

    Returns:
        The config with the adapter's ``lora``, and the adapter: ``config.adapter_shapes``, ``score [D]`` where the file
        holds one, and what else it holds whole. Where its embedding and its head are two, over a base that ties them,
        the config does not tie them.

    Raises:
        FileNotFoundError: no such directory, or one of its files is missing.
        ValueError: a file is broken, asks for what the decoder does not compute, or does not fit the base.
    """
    settings = _settings_of(directory)
    _check_settings(settings)
    file = settings.path.with_name(_WEIGHTS)
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {_WEIGHTS}; save the adapter again, as safetensors.")
    with open_tensors(file) as tensors:
        reading = Reading(settings, tensors, config, family_of_tensors(tensors), dtype)
        _check_names(file, reading)
        lora, updates = reading.updates()
        tokens, rows = reading.trained_rows()
        held = reading.whole() | rows
    tied = reading.ties()
    if tied and "head" in held:  # the one table by its other name
        held.setdefault("embed", held.pop("head"))
        held.pop("head", None)
    layers = held.pop("layers") | _leaves(updates)
    adapter = jax.tree.map(lambda x: jnp.asarray(x, dtype), held | {"layers": layers})
    # Trained apart over a base that ties them, head and embedding are two.
    apart = config.tie_embeddings and not tied and bool({"embed", "head", "head_rows"} & held.keys())
    return replace(config, lora=replace(lora, **tokens), tie_embeddings=config.tie_embeddings and not apart), adapter


def _leaves(updates: Mapping[str, Update]) -> Params:
    """The adapter's leaves in the layers."""
    leaves: Params = {}
    for target, update in updates.items():
        leaves |= {f"{target}_lora_a": update.a, f"{target}_lora_b": update.b}
        leaves |= {} if update.m is None else {f"{target}_lora_m": update.m}
    return leaves


def _check_names(file: Path, reading: Reading) -> None:
    if not reading.adapted:
        raise ValueError(
            f"{file}: the file has 0 of the targets {', '.join(TARGETS)} in layer 0, wanted at least one; save the "
            "adapter again."
        )
    for name in reading.absent():
        raise reading.settings.refused("modules_to_save", f"modules that {_WEIGHTS} holds, and {name} is none of them")
    found = reading.tensors.keys()
    odd = sorted(reading.names() ^ found)
    if odd:
        raise ValueError(
            f"{file}: tensor {odd[0]} is {'unexpected' if odd[0] in found else 'missing'} ({len(odd)} do not fit), "
            f"wanted adapters of one kind on all {reading.config.num_layers} layers of the base; give the base it was "
            "made for."
        )


def is_adapter(directory: str | Path) -> bool:
    """Whether a directory holds an adapter, and not a model of its own.

    Raises:
        ValueError: it holds both.
    """
    if not Path(directory, _SETTINGS).is_file():
        return False
    whole = has_weights(Path(directory))
    adapter = Path(directory, _WEIGHTS).is_file()
    if whole and adapter:
        raise ValueError(
            f"{directory} holds a model and an adapter ({_WEIGHTS}), wanted one of them; move the other to a directory "
            "of its own."
        )
    return not whole


def base_name(directory: str | Path) -> str:
    """Path or hub name of the model that an adapter was trained over, as its directory says.

    Raises:
        ValueError: it says none.
    """
    settings = _settings_of(directory)
    name = settings.raw.get(_BASE)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise settings.refused(_BASE, "the path or the hub name of its base", "write it there")
    return name


def missing_base(directory: str | Path, reason: object) -> FileNotFoundError:
    """The error for a base that cannot be loaded."""
    name = _settings_of(directory).raw.get(_BASE)
    return FileNotFoundError(
        f"{Path(directory, _SETTINGS)}: {_BASE} is {name!r}, wanted the model that the adapter was trained over "
        f"({str(reason).rstrip('.')}); write its path there, or give a whole model."
    )


def _settings_of(directory: str | Path) -> Fields:
    path = existing_directory(directory) / _SETTINGS
    return Fields(path, read_json(path))


def _check_settings(settings: Fields) -> None:
    for field, allowed in _ONLY.items():
        if settings.raw.get(field) not in allowed:
            wanted = "'LORA'" if field == "peft_type" else "none of it"
            raise settings.refused(field, wanted, "merge it with peft instead")
    if settings.raw.get(_INITIAL) not in _OVER_BASE:
        wanted = "a start that leaves the base as it is"
        raise settings.refused(_INITIAL, wanted, "merge it with peft instead")


def _settings(lora: Lora, updates: list[tuple[Widths, Update]], family: Family) -> dict[str, Any]:
    ranks = {target_name(family, widths): update.a.shape[-1] for widths, update in updates}
    others = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    return {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": _whole_number(lora.alpha),
        "rank_pattern": others,
        "alpha_pattern": {name: _whole_number(lora.alpha_of(rank)) for name, rank in others.items()},
        "target_modules": list(ranks),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.stabilized,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        _INITIAL: True,
        "inference_mode": True,
    }


def _whole_number(value: float) -> float:
    return int(value) if value == int(value) else value
