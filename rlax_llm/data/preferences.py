"""Rows of a table as records: pairs, labeled completions, labeled steps and demonstrations, in the columns that TRL
reads, or in those of others that ``data.shapes`` knows.

Every form is *standard* (strings) or *conversational* (lists of messages). Columns that a form does not name are kept.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from rlax_llm.core.names import did_you_mean, likeness
from rlax_llm.data.messages import Message, Text, Verbatim, answer_text, answers, check_text
from rlax_llm.data.repeated import drop_prompts, is_conversation, prompt_length
from rlax_llm.data.rows import DataError, Row
from rlax_llm.data.shapes import read_shaped, shaped
from rlax_llm.data.sifting import Kept, Tables, flatten_rows, keep_commonest, of_each, sift
from rlax_llm.data.tables import check_characters, json_kind, list_columns

_FORMS = {
    "a preference": ("prompt", "chosen", "rejected"),
    "an unpaired preference": ("prompt", "completion", "label"),
    "a completion of labeled steps": ("prompt", "completions", "labels"),
    "a demonstration": ("prompt", "completion"),
    "a conversation": ("messages",),
    "a text": ("text",),
}
_NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})


class Pair(NamedTuple):
    """Two completions of one prompt, one preferred.

    Attributes:
        prompt: text or messages.
        chosen: text or, after messages, one assistant message in a list.
        rejected: as ``chosen``, another one.
        margin: by how much it is preferred, in the units of rewards, or None where the table has no margins.
        where: the row's place, for errors.
        columns: the table's other columns.
        gold: a third completion, an answer that is known to be good; None where nobody asked for it.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float | None = None
    where: str = "a pair"
    columns: Mapping[str, Any] = _NO_COLUMNS
    gold: Text | None = None


class Labeled(NamedTuple):
    """A completion that is desirable or not.

    Attributes:
        prompt: text or messages.
        completion: text or, after messages, one assistant message in a list.
        label: True where desirable.
        where: the row's place, for errors.
        columns: the table's other columns.
    """

    prompt: Text
    completion: Text
    label: bool
    where: str = "a labeled completion"
    columns: Mapping[str, Any] = _NO_COLUMNS


class Stepwise(NamedTuple):
    """A completion whose steps are right or not.

    Attributes:
        prompt: text or messages.
        steps: texts, at least one.
        labels: of each step, True where right.
        where: the row's place, for errors.
        columns: the table's other columns.
    """

    prompt: Text
    steps: Sequence[str]
    labels: Sequence[bool]
    where: str = "a completion of labeled steps"
    columns: Mapping[str, Any] = _NO_COLUMNS


class Demonstration(NamedTuple):
    """A completion to imitate.

    Attributes:
        prompt: text or messages; ``Verbatim("")`` before a whole text.
        completion: text or, after messages, assistant messages with what lies between them; the last is the
            assistant's.
        where: the row's place, for errors.
        columns: the table's other columns.
    """

    prompt: Text
    completion: Text
    where: str = "a demonstration"
    columns: Mapping[str, Any] = _NO_COLUMNS


