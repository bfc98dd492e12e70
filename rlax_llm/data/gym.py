"""Tasks of reasoning-gym, an optional dependency: generated puzzles with a scorer each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlax_llm.core.names import did_you_mean
from rlax_llm.data.rows import DataError, Row, user_message
from rlax_llm.rewards.calling import Reward
from rlax_llm.rewards.functions import completion_text

_DRAWS = 4  # entries generated for each held-out question wanted, at most
_INSTRUCTION = "Give only the final answer."
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_LABEL = re.compile(r"^(?:the )?(?:final )?answer(?: is)?\s*:?\s*", re.IGNORECASE)


def load(
    name: str, held_out_size: int, seed: int, *, size: int | None = 1000, config: Mapping[str, Any] | None = None
) -> tuple[list[Row], list[Row], Reward]:
    """Training rows, held-out rows and the scorer of a reasoning-gym task.

    A prompt is one user message: the question and a request for the final answer only. Small models follow that where
    they seldom write tags; ``<answer>`` tags are read too. No question is held out and trained on, or there twice, so
    there may be fewer training rows than ``size``. Rows hold ``answer`` and ``entry``, the generator's own record,
    and where the task has one right answer, ``completion``.

    reasoning-gym 0.1.25 generates list_functions differently every time, and isomorphic_strings, knight_swap,
    polynomial_multiplication, ransom_note and word_ladder in every process unless ``PYTHONHASHSEED`` is set.

    Args:
        name: name in reasoning-gym, such as ``chain_sum``.
        held_out_size: number of held-out rows.
        seed: not negative.
        size: number of training entries to generate, None for none; some tasks take seconds for each.
        config: settings of the task, such as ``{"min_terms": 2}``.

    Raises:
        DataError: reasoning-gym is not installed, no such task, settings that it refuses, too few different questions.
    """
    wanted = 1 if size is None else size
    for what, number, least in (("seed", seed, 0), ("size", wanted, 1), ("held_out_size", held_out_size, 0)):
        if not isinstance(number, int) or number < least:
            raise DataError(f"reasoning-gym:{name}: {what} is {number!r}, wanted a whole number of at least {least}.")
    settings = dict(config or {})
    held_out = _held_out(name, settings, held_out_size, seed)
    generator = _dataset(name, settings, size=wanted, seed=_start(seed, 0))
    train = [] if size is None else _training(name, generator, held_out)
    answered = all(isinstance(entry["answer"], str) for entry in itertools.chain(train, held_out))
    train_rows = [_row(entry, answered) for entry in train]
    held_out_rows = [_row(entry, answered) for entry in held_out]
    return train_rows, held_out_rows, Reward(name, _scorer(generator))


def _training(name: str, generator: Any, held_out: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    train = list(_unseen(_entries(name, generator), {entry["question"] for entry in held_out}))
    if not train:
        raise DataError(f"reasoning-gym:{name}: every training question is held out; hold out fewer.")
    return train


def category(name: str) -> list[str]:
    """The tasks of a category of reasoning-gym, in order; all of them for ``all``; none where the name is another's.

    Args:
        name: such as ``algebra``; ``composite`` is a task.

    Raises:
        DataError: reasoning-gym is not installed.

    >>> category("algebra")[:2], category("chain_sum")
    (['complex_arithmetic', 'intermediate_integration'], [])
    """
    tasks = _tasks(name)
    if name in tasks:
        return []
    return sorted(task for task, (kind, _) in tasks.items() if name in ("all", kind.__module__.split(".")[1]))


def votes(row: Row, completions: Sequence[str]) -> list[str | None]:
    """The answers that completions give to a question, each as it is scored; None for an empty one.

    Args:
        row: as ``load`` gives it.
        completions: texts.

    >>> votes({"answer": "4"}, ["2 + 2 makes\\n4", "Answer: **4**", ""])
    ['4', '4', None]
    """
    return [_given(completion, row["answer"]) or None for completion in completions]


def extract_answer(completion: str, lines: int | None = 1) -> str:
    """The part of a completion to score: the last ``<answer>``, or the last lines.

    Args:
        completion: generated text. An ``<answer>`` that was not closed reaches to the end.
        lines: number of lines that an answer has, ``None`` for all; blank lines at the end are not counted.

    >>> extract_answer("2 + 2 makes <answer> 4 </answer>."), extract_answer("I add.\\nAnswer: **4**\\n")
    ('4', '4')
    """
    tagged = _TAG.findall(completion)
    if tagged:
        return tagged[-1].strip()
    text = completion.strip()
    if lines is None:
        return text
    text = "\n".join(text.split("\n")[-lines:]).strip()
    return _LABEL.sub("", text.strip("*`")).strip("*` ") if lines == 1 else text


def _held_out(name: str, settings: dict[str, Any], size: int, seed: int) -> list[dict[str, Any]]:
    """As many entries with different questions as are to be held out."""
    # A generator has at least one entry, also where none is held out.
    generator = _dataset(name, settings, size=max(_DRAWS * size, 1), seed=_start(seed, 1))
    found = list(itertools.islice(_unseen(_entries(name, generator), set()), size))
    if len(found) < size:
        raise DataError(
            f"reasoning-gym:{name}: {_DRAWS * size} entries hold only {len(found)} different questions, "
            f"wanted {size} to hold out; hold out fewer, or set the task to be harder."
        )
    return found


def _start(seed: int, side: int) -> int:
    """Seed for a generator. Spread out, because entry i of seed s is mostly entry i - 1 of seed s + 1."""
    return int(np.random.SeedSequence([seed, side]).generate_state(1)[0]) >> 1


def _dataset(name: str, settings: dict[str, Any], size: int, seed: int) -> Any:
    tasks = _tasks(name)
    if name not in tasks:
        raise DataError(
            f"reasoning-gym:{name}: no such task, of {len(tasks)} such as chain_sum{did_you_mean(name, tasks)}"
        )
    from reasoning_gym import create_dataset

    try:
        return create_dataset(name, **settings, size=size, seed=seed)
    except Exception as error:  # each task checks its settings in its own way, many by assert
        known = ", ".join(sorted(set(tasks[name][1].__dataclass_fields__) - {"size", "seed"}))
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"reasoning-gym:{name}: refused ({detail}); its settings are {known}.") from error


def _tasks(name: str) -> Mapping[str, tuple[type[Any], type[Any]]]:
    """Class and settings of each task by its name."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise DataError(
            f'reasoning-gym:{name}: reasoning-gym is not installed ({error}); pip install "rlax-llm[tasks]".'
        ) from error
    return factory.DATASETS


