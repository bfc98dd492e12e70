"""Text of a row: a string, or a list of chat messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlax_llm.data.rows import DataError
from rlax_llm.data.tables import json_kind
from rlax_llm.models.chat import content_text, plain_message

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


def begun_answer(prompt: str | list[Message]) -> str:
    """The beginning of the answer that a prompt holds: its last message's text where that is the assistant's, else ''.

    Args:
        prompt: a string, or messages.

    >>> begun_answer([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>"}])
    '<think>'
    >>> begun_answer("2+2=")
    ''
    """
    if isinstance(prompt, str) or prompt[-1].get("role") != "assistant":
        return ""
    return content_text(prompt[-1].get("content") or "")


def asked_as(prompt: Text, write: Callable[[str], str]) -> Text:
    """A prompt with its question in other words, and all else as it was.

    The question is the whole of a string, and of messages the last one that is not the assistant's: an answer that the
    prompt begins stays a beginning.

    Args:
        prompt: a string, or messages.
        write: ``question → question``.

    >>> asked_as("2+2=", lambda question: "Add: " + question)
    'Add: 2+2='
    >>> begun = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is"}]
    >>> [message["content"] for message in asked_as(begun, lambda question: question + " Say it.")]
    ['2+2? Say it.', 'It is']
    """
    if isinstance(prompt, str):
        return write(prompt)
    asked = [place for place, message in enumerate(prompt) if message.get("role") != "assistant"]
    place = asked[-1] if asked else len(prompt) - 1
    question = content_text(prompt[place].get("content") or "")
    return [*prompt[:place], prompt[place] | {"content": write(question)}, *prompt[place + 1 :]]


def check_text(where: str, name: str, text: Any) -> None:
    """Raise unless ``text`` is a string or a list of messages with a role and a content each, and not empty.

    A content is a string or a list of text parts; with calls of tools it may be missing. Half of a character (a lone
    surrogate, as a cut through an emoji leaves it) is in none of them: no tokenizer takes it.

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
        raise DataError(f"{where}: the {name} is {json_kind(text)}, wanted a string or a list of messages.")
    if not text:
        raise DataError(f"{where}: the {name} is empty.")
    if isinstance(text, str):
        _check_whole(where, f"the {name}", text)
        return
    for index, message in enumerate(text):
        _check_message(where, f"message {index} of the {name}", message)


def _check_message(where: str, name: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise DataError(f"{where}: {name} is {json_kind(message)}, wanted an object.")
    for field in ("role", "content"):
        value = message.get(field)
        if field == "content" and (isinstance(value, list) or (value is None and message.get("tool_calls"))):
            continue
        if not isinstance(value, str):
            found = json_kind(message[field]) if field in message else "missing"
            raise DataError(f"{where}: {name} has {field!r} {found}, wanted a string.")
    try:
        _check_whole(where, name, content_text(plain_message(message)["content"]))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: {name}: {error}") from error


def _check_whole(where: str, name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {name} has half of a character, {text[error.start]!r} (a lone surrogate), at position "
            f"{error.start}; write the character whole or remove it."
        ) from None


def answer_text(where: str, name: str, text: Any, prompt: Text) -> Text:
    """An answer of the assistant, in the form of its prompt: a string, or a list of messages.

    Several messages are several turns, tools' and users' among them, of which the last one is the assistant's.

    Args:
        where: the row, for the error.
        name: the column, for the error.
        text: what the column holds: a string or messages.
        prompt: what it answers.

    Raises:
        DataError: an answer that is empty, of a wrong type or not the assistant's.

    >>> answer_text("line 1", "completion", [{"role": "assistant", "content": "2"}], "1+1=")
    '2'
    """
    check_text(where, name, text)
    if isinstance(text, str):
        return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    last = answers(where, name, text)[-1]
    content = plain_message(last)["content"]
    if not content and not last.get("tool_calls"):
        raise DataError(f"{where}: the {name} is empty.")
    return content if isinstance(prompt, str) and len(text) == 1 else text


def answers(where: str, name: str, messages: list[Message]) -> list[Message]:
    """The messages, if the last one is the assistant's, and the one before it is not.

    Args:
        where: the row, for the error.
        name: what the messages are, for the error.
        messages: as ``check_text`` takes them.

    Raises:
        DataError: naming the row and whose the last message is.

    >>> len(answers("line 1", "messages", [{"role": "assistant", "content": "2"}]))
    1
    """
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the last message of the {name} is the {messages[-1]['role']}'s, wanted the assistant's."
        )
    if len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise DataError(f"{where}: the last two messages of the {name} are both the assistant's; join them into one.")
    return messages