def pair(where: str, row: Row) -> Pair:
    """A pair from ``prompt, chosen, rejected``, or from ``chosen, rejected`` that both begin with the prompt.

    Beside a ``prompt`` too, chosen and rejected may be whole conversations that hold it; the prompt is then what they
    have in common. An implicit prompt is the longest common beginning. Of messages it is whole messages. Of strings it
    is cut back by one character where it would be the whole of either side, and by one space that it would end in,
    since tokens carry the space before a word; it may end inside a word that both sides begin with. It is then
    ``Verbatim``, as are both sides, for such strings hold their turns themselves.

    Args:
        where: the row's place, for errors.
        row: the columns; ``margin``, if there and not null, is a finite number.

    Raises:
        DataError: naming the row: a column that is missing or of a wrong type, a completion that is empty or not one
            of the assistant's, chosen equal to rejected, no common beginning, a margin that is not finite.

    >>> pair("line 1", {"chosen": "1+1= 2", "rejected": "1+1= 3"})[:3]
    ('1+1=', ' 2', ' 3')
    """
    used = _FORMS["a preference"]
    _require(where, row, "a preference", used if "prompt" in row else used[1:])
    for name in used[1:]:
        check_text(where, name, row[name])
    _check_different(where, row["chosen"], row["rejected"])
    chosen = row["chosen"]
    rejected = row["rejected"]
    prompt: Any = row.get("prompt")
    if "prompt" in row:
        check_text(where, "prompt", prompt)
    if "prompt" not in row or (is_conversation(chosen) and is_conversation(rejected)):
        prompt, chosen, rejected = _implicit(where, chosen, rejected)
        if "prompt" in row:
            prompt_length(where, "chosen and the rejected", row["prompt"], prompt)
    if not isinstance(prompt, Verbatim):
        chosen = answer_text(where, "chosen", chosen, prompt)
        rejected = answer_text(where, "rejected", rejected, prompt)
        _check_different(where, chosen, rejected)
    return Pair(prompt, chosen, rejected, _margin(where, row.get("margin")), where, _others(row, (*used, "margin")))


def triple(where: str, row: Row) -> Pair:
    """A ``pair`` with a third completion, from ``prompt, chosen, rejected, gold``: what TPO learns from.

    Args:
        where: the row's place, for errors.
        row: the columns; ``gold`` has the form of ``chosen``.

    Raises:
        DataError: as ``pair``; without a prompt or a gold completion.

    >>> triple("line 1", {"prompt": "1+1=", "chosen": "2", "rejected": "3", "gold": "two"}).gold
    'two'
    """
    if "prompt" not in row or row.get("gold") is None:
        missing = "gold" if "prompt" in row else "prompt"
        raise DataError(
            f"{where}: no column {missing!r}; the columns are {list_columns(row)}, wanted prompt, chosen, rejected and "
            "gold, a third answer."
        )
    found, gold = pair(where, row), row["gold"]
    check_text(where, "gold", gold)
    if is_conversation(gold):
        gold = gold[prompt_length(where, "gold", found.prompt, answers(where, "gold", gold)) :]
    others = {name: value for name, value in found.columns.items() if name != "gold"}
    return found._replace(gold=answer_text(where, "gold", gold, found.prompt), columns=others or _NO_COLUMNS)


def labeled_completion(where: str, row: Row) -> Labeled:
    """A labeled completion from ``prompt, completion, label``, the label a boolean, 0 or 1.

    A completion may be a whole conversation that begins with the prompt.

    Args:
        where: the row's place, for errors.
        row: the columns.

    Raises:
        DataError: naming the row: a column that is missing or of a wrong type, a completion that is empty or not one
            of the assistant's, a label that is no boolean.

    >>> labeled_completion("line 1", {"prompt": "1+1=", "completion": "3", "label": 0}).label
    False
    """
    used = _FORMS["an unpaired preference"]
    _require(where, row, "an unpaired preference", used)
    prompt, completion = _exchange(where, row)
    return Labeled(prompt, completion, _label(where, "the label", row["label"]), where, _others(row, used))


def _label(where: str, name: str, label: Any) -> bool:
    if not isinstance(label, (bool, int, float)) or label not in (0, 1):
        raise DataError(f"{where}: {name} is {_shown(label)}, wanted true or false (1 or 0).")
    return bool(label)


