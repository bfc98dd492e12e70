"""What a fast tokenizer of transformers is made of, found out by trying it."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from rlax_llm.models.files import read_json

NEIGHBORS = ("a", ".", "\n", "0")
"""Texts of which a tokenizer knows one at least."""


def fast_class() -> Any:
    """``transformers.PreTrainedTokenizerFast``, imported here so that ``import rlax_llm`` stays quick."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    given = os.environ.get(name)
    # transformers warns, at its first import, that there is no torch; here there need be none.
    os.environ[name] = "1"
    try:
        from transformers import PreTrainedTokenizerFast
    finally:
        os.environ.pop(name)
        os.environ |= {} if given is None else {name: given}
    return PreTrainedTokenizerFast


def file_of(directory: Path) -> Path | None:
    """The file that a directory's tokenizer is read from: ``tokenizer.json``, or else SentencePiece's.

    >>> file_of(Path("nowhere")) is None
    True
    """
    files = [directory / name for name in ("tokenizer.json", "tokenizer.model")]
    return next((file for file in files if file.is_file()), None)


def from_file(file: Path) -> Any:
    """The fast tokenizer of a ``file_of``, and of the settings and the chat template beside it.

    Raises:
        ModuleNotFoundError: it is SentencePiece's, and one of the packages ``sentencepiece`` and ``protobuf`` is not
            there.
        Exception: the file cannot be parsed.
    """
    directory = file.parent
    if file.suffix == ".json":
        return fast_class().from_pretrained(str(directory), local_files_only=True)
    _check_pieces(file)
    fast = fast_class().from_pretrained(str(directory), local_files_only=True)
    settings = directory / "tokenizer_config.json"
    silent = not settings.is_file() or "add_bos_token" not in read_json(settings)
    # As the classes of Llama's and Gemma's tokenizers do where nothing is said.
    if silent and fast.bos_token_id is not None:
        fast.add_bos_token = True
    return fast


def _check_pieces(file: Path) -> None:
    """Raise unless a file is SentencePiece's: transformers would try to read it as another kind."""
    try:
        library, _ = import_module("sentencepiece"), import_module("google.protobuf")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file}: a SentencePiece model needs the packages sentencepiece and protobuf; "
            "pip install 'rlax-llm[sentencepiece]'.",
            name=error.name,
        ) from None
    library.SentencePieceProcessor(model_file=str(file))


def alphabet(fast: Any) -> str:
    """The alphabet of a character tokenizer, in id order; empty for every other kind."""
    from tokenizers.models import WordLevel

    model = fast.backend_tokenizer.model
    special = set(fast.all_special_tokens)
    tokens = [token for token, _ in sorted(fast.get_vocab().items(), key=lambda item: item[1]) if token not in special]
    words = isinstance(model, WordLevel) and fast.unk_token is None
    return "".join(tokens) if words and all(len(token) == 1 for token in tokens) else ""


def beginning(fast: Any) -> list[int]:
    """Ids that the tokenizer's post-processor puts before a text."""
    for text in NEIGHBORS:
        try:
            whole = fast(text)["input_ids"]
            bare = fast(text, add_special_tokens=False)["input_ids"]
        except Exception:
            # It has no token for this one.
            continue
        for start in range(len(whole) - len(bare) + 1 if bare else 0):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
    return []


def unknown_bytes(fast: Any) -> bytes:
    """Bytes that a byte-level vocabulary has no token for: the backend leaves them out without a word."""
    from tokenizers.pre_tokenizers import ByteLevel

    parts = json.loads(fast.backend_tokenizer.to_str())
    steps = json.dumps([parts["normalizer"], parts["pre_tokenizer"]])
    if '"ByteLevel"' not in steps or parts["model"].get("unk_token") is not None:
        return b""
    # One character at least of every first byte that UTF-8 has.
    codes = (*range(0x1000), *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x10000))
    sample = "".join(map(chr, codes))
    written = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(sample)
    spelled = dict(zip(sample.encode(), "".join(piece for piece, _ in written), strict=True))
    known = fast.get_vocab()
    return bytes(byte for byte, character in sorted(spelled.items()) if character not in known)


def pieces(fast: Any) -> list[bytes | None]:
    """The bytes that each token writes inside a text, by id; None of a special token, which decoding leaves out.

    Exact for byte-level vocabularies and those that fall back to bytes, of which a token may be part of a character;
    of others what decoding makes of the token behind a neighbor.
    """
    tokens = [fast.convert_ids_to_tokens(token) for token in range(len(fast))]
    special = {*fast.all_special_ids, *_added_special(fast)}
    added = {token for token, _ in fast.added_tokens_decoder.items()}
    steps = json.dumps(json.loads(fast.backend_tokenizer.to_str())["decoder"])
    written = _byte_level if '"ByteLevel"' in steps else _falling_back if '"ByteFallback"' in steps else None
    neighbor = _neighbor(fast)

    def piece(token: int) -> bytes | None:
        if token in special or tokens[token] is None:
            return None
        if token in added:
            return tokens[token].encode()
        return _decoded(fast, neighbor, token) if written is None else written(tokens[token])

    return [piece(token) for token in range(len(fast))]


def _added_special(fast: Any) -> list[int]:
    return [token for token, told in fast.added_tokens_decoder.items() if told.special]


@cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    byte_of = _byte_of()
    return bytes(byte_of[character] for character in token) if set(token) <= byte_of.keys() else token.encode()


def _falling_back(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _neighbor(fast: Any) -> list[int]:
    """Ids of a text that the tokenizer knows."""
    for text in NEIGHBORS:
        try:
            return fast(text, add_special_tokens=False)["input_ids"]
        except Exception:
            # It has no token for this one.
            continue
    return []


def _decoded(fast: Any, neighbor: list[int], token: int) -> bytes:
    def text(ids: list[int]) -> str:
        return fast.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return text([*neighbor, token])[len(text(neighbor)) :].encode()
