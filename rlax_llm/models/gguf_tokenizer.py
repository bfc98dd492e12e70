"""The tokenizer that a GGUF file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlax_llm.models.fields import Fields
from rlax_llm.models.gguf_file import GgufFile
from rlax_llm.models.tokenizer import Tokenizer, fast_class

# token_type: 3 is a control token, 4 one that a user added; both are matched before the text is split.
_CONTROL = 3
_USER_DEFINED = 4

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes a space as

# The published tokenizers' own patterns. ``None`` is byte-level BPE's, the one of GPT-2.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
# A word ends where a capital follows a small letter, and takes its short form along: "it's".
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _SHORT = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED = f"{_BEFORE}{_UPPER}*{_LOWER}+{_SHORT}|{_BEFORE}{_UPPER}+{_LOWER}*{_SHORT}"
_PATTERNS = {
    "gpt-2": None,
    "olmo": None,
    "smollm": None,
    "refact": None,
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "dbrx": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "chatglm-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "glm4": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
    "gpt-4o": rf"{_CASED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
}


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """Byte-level BPE, or SentencePiece's, with the file's special tokens and chat template.

    Args:
        file: open.

    Raises:
        ValueError: for another kind of tokenizer, or another rule by which text is split.
    """
    model = file["tokenizer.ggml.model"]
    if model not in _MODELS:
        do = "use the Hugging Face directory of this model"
        raise file.refuse("tokenizer.ggml.model", model, " or ".join(_MODELS), do)
    tokens = file["tokenizer.ggml.tokens"]
    backend = _MODELS[model](file, tokens)
    _add_tokens(backend, tokens, file["tokenizer.ggml.token_type"])
    begin = _special(file, "bos")
    if begin is not None and file.get("tokenizer.ggml.add_bos_token", model == "llama"):
        from tokenizers import processors

        written = [tokens[begin], "$A"]
        backend.post_processor = processors.TemplateProcessing(single=written, special_tokens=[(written[0], begin)])
    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {name: _special(file, role) for name, role in roles.items()}
    named = {name: tokens[index] for name, index in ids.items() if index is not None}
    fast = fast_class()(tokenizer_object=backend, model_max_length=file["{arch}.context_length"], **named)
    fast.chat_template = file.get("tokenizer.chat_template")
    turns = [_special(file, role) for role in ("eot", "eom")]
    return Tokenizer(fast, [index for index in turns if index is not None])


def _byte_level(file: GgufFile, tokens: list[str]) -> Any:
    """BPE over bytes, of the rules for splitting text that are known here."""
    pre = file.get("tokenizer.ggml.pre", "default")
    if pre not in _PATTERNS:
        raise file.refuse("tokenizer.ggml.pre", pre, " or ".join(_PATTERNS), "use the Hugging Face directory")
    return _backend(pre, tokens, [_pair(merge) for merge in file["tokenizer.ggml.merges"]])


def _sentence_pieces(file: GgufFile, tokens: list[str]) -> Any:
    """SentencePiece's BPE: of neighbors those are joined whose piece has the highest score; what is left is bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = piece_merges(vocabulary, file["tokenizer.ggml.scores"])
    unknown = tokens[_special(file, "unknown") or 0]
    bpe = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Backend(bpe)
    prefixed = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    decoded: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(decoded + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    return backend


def piece_merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs that make each piece, in the order of SentencePiece's scores.

    Args:
        vocabulary: piece to id.
        scores: of each id.

    >>> piece_merges({"a": 0, "b": 1, "ab": 2, "aba": 3}, [0.0, 0.0, -2.0, -1.0])
    [('ab', 'a'), ('a', 'b')]
    """
    merges = []
    for piece in sorted(vocabulary, key=lambda piece: (-scores[vocabulary[piece]], vocabulary[piece])):
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
    return merges


def _add_tokens(backend: Any, tokens: list[str], kinds: list[int]) -> None:
    """Tell the backend which tokens are no text of the vocabulary's."""
    from tokenizers import AddedToken

    control = [token for token, kind in zip(tokens, kinds) if kind == _CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    added = [token for token, kind in zip(tokens, kinds) if kind == _USER_DEFINED]
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])


def _special(file: GgufFile, role: str) -> int | None:
    """The id of the token with this role, where the file names one."""
    name = f"{role}_token_id"
    fields = Fields(file.path, {name: file.get(f"tokenizer.ggml.{name}")}, "tokenizer.ggml.")
    return next(iter(fields.ids(name, len(file["tokenizer.ggml.tokens"]))), None)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _backend(pre: str, tokens: list[str], merges: list[tuple[str, str]]) -> Any:
    """A ``tokenizers.Tokenizer`` that splits text as ``pre`` says."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = {token: index for index, token in enumerate(tokens)}
    # These look a whole word up before they merge.
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in ("llama-bpe", "gpt-4o")))
    byte_level: Callable[..., Any] = pre_tokenizers.ByteLevel
    pattern = _PATTERNS[pre]
    if pattern is not None:
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]
    else:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre in ("smollm", "refact") else []
        steps = [*digits, byte_level(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


_MODELS: dict[str, Callable[[GgufFile, list[str]], Any]] = {"gpt2": _byte_level, "llama": _sentence_pieces}