def stepwise(where: str, row: Row) -> Stepwise:
    """A completion of labeled steps from ``prompt, completions, labels``: a list of texts, and a boolean, 0 or 1, of
    each.

    Args:
        where: the row's place, for errors.
        row: the columns.

    Raises:
        DataError: naming the row: a column that is missing or of a wrong type, no step, an empty one, another number of
            labels than steps, or a label that is no boolean.

    >>> stepwise("line 1", {"prompt": "1+2+3=", "completions": ["3+3", "6"], "labels": [True, 1]}).labels
    [True, True]
    >>> stepwise("line 1", {"prompt": "1+2+3=", "completions": ["3+3", "6"], "labels": [True]})
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: line 1: there are 2 completions and 1 labels, wanted a label for each step.
    """
    used = _FORMS["a completion of labeled steps"]
    _require(where, row, "a completion of labeled steps", used)
    check_text(where, "prompt", row["prompt"])
    steps, labels = (_list(where, name, row[name]) for name in used[1:])
    for index, step in enumerate(steps):
        name = f"step {index} of the completions"
        if not isinstance(step, str):
            raise DataError(f"{where}: {name} is {json_kind(step)}, wanted a string.")
        check_text(where, name, step.strip() and step)
    if len(steps) != len(labels):
        raise DataError(
            f"{where}: there are {len(steps)} completions and {len(labels)} labels, wanted a label for each step."
        )
    known = [_label(where, f"label {index}", label) for index, label in enumerate(labels)]
    return Stepwise(row["prompt"], steps, known, where, _others(row, used))


def _list(where: str, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} is {json_kind(value)}, wanted a list, with an entry for each step.")
    if not value:
        raise DataError(f"{where}: {name} is empty, wanted at least one step.")
    return value


def last_turn(where: str, row: Row) -> Demonstration:
    """A demonstration from ``prompt, completion``, from ``messages`` or from ``text``.

    Of ``messages``, the last one, the assistant's, is the completion, and all before it the prompt. A ``text`` is all
    completion. A ``completion`` may be a whole conversation that begins with the prompt.

    Args:
        where: the row's place, for errors.
        row: the columns.

    Raises:
        DataError: naming the row: a column that is missing or of a wrong type, a completion that is empty or not one
            of the assistant's, a last message that is not, or nothing before it.

    >>> turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    >>> last_turn("line 1", {"messages": turns})[:2] == (turns[:1], turns[1:])
    True
    """
    if "messages" in row:
        messages = _conversation(where, row["messages"])
        completion = answer_text(where, "completion", messages[-1:], messages)
        return Demonstration(messages[:-1], completion, where, _others(row, ("messages",)))
    if "text" in row and "prompt" not in row:
        if not isinstance(row["text"], str):
            raise DataError(f"{where}: the text is {json_kind(row['text'])}, wanted a string.")
        check_text(where, "text", row["text"])
        return Demonstration(Verbatim(), Verbatim(row["text"]), where, _others(row, ("text",)))
    used = _FORMS["a demonstration"]
    _require(where, row, "a demonstration", used)
    return Demonstration(*_exchange(where, row), where, _others(row, used))


def every_turn(where: str, row: Row) -> Demonstration:
    """As ``last_turn``, but every message of the assistant is learned from, not the last one alone.

    Limiting case: ``last_turn`` where the assistant speaks once.

    Args:
        where: the row's place, for errors.
        row: the columns.

    Raises:
        DataError: as ``last_turn``.

    >>> turns = [{"role": role, "content": "Hi"} for role in ("user", "assistant", "user", "assistant")]
    >>> [len(part) for part in every_turn("line 1", {"messages": turns})[:2]]
    [1, 3]
    """
    if "messages" not in row:
        return last_turn(where, row)
    messages = _conversation(where, row["messages"])
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    if first == 0:
        raise DataError(f"{where}: the first message is the assistant's; wanted a message to answer before it.")
    said = [
        message.get("content") or message.get("tool_calls") for message in messages if message["role"] == "assistant"
    ]
    if not all(said):
        raise DataError(f"{where}: the completion is empty.")
    return Demonstration(messages[:first], messages[first:], where, _others(row, ("messages",)))


def read_pairs(path: Tables, split: str = "train") -> Kept[Pair]:
    """The pairs of a table that can be used, and what was left out.

    Left out are rows that ``pair`` refuses, and those that have a margin where most have none, or none where most do.
    Strings that begin with the prompt next to them are taken without it (``drop_prompts``).

    Args:
        path: as ``read_table`` takes it, or several in order.
        split: of a data set that has several.

    Raises:
        DataError: as ``read_table``; no row can be used.
    """
    return _pairs(path, split, pair, ("chosen", "rejected"))


