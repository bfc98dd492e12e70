"""What a fast tokenizer of transformers is made of, found out by trying it."""

from __future__ import annotations

import json
import os
from typing import Any

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
