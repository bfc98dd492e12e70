r"""The answer that a completion ends in: its last box, tags, mark or phrase, or else its last number or formula."""

from __future__ import annotations

import re
from typing import NamedTuple

from rlax_llm.rewards.notation import closing_brace
from rlax_llm.rewards.units import MULTIPLES, known_unit


class FinalAnswer(NamedTuple):
    """What a completion gives as its answer.

    Attributes:
        text: the answer, and nothing else if it is in a box.
        marked: whether a box, tags, ``####`` or a phrase says that it is the answer.
        boxed: whether a box does.
    """

    text: str
    marked: bool = True
    boxed: bool = False


_TAGS = re.compile(
    r"<(?P<tag>answer|final_answer|solution)\s*>(?P<inside>.*?)(?:</(?P=tag)\s*>|$)", re.DOTALL | re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BETWEEN_BOXES = re.compile(
    r"(?:\$|\\[()\[\],;: ]|\s|[,;&*]|\band\b|\bor\b|\\text{\s*(?:and|or)\s*}|\\q?quad|[a-zA-Z]\s*=)*"
)
_PHRASE = re.compile(
    r"(?i)\b(?:answer|(?:option|choice)(?=\s+is\b))\s*(?:\**\s*(?:is|:|=|should be|would be|must be|->)\s*\**\s*:?)+\s*"
)
_SENTENCE_END = r"\n|(?<=[^\s.])[.!](?:\s|$)|,?\s(?:because|since|as|which)\b"
_TAIL = 4000  # characters and boxes at the end that are looked at
_BOXES = 20
_FILLING = (
    r"(?:approximately|about|exactly|simply|just|therefore|thus|equals?|equal to|given by|option|choice"
    r"|[\s:*_~\"'`(\[-])*"
)
_NAME = r"(?:(?<![A-Za-z0-9\\])(?<![-+*/=^]\s)(?<![-+*/=^])[a-zA-Z]\s*=\s*)?"
_DASH = r"-\u2212\u2010\u2013\uff0d"
_NUM = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f ]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:[.,]\d+)*|\.\d+)"
_VALUE = (
    r"(?:\\frac{[^{}]*}{[^{}]*}|\\sqrt{[^{}]*}|\u221a\(?\d+\)?|\u03c0"
    rf"|\(\s*[{_DASH}]?{_NUM}(?:\s*[-+*/\u2212]\s*{_NUM})*\s*\)"
    rf"|{_NUM}(?:[eE][-+]?\d+(?![A-Za-z]))?)"
)
_ITEM = rf"(?:[{_DASH}+]?\s?(?:\\?[$\u20ac\u00a3])?-?{_VALUE}[\u00bd-\u00be\u00bc\u00b2\u00b3\u2070-\u207f]*)"
_MORE = (
    rf"(?:\s*(?:[-+*/\u00d7\u00f7\u2212^]|\*\*|\\times|\\cdot)\s*{{?{_ITEM}}}?"
    r"|\s\d+/\d+|\s*\\frac{\d+}{\d+}"
    r"|\s?(?:\u03c0|\\pi(?![a-zA-Z]))|\s?\u221a\(?\d+\)?|\s?\\sqrt(?:\[\d+\])?{[^{}]*})*"
)
_TUPLE = rf"[(\[]\s*{_ITEM}(?:\s*,\s*{_ITEM})+\s*[)\]]"
_RUN = re.compile(
    r"(?<!\\)\$\$(?P<d1>.+?)(?<!\\)\$\$|\\\[(?P<d2>.+?)\\\]|\\\((?P<d3>.+?)\\\)"
    r"|(?<!\\)\$(?=\S)(?P<d4>(?:\\.|[^$\n\\])*?)(?<=\S)\$(?!\d)"
    rf"|(?P<tuple>{_TUPLE})"
    rf"|(?P<plain>{_NAME}(?<![\w.^\\{{])(?:(?<=[\w)\]}}])\s?-\s?)?{_ITEM}{_MORE})",
    re.DOTALL,
)
_AFTER = re.compile(
    r"\s?\\?%|\s?(?:\u00b0|\^\\?circ|degrees?\b)(?:\s?[CF]\b)?"
    r"|\s?(?:(?:square|cubic|sq\.?) )?[A-Za-z\u00b5$\u20ac]+(?:\^?\{?[23\u00b2\u00b3]\}?)?"
    r"(?:/[a-z]+|\sper\s[a-z]+)?(?![A-Za-z])"
)
_GLUED = re.compile(r"\s?\\text\s*\{[^{}]*\}(?:\^\{?[23]\}?)?|(?:[A-Za-z\u03c0\u221a^_(]|\\(?=[A-Za-z]))[^\s,;.]*")
_JOINED = re.compile(r"[^\w.]*?(?:,|;|\bor\b|\band\b|&|,\s*or|,\s*and)[^\w.]*?(?:either\s*)?")