def read_triples(path: Tables, split: str = "train") -> Kept[Pair]:
    """``read_pairs`` of a table whose rows have a gold completion too.

    Args:
        path: as ``read_table`` takes it, or several in order.
        split: of a data set that has several.

    Raises:
        DataError: as ``read_pairs``; no row has one.
    """
    return _pairs(path, split, triple, ("chosen", "rejected", "gold"))


def _pairs(path: Tables, split: str, form: Callable[[str, Row], Pair], sides: tuple[str, ...]) -> Kept[Pair]:
    kept = keep_commonest(_read(path, split, form), lambda row: row.margin is None, _other_margin)
    return drop_prompts(kept, sides)


def read_labeled(path: Tables, split: str = "train") -> Kept[Labeled]:
    """The labeled completions of a table that can be used, and what was left out; a table of pairs gives two for each.

    Strings that begin with the prompt next to them are taken without it (``drop_prompts``).

    Args:
        path: as ``read_table`` takes it, or several in order.
        split: of a data set that has several.

    Raises:
        DataError: as ``read_table``; no row can be used; labels all of one kind.
    """
    rows = drop_prompts(flatten_rows(_read(path, split, _labels)), ("completion",))
    if len({row.label for row in rows}) == 1:
        raise DataError(
            f"{rows.name}: all {len(rows)} labels are {str(rows[0].label).lower()}; wanted desirable and undesirable "
            "ones."
        )
    return rows


def read_stepwise(path: Tables, split: str = "train") -> Kept[Stepwise]:
    """The completions of labeled steps of a table that can be used, and what was left out.

    Args:
        path: as ``read_table`` takes it, or several in order.
        split: of a data set that has several.

    Raises:
        DataError: as ``read_table``; no row can be used; labels all of one kind.
    """
    rows = _read(path, split, stepwise)
    labels = {label for row in rows for label in row.labels}
    if len(labels) == 1:
        raise DataError(f"{rows.name}: all labels are {str(*labels).lower()}; wanted right and wrong steps.")
    return rows


def read_demonstrations(
    path: Tables, split: str = "train", form: Callable[[str, Row], Demonstration] = last_turn
) -> Kept[Demonstration]:
    """The demonstrations of a table that can be used, and what was left out.

    Strings that begin with the prompt next to them are taken without it (``drop_prompts``).

    Args:
        path: as ``read_table`` takes it, or several in order.
        split: of a data set that has several.
        form: ``last_turn`` or ``every_turn``.

    Raises:
        DataError: as ``read_table``; no row can be used.
    """
    return drop_prompts(_read(path, split, form), ("completion",))


def split_pairs(pairs: Iterable[Pair]) -> list[Labeled]:
    """Two labeled completions of each pair: the chosen one is desirable, the rejected one not.

    Args:
        pairs: any number.

    >>> [(row.completion, row.label) for row in split_pairs([Pair("1+1=", "2", "3")])]
    [('2', True), ('3', False)]
    """
    return [
        Labeled(row.prompt, side, label, row.where, row.columns)
        for row in pairs
        for side, label in ((row.chosen, True), (row.rejected, False))
    ]


def prompt_key(record: Pair | Labeled | Stepwise | Demonstration) -> str:
    """What makes two records the same problem: their prompts, or of whole texts the text.

    An implicit prompt of strings goes by its characters: where it ends inside the completion, another pair of the same
    question may have another one.

    Args:
        record: of any form.

    >>> prompt_key(Pair("1+1=", "2", "3"))
    '1+1='
    """
    text = record.prompt or record[1]
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str)


Read = TypeVar("Read")


def _read(paths: Tables, split: str, form: Callable[[str, Row], Read]) -> Kept[Read]:
    def of(path: Path | str) -> Kept[Read]:
        table = read_shaped(path, split)
        return shaped(
            str(path),
            table,
            sift(str(path), table.rows, lambda at, row: form(at, check_characters(at, table.own(at, row)))),
        )

    return of_each(paths, of)


