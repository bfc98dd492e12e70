"""Tables whose completions repeat the prompt that stands next to them: the common part is the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlax_llm.data.messages import Message, Text, Verbatim
from rlax_llm.data.rows import DataError
from rlax_llm.data.sifting import Kept


def is_conversation(text: Text) -> bool:
    """Whether a completion holds what it answers too: messages of which the first is not the assistant's.

    Args:
        text: a completion, as ``check_text`` lets it pass.

    >>> is_conversation([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}])
    True
    """
    return isinstance(text, list) and text[0]["role"] != "assistant"


def prompt_length(where: str, name: str, prompt: Text, messages: Sequence[Message]) -> int:
    """How many messages of a conversation are its prompt's.

    Args:
        where: the row's place, for the error.
        name: what the conversation is called, for the error.
        prompt: its messages, or the text of one of them that is not the assistant's.
        messages: the conversation; a system's message may come before the prompt.

    Raises:
        DataError: the prompt is not in the conversation.

    >>> turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    >>> prompt_length("line 1", "completion", "1+1?", turns)
    1
    """
    said = [(message["role"], message["content"]) for message in messages]
    if isinstance(prompt, str):
        ends = (n for n, (role, text) in enumerate(said, 1) if role != "assistant" and _same(text, prompt))
    else:
        asked = [(message["role"], message["content"]) for message in prompt]
        ends = (n for n in range(len(asked), len(said) + 1) if said[n - len(asked) : n] == asked)
    found = next(ends, None)
    if found is None:
        raise DataError(
            f"{where}: the prompt is not in the conversation of the {name}; give an answer alone, or leave the column "
            "'prompt' out."
        )
    return found


def _same(text: Any, prompt: str) -> bool:
    return isinstance(text, str) and text.strip() == prompt.strip()


def drop_prompts(kept: Kept[Any], sides: Sequence[str]) -> Kept[Any]:
    """Records of strings without the prompt that their completions begin with, where most rows' do.

    One completion may begin with its prompt by chance, and most of a table do not; a prompt of one word may be an
    answer's first, and stays. As in an implicit prompt, the texts are then ``Verbatim``, and a space that the prompt
    ends in is the completion's. Rows that do not begin with their prompt, or hold nothing else, are left out.

    Args:
        kept: records with a ``prompt``.
        sides: the names of their completions.

    Raises:
        DataError: no row is left.

    >>> from rlax_llm.data.preferences import Pair
    >>> from rlax_llm.data.sifting import number_rows
    >>> pairs = number_rows("d", [Pair("Q: 1+1? A:", "Q: 1+1? A: 2", "Q: 1+1? A: 3")])
    >>> drop_prompts(pairs, ("chosen", "rejected"))[0][:3]
    ('Q: 1+1? A:', ' 2', ' 3')
    """
    repeating = sum(_repeats(record, sides) for record in kept)
    if 2 * repeating <= len(kept):
        return kept
    named = " and ".join(sides)
    cut = kept.then(lambda records: [_cut(record, sides, named) for record in records])
    note = f"{kept.name}: {named} begin with the prompt, which is taken once and without a chat template"
    return cut.noted(note)


def _repeats(record: Any, sides: Sequence[str]) -> bool:
    prompt = record.prompt
    if not isinstance(prompt, str) or isinstance(prompt, Verbatim) or len(prompt.split()) < 2:
        return False
    return all(getattr(record, side).startswith(prompt) for side in sides)


def _cut(record: Any, sides: Sequence[str], named: str) -> Any:
    if not _repeats(record, sides):
        raise DataError(f"{record.where}: {named} do not begin with the prompt, as most rows' do.")
    prompt = record.prompt.removesuffix(" ")
    rests = {side: Verbatim(getattr(record, side)[len(prompt) :]) for side in sides}
    for side, rest in rests.items():
        if not rest.strip():
            raise DataError(f"{record.where}: the {side} is empty after the prompt.")
    return record._replace(prompt=Verbatim(prompt), **rests)
