"""Low-rank adapters (arXiv 2106.09685): their parameters, their merge into the base, and PEFT's directories of them.

The decoder itself reads an adapter where its config has a ``Lora``: ``joined(adapter, base)`` are its parameters then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import fetch
from rlax_llm.core.processes import is_first
from rlax_llm.core.trees import join_trees
from rlax_llm.models.blocks import dequantized
from rlax_llm.models.config import TARGETS, DecoderConfig, Lora
from rlax_llm.models.dora import column_shares, lengths
from rlax_llm.models.fields import Fields
from rlax_llm.models.files import existing_directory, read_json, replace_directory, write_json
from rlax_llm.models.functional import Params
from rlax_llm.models.huggingface import tensor_name
from rlax_llm.models.shards import has_weights
from rlax_llm.models.tensors import Tensor, check_tensor, open_tensors, read_finite

_SLACK_BYTES = 1_000_000
_SETTINGS = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_FILES = re.compile(r"adapter_config\.json|adapter_model\.safetensors|README\.md")
_PREFIX = "base_model.model."
_SCORE = f"{_PREFIX}score.weight"
# Settings of PEFT that change the computation, and the values for which this decoder computes it.
_NONE = (None, False, {}, [], "none")
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "modules_to_save": _NONE,
    "bias": _NONE,
    "use_qalora": _NONE,
    "fan_in_fan_out": _NONE,
    "lora_bias": _NONE,
    "rank_pattern": _NONE,
    "alpha_pattern": _NONE,
    "layer_replication": _NONE,
    "trainable_token_indices": _NONE,
    "target_parameters": _NONE,
    "alora_invocation_tokens": _NONE,
    "arrow_config": _NONE,
    "use_bdlora": _NONE,
}
_BASE = "base_model_name_or_path"
_INITIAL = "init_lora_weights"
# Others (pissa, olora, corda, loftq, ...) take their first A·B out of the base, which they do not write.
_OVER_BASE = (None, True, False, "gaussian", "eva", "orthogonal")


def init_adapter(config: DecoderConfig, key: jax.Array, dtype: Any = jnp.float32, base: Params | None = None) -> Params:
    """``A ~ U(−1/√in, 1/√in)`` and ``B = 0``, as PEFT draws them (Kaiming-uniform with a = √5): the base, exactly.

    Args:
        config: shapes, with its ``lora``.
        key: a typed PRNG key.
        dtype: of the adapter; float32 also over a bfloat16 base keeps small steps.
        base: its parameters, whose columns' lengths DoRA begins with; else not read.

    Returns:
        The nested dict of ``config.adapter_shapes``.

    Raises:
        ValueError: ``config.lora`` is None, or is DoRA without a base.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, lora=Lora(3, 6.0, ("q",)))
    >>> {name: leaf.shape for name, leaf in init_adapter(config, jax.random.key(0))["layers"].items()}
    {'q_lora_a': (1, 4, 3), 'q_lora_b': (1, 3, 4)}
    """
    layers = {}
    lora = _lora("init_adapter", config)
    if lora.dora and base is None:
        raise ValueError("init_adapter: base is None and config.lora is DoRA, wanted the base's parameters; give them.")
    for target, one in zip(lora.targets, jax.random.split(key, len(TARGETS)), strict=False):
        a, b = (config.adapter_shapes["layers"][f"{target}_lora_{side}"] for side in "ab")
        bound = a[1] ** -0.5
        drawn = jax.random.uniform(one, a, jnp.promote_types(dtype, jnp.float32), -bound, bound)
        layers |= {f"{target}_lora_a": drawn.astype(dtype), f"{target}_lora_b": jnp.zeros(b, dtype)}
        if lora.dora and base is not None:
            update = layers[f"{target}_lora_a"], layers[f"{target}_lora_b"]
            layers[f"{target}_lora_m"] = _lengths(base["layers"][target], update, lora.scale).astype(dtype)
    return {"layers": layers}


@jax.jit
def _lengths(weights: Any, update: tuple[jax.Array, jax.Array], scale: float) -> jax.Array:
    """Of the columns of all layers, a layer at a time."""
    return jax.lax.map(lambda layer: lengths(layer[0], (*layer[1], scale)), (weights, update))


def merge_adapter(config: DecoderConfig, params: Params, adapter: Params) -> Params:
    """``W + (alpha / rank) · A·B``, of DoRA with its own lengths: one model without adapter, to draw from and export.

    Limiting case: B = 0 is the base, bit for bit.

    Args:
        config: shapes, with its ``lora``; the result belongs to ``replace(config, lora=None)``.
        params: the base's, ``config.parameter_shapes``; a matrix in blocks comes back wide.
        adapter: ``config.adapter_shapes``; a ``score`` with it is passed through.

    Returns:
        Parameters like ``params``, in their dtype; sums and products are of at least float32.

    Raises:
        ValueError: ``config.lora`` is None, or the adapter does not fit it.
    """
    lora = _lora("merge_adapter", config)
    _check_tree("merge_adapter", config, adapter)
    model = join_trees(dequantized(params), adapter)
    layers = dict(model["layers"])
    for target in lora.targets:
        weight = layers[target]
        a = layers.pop(f"{target}_lora_a")
        b = layers.pop(f"{target}_lora_b")
        wide = jnp.promote_types(jnp.result_type(weight, a, b), jnp.float32)
        update = jnp.matmul(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
        merged = weight.astype(wide) + lora.scale * update
        if lora.dora:
            shares = column_shares(layers.pop(f"{target}_lora_m"), weight, (a, b, lora.scale))
            merged = merged * shares[..., None, :]
        layers[target] = merged.astype(weight.dtype)
    return model | {"layers": layers}


def write_adapter(directory: str | Path, config: DecoderConfig, adapter: Params, base_model_name: str) -> None:
    """Write an adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``peft.PeftModel.from_pretrained`` loads it over a causal model, and over a sequence classifier with one label where
    the adapter holds a ``score``.

    Args:
        directory: created, or replaced where it holds an adapter and nothing else.
        config: shapes, with its ``lora``.
        adapter: ``config.adapter_shapes``, and the trained ``score [D]`` of a scalar model.
        base_model_name: path or hub name of the base, for ``adapter_config.json``.

    Raises:
        ValueError: ``config.lora`` is None, or the adapter does not fit it.
        FileExistsError: the directory holds other things than an adapter.
        OSError: the disk is full.
    """
    from safetensors.numpy import save_file

    lora = _lora("write_adapter", config)
    _check_tree("write_adapter", config, adapter)
    tensors = {}
    for target in lora.targets:
        for side in "abm" if lora.dora else "ab":
            leaf = fetch(adapter["layers"][f"{target}_lora_{side}"])
            tensors |= {_name(target, i, side): np.ascontiguousarray(leaf[i].T) for i in range(config.num_layers)}
    if "score" in adapter:
        tensors[_SCORE] = fetch(adapter["score"])[None]
    if not is_first():
        return
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with replace_directory(
        Path(directory), needed + _SLACK_BYTES, lambda name: _FILES.fullmatch(name) is not None
    ) as staging:
        write_json(staging / _SETTINGS, _settings(lora, base_model_name, "score" in adapter))
        save_file(tensors, staging / _WEIGHTS, metadata={"format": "pt"})


def read_adapter(
    directory: str | Path, config: DecoderConfig, dtype: Any = jnp.float32
) -> tuple[DecoderConfig, Params]:
    """An adapter that PEFT or ``write_adapter`` wrote.

    Args:
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        config: of the base; its own ``lora`` does not matter.
        dtype: of the arrays given back.

    Returns:
        The config with the adapter's ``lora``, and the adapter: ``config.adapter_shapes``, and ``score [D]`` where the
        file holds one.

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
        config = replace(config, lora=_lora_of(settings, tensors))
        return config, _read_tensors(file, config, tensors, dtype)


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
    # A classifier's score is read; peft lists it under all the names that it may have.
    modules = [name for name in settings.words("modules_to_save") if name not in ("score", "classifier")]
    given = {**settings.raw, "modules_to_save": modules}
    for field, allowed in _ONLY.items():
        if given.get(field) not in allowed:
            wanted = "'LORA'" if field == "peft_type" else "none of it"
            raise replace(settings, raw=given).refused(field, wanted, "merge it with peft instead")
    if settings.raw.get(_INITIAL) not in _OVER_BASE:
        wanted = "a start that leaves the base as it is"
        raise settings.refused(_INITIAL, wanted, "merge it with peft instead")