def _entries(name: str, generator: Any) -> Iterator[dict[str, Any]]:
    for index in range(len(generator)):
        try:
            yield generator[index]
        except Exception as error:
            raise DataError(
                f"reasoning-gym:{name}: generating entry {index} raised {type(error).__name__}: {error}."
            ) from error


def _unseen(entries: Iterable[dict[str, Any]], seen: set[str]) -> Iterator[dict[str, Any]]:
    """Entries whose question is neither in ``seen`` nor that of an earlier one."""
    seen = set(seen)
    for entry in entries:
        if entry["question"] not in seen:
            seen.add(entry["question"])
            yield entry


def _row(entry: dict[str, Any], answered: bool) -> Row:
    prompt = user_message(f"{entry['question']}\n{_INSTRUCTION}")
    demonstration = {"completion": entry["answer"]} if answered else {}
    return {"prompt": prompt, **demonstration, "answer": entry["answer"], "entry": entry}


def _scorer(generator: Any) -> Any:
    def reasoning_gym_score(
        prompts: Sequence[Any], completions: Sequence[Any], entry: Sequence[dict[str, Any]], **_: Any
    ) -> list[float]:
        return [_score(generator, completion_text(text), record) for text, record in zip(completions, entry)]

    return reasoning_gym_score


def _given(completion: str, right: Any) -> str:
    """The answer that a completion gives, of as many lines as the right one has."""
    lines = right.strip().count("\n") + 1 if isinstance(right, str) else None
    found = right if completion.strip() == right else extract_answer(completion, lines)
    return found.removesuffix(".") if isinstance(right, str) and not right.endswith(".") else found


def _score(generator: Any, completion: str, entry: dict[str, Any]) -> float:
    try:
        return float(generator.score_answer(_given(completion, entry["answer"]), entry))
    except Exception:  # some scorers raise on text that they cannot parse: it is then not an answer
        return 0.0
