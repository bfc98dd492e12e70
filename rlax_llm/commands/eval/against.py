"""One model against another, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlax_llm.commands.eval.measured import Measured
from rlax_llm.data.jsonl import prompt_key
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.rewards.measures import Interval, difference_interval, sign_flip_test

Solved = Mapping[str, Mapping[tuple[str, int], np.ndarray]]
"""Set → prompt → whether each of its completions is right, ``[n]``."""
_FURTHER = ("repetition_penalty", "presence_penalty", "frequency_penalty", "stop", "stop_ids", "pattern")
_COMPARED = ("temperature", "samples", "max_new_tokens", "top_k", "top_p", "min_p", "logit_bias", "reward", *_FURTHER)


class Comparison(NamedTuple):
    """Two models on the prompts that both were asked.

    Attributes:
        name: of the set, or of all.
        prompts: that both were asked.
        unpaired: that this one alone was asked.
        own: share of completions that are right, of this model.
        other: of the other one.
        difference: of the two, with its paired interval.
        better: prompts of which this model solves a larger share.
        worse: of which it solves a smaller one.
        p: two-sided, exact, ``sign_flip_test``.
    """

    name: str
    prompts: int
    unpaired: int
    own: float
    other: float
    difference: Interval
    better: int
    worse: int
    p: float


def solved_by_prompt(found: Sequence[Measured]) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """What was measured, for comparing it.

    Args:
        found: of each set.
    """
    return {one.name: dict(zip(one.keys(), one.solved, strict=True)) for one in found}


def is_eval(path: str) -> bool:
    """Whether a path is the directory that an eval wrote.

    >>> is_eval("smollm2")
    False
    """
    place = Path(path)
    return place.is_dir() and (place / "config.yaml").is_file() and not (place / "config.json").is_file()


def solved_in(path: str) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """What an earlier eval measured, read from its directory.

    Args:
        path: of the directory.

    Raises:
        ValueError: another command's directory, or an eval that has not ended.
    """
    directory = RunDirectory.reopen(path)
    command = directory.config().get("command")
    if command != "eval":
        raise ValueError(
            f"eval: against is {path}, the directory of {command}, wanted a model or the directory of an eval; give "
            f"{path}/model for the model that it trained."
        )
    records = directory.completions()
    unfinished = not directory.summary_path.is_file()
    if unfinished or not records or any("solved" not in record for record in records):
        raise ValueError(f"eval: against is {path}, whose eval has not ended or is of an earlier version; run it anew.")
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for record in records:
        found.setdefault(record["task"], {}).setdefault(record["row"], []).append(record)
    return {name: _by_prompt(list(rows.values())) for name, rows in found.items()}


def _by_prompt(rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[tuple[str, int], np.ndarray]:
    seen: dict[str, int] = {}
    found = {}
    for records in rows:
        key = prompt_key({"prompt": records[0]["prompt"]})
        seen[key] = seen.get(key, -1) + 1
        found[key, seen[key]] = np.array([record["solved"] for record in records], bool)
    return found


def other_settings(path: str, settings: Mapping[str, Any]) -> str:
    """What an earlier eval measured otherwise, in a sentence; empty where nothing is.

    Args:
        path: of its directory.
        settings: of this one.
    """
    before = RunDirectory.reopen(path).config()
    said = [
        f"{name} {_worded(name, before[name])}, not {_worded(name, settings[name])}"
        for name in _COMPARED
        if name in before and before[name] != settings[name]
    ]
    return f"{path} was measured with {'; '.join(said)}." if said else ""


def _worded(name: str, value: Any) -> Any:
    return {"reward": "of the task itself", "logit_bias": "none"}.get(name, value) if value is None else value


def check_common(common: Iterable[str], other: Iterable[str], own: Iterable[str]) -> None:
    """Say that two evaluations have no set in common.

    Args:
        common: names of the sets of this one that may have prompts of the other one.
        other: names of the sets of the other one.
        own: names of all sets of this one.

    Raises:
        ValueError: none of the first is among the second.
    """
    if set(common).isdisjoint(other):
        raise ValueError(
            f"eval: the two were asked no prompt in common: {', '.join(own)} here, {', '.join(other)} there; measure "
            "both on the same sets, with the same seed."
        )


def compare(own: Solved, other: Solved) -> list[Comparison]:
    """Each set that both have, and all prompts together where there are several.

    Args:
        own: of this model.
        other: of the other one.

    Raises:
        ValueError: they have no prompt in common.
    """
    pairs = {
        name: [(solved, other[name][key]) for key, solved in prompts.items() if key in other.get(name, {})]
        for name, prompts in own.items()
    }
    check_common([name for name, paired in pairs.items() if paired], other, list(own))
    found = [_compared(name, paired, len(own[name]) - len(paired)) for name, paired in pairs.items() if paired]
    if len(own) > 1:
        everything = [pair for paired in pairs.values() for pair in paired]
        found.append(_compared("all", everything, sum(map(len, own.values())) - len(everything)))
    return found


def _compared(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]], unpaired: int) -> Comparison:
    own = np.array([solved.mean() for solved, _ in pairs])
    other = np.array([solved.mean() for _, solved in pairs])
    # Whole numbers, where the two have other numbers of completions too.
    counts = [int(left.sum()) * right.size - int(right.sum()) * left.size for left, right in pairs]
    signs = np.sign(counts)
    return Comparison(
        name,
        len(pairs),
        unpaired,
        float(own.mean()),
        float(other.mean()),
        difference_interval(own - other),
        int((signs > 0).sum()),
        int((signs < 0).sum()),
        sign_flip_test(counts),
    )


def verdict(found: Comparison) -> str:
    """The comparison in a sentence.

    Args:
        found: of all prompts.
    """
    if found.p < 0.05:
        way = "better" if found.difference.mean > 0 else "worse"
        return f"This model is {way}: a difference as large would come by chance with p {_compared_to(found.p)}."
    if not found.better + found.worse:
        return "The two solve the same prompts."
    return f"No difference is shown: one as large comes by chance with p {_compared_to(found.p)}."


def _compared_to(p: float) -> str:
    told = chance(p)
    return f"< {told[1:]}" if told.startswith("<") else f"= {told}"


def chance(p: float) -> str:
    """A p-value with two digits.

    >>> chance(0.04321), chance(1e-9)
    ('0.043', '<0.0001')
    """
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"
