"""Text to token ids and back: one small face for trained tokenizers and for character alphabets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rlax_llm.models import backend, chat
from rlax_llm.models.backend import fast_class
from rlax_llm.models.chat import Message, one_line
from rlax_llm.models.fields import Fields
from rlax_llm.models.files import read_json

PAD = "<|pad|>"
EOS = "<|eos|>"
_LARGEST_ID = 2**31 - 1
_OF_LOADING = ("is_local", "local_files_only")  # how it was read here, which transformers 5 writes with the rest
_TEXTS = 1000  # encoded at a time; the backend keeps ten times the text's memory


class Tokenizer:
    """A tokenizer as the rest of the library sees it; wraps a fast tokenizer of ``transformers``.

    Args:
        fast: a ``transformers.PreTrainedTokenizerFast``.
        eos_ids: ids that end a completion, besides the tokenizer's own, which comes first, and the one that the chat
            template writes after an answer, which comes last.

    >>> tokenizer = Tokenizer.characters("0123456789+=")
    >>> tokenizer.encode("1+2=")
    [3, 12, 4, 13]
    >>> tokenizer.decode([3, 12, 4, 13, *tokenizer.eos_ids])
    '1+2='
    """

    def __init__(self, fast: Any, eos_ids: Iterable[int] = ()) -> None:
        own = (fast.eos_token_id, *(int(token) for token in eos_ids), chat.turn_end(fast))
        self._fast = fast
        self._eos_ids = tuple(dict.fromkeys(token for token in own if token is not None))
        self._alphabet = backend.alphabet(fast)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Read ``tokenizer.json``, or ``tokenizer.model`` where only SentencePiece's is there, its settings and chat
        template, and the stop ids of ``generation_config.json``, or of ``config.json`` where that is absent.

        Raises:
            FileNotFoundError: the directory or its tokenizer is missing.
            ValueError: a file cannot be parsed.
            ModuleNotFoundError: it is SentencePiece's, and the package ``sentencepiece`` is not there.
        """
        directory = Path(path)
        file = backend.file_of(directory)
        if file is None:
            raise FileNotFoundError(
                f"{directory} has no tokenizer.json and no tokenizer.model, wanted one of them (a fast tokenizer); "
                "save it with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)."
            )
        try:
            fast = backend.from_file(file)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{directory}: the tokenizer cannot be read ({one_line(error)}); download or export its files again."
            ) from error
        return cls(fast, _listed_eos(directory))

    @classmethod
    def characters(cls, alphabet: str) -> Tokenizer:
        """One token a character: pad is 0, end of sequence 1, then the alphabet in its order.

        Args:
            alphabet: distinct characters.

        Raises:
            ValueError: the alphabet is empty or repeats a character.
        """
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if not alphabet or repeated:
            got = f"repeats {''.join(repeated)!r}" if repeated else "is empty"
            raise ValueError(f"Tokenizer.characters: the alphabet {got}, wanted distinct characters.")
        # The model is declared without an unknown token: nothing is ever mapped to one, which keeps decoding lossless.
        words = Backend(models.WordLevel({token: index for index, token in enumerate([PAD, EOS, *alphabet])}))
        words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        words.decoder = decoders.Fuse()
        # Text that spells a special token stays text.
        return cls(fast_class()(tokenizer_object=words, pad_token=PAD, eos_token=EOS, split_special_tokens=True))

    @property
    def pad_id(self) -> int:
        """The padding id; the end-of-sequence id where the tokenizer has none."""
        if self._fast.pad_token_id is not None:
            return self._fast.pad_token_id
        if not self._eos_ids:
            raise ValueError(
                "Tokenizer: neither a pad nor an eos token is set; set pad_token in tokenizer_config.json."
            )
        return self._eos_ids[0]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion; empty where the tokenizer has none."""
        return self._eos_ids

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence id, or None."""
        return self._fast.bos_token_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included; a model's embedding may have more rows."""
        return len(self._fast)

    def vocabulary(self) -> dict[str, int]:
        """Every token, special ones included, and its id.

        >>> Tokenizer.characters("ab").vocabulary()["b"]
        3
        """
        return dict(self._fast.get_vocab())

    def pieces(self) -> list[bytes | None]:
        """The bytes that each token writes inside a text, by id; None of a special token.

        >>> Tokenizer.characters("aé").pieces()
        [None, None, b'a', b'\xc3\xa9']
        """
        return backend.pieces(self._fast)

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are chats."""
        return bool(self._fast.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; no special token is added.

        Raises:
            ValueError: a character outside a character tokenizer's alphabet, half of a character, or one that the
                vocabulary has no token for.

        >>> Tokenizer.characters("ab").encode("abc")
        Traceback (most recent call last):
        ValueError: Tokenizer.encode: 'c' at position 2 is not in the alphabet 'ab'; add it or remove it from the text.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of every text, on all cores.

        Raises:
            ValueError: as ``encode``, for any of the texts.

        >>> Tokenizer.characters("ab").encode_all(["ab", ""])
        [[2, 3], []]
        """
        for text in texts:
            self._check_characters(text)
        ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS):
            # The limit of length that it would warn of is the caller's business.
            part = list(texts[start : start + _TEXTS])
            try:
                encoded = self._fast(part, add_special_tokens=False, return_attention_mask=False, verbose=False)
            except Exception as error:
                raise ValueError(
                    f"Tokenizer.encode: the tokenizer cannot encode the text ({one_line(error)}); remove what it does "
                    "not know from the text, or give it a token for the unknown."
                ) from error
            ids += encoded["input_ids"]
        return ids

    def _check_characters(self, text: str) -> None:
        try:
            coded = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Tokenizer.encode: {text[error.start]!r} at position {error.start} is half of a character (a lone "
                "surrogate); write the character whole or remove it from the text."
            ) from None
        for position, character in enumerate(text if self._alphabet else ""):
            if character not in self._alphabet:
                raise ValueError(
                    f"Tokenizer.encode: {character!r} at position {position} is not in the alphabet "
                    f"{self._alphabet!r}; add it or remove it from the text."
                )
        if len(coded.translate(None, self._unknown_bytes)) < len(coded):
            unknown = set(self._unknown_bytes)
            position = next(index for index, character in enumerate(text) if unknown & set(character.encode()))
            raise ValueError(
                f"Tokenizer.encode: the vocabulary has no token for {text[position]!r} at position {position}; remove "
                "it from the text."
            )

    def encode_inside(self, text: str) -> list[int]:
        """``encode`` of what stands inside a longer text: without the blank that some tokenizers put before a text.

        Raises:
            ValueError: as ``encode``.

        >>> Tokenizer.characters("ab").encode_inside("ab")
        [2, 3]
        """
        if self._blank_before and text:
            for neighbor in backend.NEIGHBORS:
                alone, ids = self.encode_all([neighbor, neighbor + text])
                if ids[: len(alone)] == alone:
                    return ids[len(alone) :]
        return self.encode(text)

    def begun(self, ids: Sequence[int]) -> list[int]:
        """Ids of a text after the tokens that the tokenizer begins a text with, a beginning of sequence for most.

        They are not put there twice. A conversation needs none: its chat template writes them.

        Args:
            ids: as ``encode`` gives them.

        >>> Tokenizer.characters("ab").begun([2, 3])
        [2, 3]
        """
        beginning = self._beginning
        return list(ids) if list(ids[: len(beginning)]) == beginning else [*beginning, *ids]

    @cached_property
    def _beginning(self) -> list[int]:
        return backend.beginning(self._fast)

    @cached_property
    def _blank_before(self) -> bool:
        """Whether a text's tokens depend on its being a text's beginning, as SentencePiece's do."""
        for text in backend.NEIGHBORS:
            try:
                once, twice = self.encode_all([text, text + text])
            except ValueError:
                continue
            if self.decode(once + once) != self.decode(twice):
                return True
        return False

    @cached_property
    def _unknown_bytes(self) -> bytes:
        return backend.unknown_bytes(self._fast)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids, no space touched; special tokens are left out unless ``skip_special`` is False.

        What was encoded comes back exactly, but for what a tokenizer of other make changes in a text, its letters' case
        for one.

        Raises:
            ValueError: what the backend does not take for ids.
        """
        # Numpy and JAX scalars are welcome; the backend wants plain ints.
        plain = [int(token) for token in ids]
        try:
            return self._fast.decode(plain, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        except Exception as error:
            raise ValueError(
                f"Tokenizer.decode: the tokenizer cannot decode the ids ({one_line(error)}); give ids of its own."
            ) from error

    def encode_prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt, ready for the model to continue: of its ``prompt_text``.

        Text without a chat template begins as the tokenizer begins a text: with a beginning of sequence, for most.

        Args:
            prompt: text, or messages ``{"role": ..., "content": ...}``.

        Raises:
            ValueError: as ``prompt_text`` and ``encode``.
        """
        ids = self.encode(self.prompt_text(prompt))
        return ids if self.has_chat_template else self.begun(ids)

    def prompt_text(self, prompt: str | Sequence[Message]) -> str:
        """Text of a prompt, ready for the model to continue.

        With a chat template a string becomes one user message, and the template opens the assistant's turn; where the
        last message is the assistant's, it is the beginning of the answer and stays open. Without a template a string
        is what it is.

        Args:
            prompt: text, or messages ``{"role": ..., "content": ...}``.

        Raises:
            ValueError: messages without a chat template, or messages that the template does not take.

        >>> Tokenizer.characters("ab").prompt_text("ab")
        'ab'
        """
        if isinstance(prompt, str) and not self.has_chat_template:
            return prompt
        given = self._messages("prompt", prompt)
        continues = given[-1]["role"] == "assistant"
        return (chat.render_continued if continues else chat.render_open)(self._fast, given)

    def opened_text(self, messages: Sequence[Message]) -> str:
        """Text that the chat template makes of whole turns, and of the assistant's next turn opened after them.

        Args:
            messages: ``{"role": ..., "content": ...}``.

        Raises:
            ValueError: no chat template, or messages that it does not take.
        """
        return chat.render_open(self._fast, self._messages("conversation", messages))

    def conversation_text(self, messages: Sequence[Message]) -> str:
        """Text that the chat template makes of whole turns; nothing is opened after them.

        Args:
            messages: ``{"role": ..., "content": ...}``.

        Raises:
            ValueError: no chat template, or messages that it does not take.
        """
        return chat.render_closed(self._fast, self._messages("conversation", messages))

    def answer_frame(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        """What the chat template writes before and after an answer to these messages; None where that cannot be seen.

        Args:
            messages: ``{"role": ..., "content": ...}``, those before the answer.

        Raises:
            ValueError: no chat template, or messages that it does not take.
        """
        return chat.frame(self._fast, self._messages("conversation", messages))

    def _messages(self, what: str, prompt: str | Sequence[Message]) -> list[dict[str, Any]]:
        if not self.has_chat_template:
            raise ValueError(
                f"Tokenizer: the {what} is a list of messages, wanted a string, as the model's tokenizer has no chat "
                "template; give a string, or take a model with one, such as an instruction model."
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        given = [chat.plain_message(message) for message in messages]
        if not given or any("role" not in message or "content" not in message for message in given):
            raise ValueError(
                f"Tokenizer: the messages are {given!r}, wanted a list of at least one {{'role': ..., 'content': ...}}."
            )
        return given

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for one completion, fed id by id: see :class:`StreamDecoder`."""
        return StreamDecoder(self)

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json``, its settings, the chat template and the stop ids (``generation_config.json``)."""
        target = Path(directory)
        self._fast.save_pretrained(str(target))
        settings = target / "tokenizer_config.json"
        fields = json.loads(settings.read_text(encoding="utf-8"))
        # transformers 5 writes a class name that transformers 4 does not know; both know this one.
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
        # So is the new name of the further special tokens: transformers 4 cannot read a list there.
        if isinstance(fields.get("extra_special_tokens"), list):
            fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
        fields = {name: value for name, value in fields.items() if name not in _OF_LOADING}
        settings.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        stops = json.dumps(self.special_ids(), indent=2) + "\n"
        (target / "generation_config.json").write_text(stops, encoding="utf-8")

    def special_ids(self) -> dict[str, int | list[int]]:
        """The ids under the names that Hugging Face's configuration files give them; absent ones are left out.

        >>> Tokenizer.characters("ab").special_ids()
        {'eos_token_id': 1, 'pad_token_id': 0}
        """
        eos = self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids) or None
        pad = self.pad_id if eos is not None else self._fast.pad_token_id
        named = {"bos_token_id": self.bos_id, "eos_token_id": eos, "pad_token_id": pad}
        return {name: value for name, value in named.items() if value is not None}


class StreamDecoder:
    """Printable pieces of one growing completion; a character of several bytes is held back until it is whole.

    The pieces, ``flush`` included, join to ``tokenizer.decode(ids)``.

    >>> decoder = Tokenizer.characters("ab").stream_decoder()
    >>> [decoder.push(token) for token in (2, 3, 1)] + [decoder.flush()]
    ['a', 'b', '', '']
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # printed already; kept so that a leading space is decoded as inside the text
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Take one id; return the text that it completes, empty while a character is unfinished."""
        self._pending.append(int(token))
        piece = self._piece()
        # An unfinished character decodes to the replacement character, at the very end.
        return "" if piece.endswith("\ufffd") else self._emit(piece)

    def flush(self) -> str:
        """Return what is still held back, with replacement characters for bytes that never became a character."""
        return self._emit(self._piece())

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]

    def _emit(self, piece: str) -> str:
        if piece:
            self._context = self._pending
        else:  # only special tokens: the text before them stays the context
            self._context = self._context + self._pending
        self._pending = []
        return piece


def _listed_eos(directory: Path) -> list[int]:
    """The stop ids that ``generation_config.json`` lists, in its order; without such a file, ``config.json``."""
    for file in (directory / "generation_config.json", directory / "config.json"):
        if file.is_file():
            return Fields(file, read_json(file)).ids("eos_token_id", _LARGEST_ID)
    return []