def _lora(where: str, config: DecoderConfig) -> Lora:
    if config.lora is None:
        raise ValueError(
            f"{where}: config.lora is None, wanted a Lora; give one with dataclasses.replace(config, lora=...)."
        )
    return config.lora


def _check_tree(where: str, config: DecoderConfig, adapter: Params) -> None:
    wanted = config.adapter_shapes["layers"]
    got = adapter.get("layers", {})
    for name in sorted(wanted.keys() | got.keys()):
        shape = jnp.shape(got[name]) if name in got else "absent"
        if shape != wanted.get(name):
            raise ValueError(
                f"{where}: adapter leaf layers/{name} is {shape}, the config wants {wanted.get(name, 'none')}; "
                "give the adapter that belongs to the config."
            )


def _name(target: str, layer: int, side: str) -> str:
    kind = "magnitude_vector" if side == "m" else f"{side.upper()}.weight"
    return f"{_PREFIX}{tensor_name(target, layer).removesuffix('weight')}lora_{kind}"


def _settings(lora: Lora, base_model_name: str, scalar: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        _BASE: base_model_name,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "target_modules": [f"{target}_proj" for target in lora.targets],
        "modules_to_save": ["score"] if scalar else None,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.stabilized,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        _INITIAL: True,
        "inference_mode": True,
    }