def final_answer(text: str) -> FinalAnswer | None:
    r"""What ``text`` gives as its answer; several answers side by side are one answer, a list.

    The last ``<answer>``, in it the last ``\boxed``, then the last line with ``####``, then what follows the last
    "answer is", then the last formula in LaTeX's delimiters or number. What comes before ``</think>`` does not count.

    Args:
        text: a completion.

    >>> final_answer(r"\boxed{4}, no: \boxed{5}").text, final_answer(r"$x = \boxed{4}$ or $\boxed{5}$").text
    ('5', '4, 5')
    >>> final_answer("7 + 8 is 15, so it costs $15 or 16."), final_answer("<answer>Monday</answer>")
    (FinalAnswer(text='$15, 16', marked=False, boxed=False), FinalAnswer(text='Monday', marked=True, boxed=False))
    """
    if (after := text.rpartition("</think>")[2]).strip():
        text = after
    tagged = list(_TAGS.finditer(text))
    if tagged:
        inside = tagged[-1]["inside"]
        return _boxed(inside) or _marked_line(inside) or FinalAnswer(inside)
    if (found := _boxed(text) or _marked_line(text) or _after_phrase(text)) is not None:
        return found
    runs = answer_runs(text)
    return FinalAnswer(runs[-1], marked=False) if runs else None


def _boxed(text: str) -> FinalAnswer | None:
    boxes = []
    for found in list(_BOX.finditer(text))[-_BOXES:]:
        inside, end = _inside(text, found.end())
        if not boxes or found.start() >= boxes[-1][2]:
            boxes.append((found.start(), inside.strip(), end))
    if not boxes:
        return None
    start, inside, _ = boxes.pop()
    several = [inside]
    while boxes and _BETWEEN_BOXES.fullmatch(text, boxes[-1][2], start):
        start, inside, _ = boxes.pop()
        several += [inside] * (inside not in several)
    return FinalAnswer(", ".join(reversed(several)), boxed=True)


def _inside(text: str, start: int) -> tuple[str, int]:
    """What a box holds that opens at ``start``, and where it ends: at the latest with the line."""
    if text[start : start + 1] != "{":
        bare = re.match(r"[^\s$]*", text[start:])
        assert bare is not None
        return bare[0], start + bare.end()
    end = closing_brace(text, start)
    if end is not None:
        return text[start + 1 : end], end + 1
    line = re.split(r"\n|(?<!\\)\$", text[start + 1 :], maxsplit=1)[0]
    return line, start + 1 + len(line)


def _marked_line(text: str) -> FinalAnswer | None:
    marks = re.findall(r"^.*?####[ \t]*([^\n#]+)", text, re.MULTILINE)
    return FinalAnswer(marks[-1]) if marks else None


def _after_phrase(text: str) -> FinalAnswer | None:
    """The rest of the sentence after the last "answer is" that is followed by an answer."""
    for found in reversed(list(_PHRASE.finditer(text))):
        rest = re.split(_SENTENCE_END, text[found.end() :].lstrip(), maxsplit=1)[0].strip(" *_\t")
        if rest and not re.match(r"(?i)(?:not|unclear|unknown|found)\b", rest):
            return FinalAnswer(rest)
    return None


def leading_run(text: str) -> str | None:
    """The number or formula that a sentence begins with, and those joined to it.

    Args:
        text: what follows "the answer is".

    >>> leading_run("about 42 apples, for 6 * 7 is 42"), leading_run("less than 4")
    ('42', None)
    """
    found = _RUN.search(text)
    if found is None or not re.fullmatch(_FILLING, text[: found.start()], re.IGNORECASE):
        return None
    return answer_runs(text)[0]


def answer_runs(text: str) -> list[str]:
    """The numbers and formulas of a text in their order; those that only "or", "and" or a comma joins are one list.

    Args:
        text: prose.

    >>> answer_runs("2x is 8, so $x = 4$ or 5; that is 2π or 7 million")
    ['2x', '8', 'x = 4, 5', '2π, 7 million']
    """
    if len(text) > _TAIL:
        text = re.split(r"\n|\s", text[-_TAIL:], maxsplit=1)[-1]
    runs: list[list[str]] = []
    last = None
    for found in _RUN.finditer(text):
        content, end = _content(text, found)
        if last is not None and found.start() < last:
            continue
        if re.search(r"(?i)\b(?:not|isn't|never)\s*[$(*\\]*$", text[max(0, found.start() - 12) : found.start()]):
            continue
        if last is not None and _side_by_side(text[last : found.start()], text[end:]):
            runs[-1] += [content] * (content not in runs[-1])
        else:
            runs.append([content])
        last = end
    return [", ".join(parts) for parts in runs]


def _side_by_side(between: str, after: str) -> bool:
    """Whether what is between two numbers makes them a list; "In 2019, 42 people" has none."""
    joined = _JOINED.fullmatch(between) is not None
    return joined and not (between.strip() == "," and re.match(r"\s*[a-z]{2,}", after) is not None)


def _content(text: str, found: re.Match[str]) -> tuple[str, int]:
    delimited = next((found[name] for name in ("d1", "d2", "d3", "d4") if found[name]), None)
    if delimited is not None:
        return delimited.strip(), found.end()
    if found["tuple"]:
        return found["tuple"], found.end()
    glued = _GLUED.match(text, found.end())
    after = _AFTER.match(text, found.end())
    end = found.end()
    if after and _is_unit(after[0].strip(), text[after.end() :]):
        end = after.end()
    elif glued:
        end = glued.end()
    return text[found.start() : end].strip(), end


def _is_unit(text: str, following: str) -> bool:
    if text == "in" and not re.match(r"\s*(?:[.,;)!]|$)", following):
        return False  # "5 in all"
    if text.lower().removesuffix("s") in MULTIPLES or re.fullmatch(r"\\?%|(?:\u00b0|\^\\?circ|degrees?)\s?[CF]?", text):
        return True
    return known_unit(text.replace("\u00b2", "^2").replace("\u00b3", "^3")) is not None and text not in ("A", "a")
