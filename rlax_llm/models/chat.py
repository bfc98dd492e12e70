"""What a chat template makes of messages: prompts to be answered or continued, whole conversations, ends of turns.

A template is a stranger's program. It runs in jinja's sandbox, as transformers runs it, and within a number of steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

Message = Mapping[str, Any]

MAX_STEPS = 1_000_000
"""Lines and calls that one rendering may run; a conversation of hundreds of long turns takes a hundredth of it."""
_MARK = "ANSWERSTANDSHERE"
_REASONING = ("<think>", "</think>")


class _TooLong(Exception):
    """A template ran for more than its steps."""


def content_text(content: Any) -> str:
    """The content of a message as one string: text stays what it is, the texts of a list of parts are joined.

    Args:
        content: a string, or a list of ``{"type": "text", "text": ...}``.

    Raises:
        ValueError: something else, an image for one.

    >>> content_text([{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}])
    '1+1?'
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not (isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text"):
            found = part.get("type", part) if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"the content of a message holds {found!r}, wanted text or parts of type 'text'.")
    return "".join(part["text"] for part in parts)


def plain_message(message: Message) -> dict[str, Any]:
    """A message without its nulls, its content as one string, empty where it has calls of tools and no content.

    Args:
        message: ``{"role": ..., "content": ...}``.

    Raises:
        ValueError: as ``content_text``.

    >>> plain_message({"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": None})
    {'role': 'user', 'content': 'Hi'}
    """
    # A table of fixed columns fills the fields that a message has not with null; a template takes them for there.
    given = {name: value for name, value in message.items() if value is not None}
    if given.get("tool_calls"):
        given.setdefault("content", "")
    return given | ({"content": content_text(given["content"])} if "content" in given else {})


def render_open(fast: Any, messages: Sequence[Message]) -> str:
    """Text of whole turns with the assistant's next turn opened after them.

    Args:
        fast: a fast tokenizer of transformers with a chat template.
        messages: any.

    Raises:
        ValueError: the template does not take them.
    """
    return _rendered(fast, messages, add_generation_prompt=True)


def render_closed(fast: Any, messages: Sequence[Message]) -> str:
    """Text of whole turns; nothing is opened after them.

    Args:
        fast: a fast tokenizer of transformers with a chat template.
        messages: any.

    Raises:
        ValueError: the template does not take them.
    """
    return _rendered(fast, messages, add_generation_prompt=False)


def render_continued(fast: Any, messages: Sequence[Message]) -> str:
    """Text up to the end of the last message's content, with its turn left open.

    Some templates write an empty reasoning before a content that has none yet. A content that has opened its reasoning
    and not closed it stands directly after the opened turn instead.

    Args:
        fast: a fast tokenizer of transformers with a chat template.
        messages: the last one is the assistant's beginning.

    Raises:
        ValueError: the template does not take them, or leaves out some of the beginning.
    """
    text = _rendered(fast, messages, continue_final_message=True)
    beginning = str(messages[-1]["content"])
    if not has_open_reasoning(beginning) or len(messages) == 1:
        return text
    before = render_open(fast, messages[:-1])
    if before.rstrip().endswith(_REASONING[0]):
        before = before[: before.rindex(_REASONING[0])]
    return text if remove_blanks(text) == remove_blanks(before + beginning) else before + beginning


def remove_blanks(text: str) -> str:
    """Text without any blank: templates strip what they are given, and break lines around it.

    >>> remove_blanks(" a \\n b")
    'ab'
    """
    return "".join(text.split())


def has_open_reasoning(text: str) -> bool:
    """Whether a text opens reasoning that it does not close.

    >>> has_open_reasoning("<think>1+1"), has_open_reasoning("<think>1+1</think>2"), has_open_reasoning("2")
    (True, False, False)
    """
    return text.rfind(_REASONING[0]) > text.rfind(_REASONING[1])


def frame(fast: Any, messages: Sequence[Message]) -> tuple[str, str] | None:
    """What the template writes before and after an answer that comes after these messages; None where it shows none.

    Args:
        fast: a fast tokenizer of transformers with a chat template.
        messages: those before the answer.

    Raises:
        ValueError: the template does not take them.
    """
    text = render_closed(fast, [*messages, {"role": "assistant", "content": _MARK}])
    before, mark, behind = text.partition(_MARK)
    return (before, behind) if mark and _MARK not in behind else None


def turn_end(fast: Any) -> int | None:
    """The token that ends the assistant's turn in the chat template, or None where there is none.

    It is the first added token that the template writes after an answer, unless it opens turns too.

    Args:
        fast: a fast tokenizer of transformers.
    """
    if not fast.chat_template:
        return None
    question = [{"role": "user", "content": "?"}]
    try:
        around = frame(fast, question)
        header = render_open(fast, question).removeprefix(render_closed(fast, question))
    except ValueError:
        # It takes no such conversation; those that it is given say why.
        return None
    added = {str(token): index for index, token in fast.added_tokens_decoder.items()}
    ends = [(around[1].index(token), token) for token in added if around and token in around[1]]
    # A token inside another one, such as <end> in <|end>, is not the one that is written.
    first = min(ends, key=lambda end: (end[0], -len(end[1])), default=None)
    return None if first is None or first[1] in header else added[first[1]]


def _rendered(fast: Any, messages: Sequence[Message], **settings: bool) -> str:
    try:
        _check_powers(fast.get_chat_template())
        with _within(MAX_STEPS):
            return fast.apply_chat_template(list(messages), tokenize=False, **settings)
    except _TooLong:
        raise ValueError(
            f"Tokenizer: the chat template has not ended after {MAX_STEPS:,} steps over {len(messages)} messages; "
            "take a model whose chat template ends, or mend its chat_template.jinja."
        ) from None
    except Exception as error:
        do = "give the roles in the order that the model was trained on"
        if settings.get("continue_final_message"):
            do = "a template must write the beginning that it is to continue; end the prompt in the user's turn"
        raise ValueError(f"Tokenizer: the chat template refuses the messages ({one_line(error)}); {do}.") from error


@contextmanager
def _within(limit: int) -> Iterator[None]:
    """Let this thread run no more than ``limit`` calls, and lines of jinja templates.

    Jinja bounds one ``range``, and nothing bounds loops in loops. Counting is exact and the same on every machine,
    which a limit of time is not, and it works in any thread.
    """
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        if count > limit:
            raise _TooLong
        return counted if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(counted)
    try:
        yield
    finally:
        sys.settrace(before)


@lru_cache
def _check_powers(template: str) -> None:
    """Refuse powers: ``9 ** 9 ** 9`` is one step that never ends, taken already where a template is compiled."""
    import jinja2

    before = ""
    for line, kind, text in jinja2.Environment().lex(template):
        if kind == "whitespace":
            continue
        # Behind a parenthesis or a comma it hands over named arguments.
        if kind == "operator" and text == "**" and before not in ("(", ","):
            raise ValueError(f"line {line} takes a power, which a chat template needs for nothing")
        before = text


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop.

    >>> one_line(ValueError("no.\\nmore"))
    'no'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