def _labels(where: str, row: Row) -> list[Labeled]:
    if "chosen" in row and "label" not in row:
        return split_pairs([pair(where, row)])
    return [labeled_completion(where, row)]


def _other_margin(row: Pair, usual: Pair) -> str:
    return "no margin, but most rows have one." if row.margin is None else "a margin, but most rows have none."


def _exchange(where: str, row: Row) -> tuple[Text, Text]:
    """Prompt and completion, the completion without the prompt where it is a whole conversation."""
    prompt = row["prompt"]
    completion = row["completion"]
    check_text(where, "prompt", prompt)
    check_text(where, "completion", completion)
    if is_conversation(completion):
        length = prompt_length(where, "completion", prompt, answers(where, "completion", completion))
        prompt = completion[:length]
        completion = completion[length:]
    return prompt, answer_text(where, "completion", completion, prompt)


def _check_different(where: str, chosen: Text, rejected: Text) -> None:
    if chosen == rejected:
        raise DataError(f"{where}: chosen and rejected are equal; a preference needs two different completions.")


def _implicit(where: str, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    if isinstance(chosen, str) and isinstance(rejected, str):
        length = min(_shared(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        length -= length > 0 and chosen[length - 1] == " "
        parts = [Verbatim(text) for text in (chosen[:length], chosen[length:], rejected[length:])]
    elif isinstance(chosen, list) and isinstance(rejected, list):
        length = min(_shared(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
        parts = [chosen[:length], chosen[length:], rejected[length:]]
    else:
        raise DataError(
            f"{where}: chosen is {json_kind(chosen)} and rejected {json_kind(rejected)}; wanted two of a kind."
        )
    if not parts[0]:
        raise DataError(
            f"{where}: no column 'prompt', and chosen and rejected have no common beginning to take for it."
        )
    return parts[0], parts[1], parts[2]


def _shared(left: Text, right: Text) -> int:
    """Length of the common beginning; by bisection, so that a text is compared in a few steps."""
    return bisect.bisect_left(range(min(len(left), len(right))), True, key=lambda n: left[: n + 1] != right[: n + 1])


def _conversation(where: str, messages: Any) -> list[Message]:
    if not isinstance(messages, list):
        raise DataError(f"{where}: messages is {json_kind(messages)}, wanted a list of messages.")
    check_text(where, "conversation", messages)
    answers(where, "conversation", messages)
    if len(messages) == 1:
        raise DataError(f"{where}: the conversation has one message, the assistant's; wanted one to answer before it.")
    return messages


def _margin(where: str, margin: Any) -> float | None:
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, (int, float)):
        raise DataError(f"{where}: the margin is {_shown(margin)}, wanted a number.")
    if not math.isfinite(margin):
        raise DataError(f"{where}: the margin is {margin}, wanted a finite number.")
    return float(margin)


def _require(where: str, row: Row, form: str, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in row]
    if missing:
        near, columns = max(_FORMS.items(), key=lambda item: (_nearness(row, item[1]), item[0] == form))
        hint = "" if near == form else f", nearest to {near} ({', '.join(columns)})"
        raise DataError(
            f"{where}: no column {missing[0]!r}; the columns are {list_columns(row)}{hint}, wanted those of {form} "
            f"({', '.join(_FORMS[form])}){did_you_mean(missing[0], [name for name in row if name not in wanted])}"
        )


def _nearness(row: Row, columns: Sequence[str]) -> float:
    """Mean over a form's columns of how much the likest column of the row is like it; misspelled ones count too."""
    return sum(likeness(name, row) for name in columns) / len(columns)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (bool, int, float, str)) and len(repr(value)) < 40 else json_kind(value)


def _others(row: Row, used: Sequence[str]) -> Mapping[str, Any]:
    return {name: value for name, value in row.items() if name not in used} or _NO_COLUMNS
