"""What a file is for: the command that reads it, the records that it holds, and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlax_llm.commands.data.settings import STEPS
from rlax_llm.data.encoding import (
    DemonstrationTokens,
    LabeledTokens,
    PairTokens,
    StepwiseTokens,
    encode_demonstrations,
    encode_labeled,
    encode_pairs,
    encode_stepwise,
)
from rlax_llm.data.jsonl import read_rows
from rlax_llm.data.limits import Limits, keep_prompts_within
from rlax_llm.data.preferences import (
    every_turn,
    last_turn,
    read_demonstrations,
    read_labeled,
    read_pairs,
    read_stepwise,
)
from rlax_llm.data.rows import Row
from rlax_llm.data.shapes import read_shaped
from rlax_llm.data.sifting import Kept
from rlax_llm.models.tokenizer import Tokenizer


class PromptTokens(NamedTuple):
    """A prompt as token ids.

    Attributes:
        prompt: ids.
        columns: of the row, for rewards.
    """

    prompt: list[int]
    columns: Mapping[str, Any]


Encoded = DemonstrationTokens | PairTokens | LabeledTokens | StepwiseTokens | PromptTokens


class Side(NamedTuple):
    """A completion of a row, or a step of one.

    Attributes:
        name: what it is called.
        ids: of its tokens.
        learned: of each id whether it is learned from, or None where all are.
    """

    name: str
    ids: Sequence[int]
    learned: Sequence[bool] | None = None


class Use(NamedTuple):
    """What a file is read as.

    Attributes:
        rows: what its rows are called.
        read: ``(path, split, every_turn) → records``.
        encode: ``(tokenizer, records, separator of steps) → tokens``.
        words: that say the command; None is its name.
    """

    rows: str
    read: Callable[[str, str, bool], Kept[Any]]
    encode: Callable[[Tokenizer, Sequence[Any], str], Sequence[Any]]
    words: str | None = None


def encode_prompts(tokenizer: Tokenizer, rows: Sequence[Row]) -> list[PromptTokens]:
    """Prompts as a sampler reads them.

    Args:
        tokenizer: the model's.
        rows: with a ``prompt``.

    Raises:
        DataError: as ``keep_prompts_within``.

    >>> encode_prompts(Tokenizer.characters("1+="), [{"prompt": "1+1=", "answer": 2}])[0]
    PromptTokens(prompt=[2, 3, 2, 4], columns={'answer': 2})
    """
    readable = keep_prompts_within(tokenizer, Limits())(rows)
    others = [{name: value for name, value in row.items() if name != "prompt"} for row in readable]
    return [
        PromptTokens(tokenizer.encode_prompt(row["prompt"]), own) for row, own in zip(readable, others, strict=True)
    ]


def sides(row: Encoded) -> list[Side]:
    """The completions of a row; of labeled steps each step, which is judged at its last token.

    Args:
        row: of any form.

    >>> sides(StepwiseTokens([5], [[6, 1], [7, 1]], [True, False]))[1]
    Side(name='wrong step', ids=[7, 1], learned=[False, True])
    """
    if isinstance(row, StepwiseTokens):
        return [_step(ids, right) for ids, right in zip(row.steps, row.labels, strict=True)]
    if isinstance(row, PairTokens):
        return [Side("chosen", row.chosen, row.learned[0]), Side("rejected", row.rejected, row.learned[1])]
    if isinstance(row, LabeledTokens):
        return [Side("desirable" if row.label else "undesirable", row.completion, row.learned)]
    return [] if isinstance(row, PromptTokens) else [Side("completion", row.completion, row.learned)]


def _step(ids: list[int], right: bool) -> Side:
    return Side("right step" if right else "wrong step", ids, [*[False] * (len(ids) - 1), True])


PROMPTED = ("grpo", "ppo", "online", "distill")
"""Commands that read prompts, and whose models complete them."""
_PAIRS = Use("pairs", lambda path, split, _: read_pairs(path, split), lambda read, rows, _: encode_pairs(read, rows))
_PROMPTS = Use(
    "prompts", lambda path, split, _: read_rows(path, split), lambda read, rows, _: encode_prompts(read, rows)
)
USES: dict[str, Use] = {
    "sft": Use(
        "demonstrations",
        lambda path, split, every: read_demonstrations(path, split, every_turn if every else last_turn),
        lambda read, rows, _: encode_demonstrations(read, rows),
    ),
    "reward": _PAIRS,
    STEPS: Use(
        "completions of labeled steps",
        lambda path, split, _: read_stepwise(path, split),
        encode_stepwise,
        "reward --process",
    ),
    "dpo": _PAIRS,
    "kto": Use(
        "labeled completions",
        lambda path, split, _: read_labeled(path, split),
        lambda read, rows, _: encode_labeled(read, rows),
    ),
    **dict.fromkeys(PROMPTED, _PROMPTS),
}
"""By the name of the command."""


def use_of(path: str, split: str) -> str:
    """The command that a file's columns are for, by its first row.

    Args:
        path: of the file.
        split: of a data set that has several.

    Raises:
        DataError: a file that cannot be read.
    """
    table = read_shaped(path, split)
    row = table.own(*next(table.rows))
    if "chosen" in row and "rejected" in row:
        return "dpo"
    if "completions" in row and "labels" in row:
        return STEPS
    if "label" in row:
        return "kto"
    judged = table.shape is not None and table.shape.reward is not None
    return "sft" if not judged and any(name in row for name in ("completion", "messages", "text")) else "grpo"
