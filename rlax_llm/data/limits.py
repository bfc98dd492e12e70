"""Rows that keep to a run's limits of tokens; the others are left out, never cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlax_llm.data.encoding import PairTokens, Tokens
from rlax_llm.data.rows import DataError, Row, of_row
from rlax_llm.models.tokenizer import Tokenizer


class Limits(NamedTuple):
    """What rows must keep to; None is no limit.

    Attributes:
        max_prompt_tokens: longest prompt.
        max_new_tokens: longest completion, stop token included.
        vocab_size: ids lie below it.
    """

    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    vocab_size: int | None = None


def keep_within(limits: Limits) -> Callable[[Sequence[Tokens]], Sequence[Tokens]]:
    """``rows → rows``, for ``Kept.then``: the same rows, if they keep to the limits.

    Args:
        limits: in tokens.

    Returns:
        A function that raises a ``DataError``, which names the row, for a prompt or completion that is too long, and
        for a token beyond the vocabulary.

    >>> from rlax_llm.data.encoding import DemonstrationTokens
    >>> keep_within(Limits(max_prompt_tokens=1))([DemonstrationTokens([2, 2], [3, 1], where="line 2")])
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: line 2: the prompt has 2 tokens, more than max_prompt_tokens 1; raise it or leave ...
    """

    def check(rows: Sequence[Tokens]) -> Sequence[Tokens]:
        for row in rows:
            completions = (
                (row.chosen, row.rejected, row.gold or []) if isinstance(row, PairTokens) else [row.completion]
            )
            _check(f"{row.where}: ", row.prompt, max(completions, key=len), limits)
            for ids in completions:
                _check_vocabulary(f"{row.where}: ", ids, limits)
        return rows

    return check


def keep_prompts_within(tokenizer: Tokenizer, limits: Limits) -> Callable[[Sequence[Row]], Sequence[Row]]:
    """``rows → rows``, for ``Kept.then``: the same rows, if their prompts can be read and keep to the limits.

    Args:
        tokenizer: the model's.
        limits: in tokens.

    Returns:
        A function that raises a ``DataError`` for a prompt that the tokenizer refuses, that has no tokens or too many,
        or one beyond the vocabulary.

    >>> keep_prompts_within(Tokenizer.characters("1+="), Limits(max_prompt_tokens=3))([{"prompt": "1+1="}])
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: the prompt has 4 tokens, more than max_prompt_tokens 3; raise it or leave the row out.
    """

    def check(rows: Sequence[Row]) -> Sequence[Row]:
        for row in rows:
            try:
                ids = tokenizer.encode_prompt(row["prompt"])
            except ValueError as error:
                raise DataError(of_row(error)) from error
            if not ids:
                raise DataError("the prompt has no tokens; a completion needs at least one before it.")
            _check("", ids, (), limits)
        return rows

    return check


def _check(where: str, prompt: Sequence[int], completion: Sequence[int], limits: Limits) -> None:
    named = (("prompt", prompt, "max_prompt_tokens"), ("completion", completion, "max_new_tokens"))
    for what, ids, name in named:
        limit = getattr(limits, name)
        if limit is not None and len(ids) > limit:
            raise DataError(
                f"{where}the {what} has {len(ids)} tokens, more than {name} {limit}; raise it or leave the row out."
            )
    _check_vocabulary(where, prompt, limits)


def _check_vocabulary(where: str, ids: Sequence[int], limits: Limits) -> None:
    if limits.vocab_size is not None and max(ids, default=0) >= limits.vocab_size:
        raise DataError(
            f"{where}token {max(ids)} is beyond the model's vocabulary of {limits.vocab_size}; use the model's own "
            "tokenizer."
        )
