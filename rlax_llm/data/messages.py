"""Text of a row: a string, or a list of chat messages."""

from __future__ import annotations

from typing import Any

from rlax_llm.data.rows import DataError
from rlax_llm.data.tables import kind

Message = dict[str, Any]
Text = str | list[Message]


class Verbatim(str):
    """Text that stands for itself: no chat template is applied to it.

    A plain string is a user's message, or the assistant's answer to it, wherever the tokenizer has a chat template. A
    text with its own turns, or with none, is not.

    >>> Verbatim("Human: Hi") == "Human: Hi"
    True
    """

    __slots__ = ()


def check_text(where: str, name: str, text: Any) -> None:
    """Raise unless ``text`` is a string or a list of messages with a role and a content each, and not empty.

    Args:
        where: the row, for the error.
        name: the column, for the error.
        text: what the column holds.

    Raises:
        DataError: naming the row and the column.

    >>> check_text("line 1", "prompt", "")
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: line 1: the prompt is empty.
    """
    if not isinstance(text, (str, list)):
        raise DataError(f"{where}: the {name} is {kind(text)}, wanted a string or a list of messages.")
    if not text:
        raise DataError(f"{where}: the {name} is empty.")
    for index, message in enumerate(text if isinstance(text, list) else []):
        if not isinstance(message, dict):
            raise DataError(f"{where}: message {index} of the {name} is {kind(message)}, wanted an object.")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                found = kind(message[field]) if field in message else "missing"
                raise DataError(f"{where}: message {index} of the {name} has {field!r} {found}, wanted a string.")


def answer_text(where: str, name: str, text: Any, prompt: Text) -> Text:
    """One answer of the assistant, in the form of its prompt: a string, or a list of one message.

    Args:
        where: the row, for the error.
        name: the column, for the error.
        text: what the column holds: a string or one assistant message.
        prompt: what it answers.

    Raises:
        DataError: an answer that is empty, of a wrong type, not the assistant's, or of several messages.

    >>> answer_text("line 1", "completion", [{"role": "assistant", "content": "2"}], "1+1=")
    '2'
    """
    check_text(where, name, text)
    content = text if isinstance(text, str) else answers(where, name, text)[-1]["content"]
    if not isinstance(text, str) and len(text) > 1:
        raise DataError(f"{where}: the {name} has {len(text)} messages, wanted one, the assistant's.")
    if not content:
        raise DataError(f"{where}: the {name} is empty.")
    if isinstance(prompt, str):
        return content
    return [{"role": "assistant", "content": content}] if isinstance(text, str) else text


def answers(where: str, name: str, messages: list[Message]) -> list[Message]:
    """The messages, if the last one is the assistant's.

    Raises:
        DataError: naming the row and whose the last message is.

    >>> len(answers("line 1", "messages", [{"role": "assistant", "content": "2"}]))
    1
    """
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the last message of the {name} is the {messages[-1]['role']}'s, wanted the assistant's."
        )
    return messages
