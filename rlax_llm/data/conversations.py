"""An exchange as pieces of text: what a sampler reads, what a model has to write after it, and so on in turn.

A prompt is what the chat template makes of the turns before an answer, with the assistant's turn opened: exactly the
text that generation reads. An answer is what a model has to write after that text, up to and with the token that ends
its turn. What stands between two answers is what the template adds of the turns between them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlax_llm.data.messages import Message
from rlax_llm.models.chat import plain_message, remove_blanks
from rlax_llm.models.tokenizer import Tokenizer

Pieces = list[str]
"""Of text: prompt, answer, what lies between, answer, …"""

_REWRITES = (
    "the chat template's text of the conversation does not begin with its text of the prompt; use a template that "
    "writes earlier turns alike"
)
_LEFT_OUT = "use a chat template that writes all of it, or remove from the row what the model is not to learn"
_SAID = ("content", "reasoning_content", "reasoning", "thinking")


def conversation_pieces(
    tokenizer: Tokenizer, stops: Sequence[str], turns: tuple[Sequence[Message], Sequence[Message]], prompt_text: str
) -> Pieces:
    """Prompt, answer, what lies between, answer, …: each prompt as generation has it, each answer to be written.

    Where the prompt ends in the assistant's turn, the first answer continues it.

    Args:
        tokenizer: with a chat template.
        stops: texts of the tokens that end a turn.
        turns: the messages of the prompt; the answers, with what lies between them.
        prompt_text: the prompt's text, ``tokenizer.prompt_text``.

    Raises:
        ValueError: a template that writes earlier turns otherwise than it did, or leaves out some of an answer; a stop
            token inside an answer; reasoning that the prompt opens and the answer does not close.
    """
    messages, first = _joined(*turns)
    pieces: Pieces = []
    done = ""
    for index in range(first, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        before = tokenizer.opened_text(messages[:index]) if pieces or index > first else prompt_text
        if not before.startswith(done):
            raise ValueError(f"{_REWRITES}, or learn from the last answer alone.")
        answer = _answer(tokenizer, messages[: index + 1], before)
        _check_said(messages[index], before, answer)
        _check_stops(messages[index], stops)
        ends = [answer.index(stop) + len(stop) for stop in stops if stop in answer]
        answer = answer[: min(ends, default=len(answer))]
        pieces += [before[len(done) :], answer]
        done = before + answer
    return pieces


def _joined(prompt: Sequence[Message], answers: Sequence[Message]) -> tuple[list[Message], int]:
    """All messages, and the first one that may be an answer; a beginning and its continuation are one message."""
    messages = [plain_message(message) for message in (*prompt, *answers)]
    first = len(prompt)
    if messages[first - 1]["role"] != "assistant" or messages[first]["role"] != "assistant":
        return messages, first
    whole = messages[first - 1] | messages[first]
    whole["content"] = messages[first - 1]["content"] + messages[first]["content"]
    return [*messages[: first - 1], whole, *messages[first + 1 :]], first - 1


def _answer(tokenizer: Tokenizer, messages: Sequence[Message], before: str) -> str:
    """What is to be written after ``before`` so that the last message is said, with what the template ends it in."""
    whole = tokenizer.conversation_text(messages)
    if whole.startswith(before):
        return whole[len(before) :]
    around = tokenizer.answer_frame(messages[:-1])
    if around is None or not before.startswith(around[0]):
        raise ValueError(f"{_REWRITES}.")
    # The prompt opens something that the template leaves out of whole conversations: reasoning, in newer ones.
    opening = before[len(around[0]) :]
    return _behind(opening, messages[-1]["content"]) + around[1]


def _behind(opening: str, content: str) -> str:
    """What of a content comes after an opening that the prompt has written already."""
    mark = opening.strip()
    text = content.lstrip()
    if text.startswith(mark):
        text = text[len(mark) :]
        blank = opening[len(opening.rstrip()) :]
        return text[len(blank) :] if text.startswith(blank) else text
    closing = mark.replace("<", "</", 1)
    if mark.startswith("<") and mark.endswith(">") and mark.count("<") == 1 and closing not in content:
        raise ValueError(
            f"the chat template's prompt ends in {mark!r}, and the answer has no {closing!r}; begin the answer with "
            f"its reasoning, {mark}…{closing}, or use a chat template whose prompt does not open it."
        )
    return content


def _check_said(message: Message, before: str, answer: str) -> None:
    """Raise where the template leaves out some of what the message says; blanks may change."""
    written = remove_blanks(answer)
    for call in message.get("tool_calls") or ():
        name = str(call.get("function", call).get("name"))
        if remove_blanks(name) not in written:
            raise ValueError(f"the chat template leaves out the answer's call of the tool {name!r}; {_LEFT_OUT}.")
    for field in _SAID:
        said = message.get(field)
        if not isinstance(said, str) or remove_blanks(said) in written:
            continue
        if not _meets(remove_blanks(said), remove_blanks(before[-2 * len(said) :]), written):
            shown = said if len(said) < 60 else f"{said[:40]}…{said[-15:]}"
            raise ValueError(
                f"the chat template leaves out some of the answer's {field} ({shown!r}), so it would not be learned; "
                f"{_LEFT_OUT}."
            )


def _meets(said: str, before: str, written: str) -> bool:
    """Whether the prompt ends in a beginning of what is said, and the answer begins with the rest."""
    cuts = range(1, len(said))
    return any(written.startswith(said[cut:]) and before.endswith(said[:cut]) for cut in cuts)


def _check_stops(message: Message, stops: Sequence[str]) -> None:
    said = [message[field] for field in _SAID if isinstance(message.get(field), str)]
    inside = [stop for stop in stops if any(stop in text for text in said)]
    if inside:
        raise ValueError(f"the completion holds the stop token {inside[0]!r}; remove it from the text.")