def _lora_of(settings: Fields, tensors: Mapping[str, Tensor]) -> Lora:
    """The targets are those that have a tensor: ``target_modules`` may be a pattern."""
    targets = tuple(target for target in TARGETS if _name(target, 0, "a") in tensors)
    rank = settings.size("r")
    alpha = settings.number("lora_alpha")
    if not targets:
        raise ValueError(
            f"{settings.path.with_name(_WEIGHTS)}: the file has 0 of the targets {', '.join(TARGETS)} in layer 0, "
            "wanted at least one; save the adapter again."
        )
    dropout = settings.number("lora_dropout") if settings.raw.get("lora_dropout") else 0.0
    return Lora(rank, alpha, targets, settings.flag("use_rslora"), settings.flag("use_dora"), dropout)


def _read_tensors(file: Path, config: DecoderConfig, tensors: Mapping[str, Tensor], dtype: Any) -> Params:
    shapes = config.adapter_shapes["layers"]
    layers = {}
    names = {leaf: [_name(*_leaf(leaf, i)) for i in range(config.num_layers)] for leaf in shapes}
    wanted = {name for leaf_names in names.values() for name in leaf_names}
    _check_names(file, wanted, tensors.keys() - {_SCORE}, config.num_layers)
    for leaf, (_, *shape) in shapes.items():
        for name in names[leaf]:
            check_tensor(tensors[name], tuple(shape[::-1]), _SETTINGS)
        layers[leaf] = np.stack([read_finite(tensors[name].read(), dtype, file, name).T for name in names[leaf]])
    adapter: Params = {"layers": jax.tree.map(jnp.asarray, layers)}
    if _SCORE not in tensors:
        return adapter
    check_tensor(tensors[_SCORE], (1, config.hidden_size))
    return adapter | {"score": jnp.asarray(read_finite(tensors[_SCORE].read(), dtype, file, _SCORE)[0])}


def _check_names(file: Path, wanted: Set[str], found: Set[str], num_layers: int) -> None:
    odd = sorted(wanted ^ found)
    if odd:
        raise ValueError(
            f"{file}: tensor {odd[0]} is {'unexpected' if odd[0] in found else 'missing'} ({len(odd)} do not fit), "
            f"wanted adapters of one kind on all {num_layers} layers of the base; give the base it was made for."
        )


def _leaf(leaf: str, layer: int) -> tuple[str, int, str]:
    target, _, side = leaf.partition("_lora_")
    return target, layer, side
