"""The task: a sentence about a topic, the more positive the better, as the VADER lexicon sees it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

SYSTEM = "Answer with one short sentence."
_ALL = Path(__file__).with_name("topics.txt").read_text(encoding="utf-8").splitlines()
TOPICS, HELD_OUT = _ALL[:64], _ALL[64:]


def prompt(topic: str) -> list[dict[str, str]]:
    """The conversation that asks for a sentence."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Write a sentence about {topic}."}]


@cache
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def positive(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """VADER's compound score of each completion, from −1 to 1: a reward function of ``rlax-llm``."""
    del prompts, columns
    return [_analyser().polarity_scores(text)["compound"] for text in completions]


def preference_rows(
    texts: Sequence[Sequence[str]], topics: Sequence[str], per_topic: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Pairs of completions of one prompt that differ in score, the more positive one chosen.

    Args:
        texts: completions of each topic.
        topics: as many.
        per_topic: pairs of each topic at most, drawn from all that differ.
        seed: chooses them.
    """
    random, rows = np.random.default_rng(seed), []
    for topic, drawn in zip(topics, texts, strict=True):
        written, scores = list(drawn), positive([], drawn)
        pairs = [(a, b) if scores[a] > scores[b] else (b, a) for a, b in combinations(range(len(written)), 2)]
        pairs = [(a, b) for a, b in pairs if scores[a] > scores[b]]
        for index in random.permutation(len(pairs))[:per_topic]:
            sides = [conversation(name, written[i]) for name, i in zip(("chosen", "rejected"), pairs[index])]
            rows.append({"prompt": prompt(topic)} | sides[0] | sides[1])
    return rows


def label_rows(texts: Sequence[Sequence[str]], topics: Sequence[str]) -> list[dict[str, Any]]:
    """Each completion with a label: desirable above the median score of all."""
    scores = [positive([], written) for written in texts]
    middle = float(np.median(np.concatenate(scores)))
    return [
        {"prompt": prompt(topic), "label": score > middle} | conversation("completion", text)
        for topic, written, own in zip(topics, texts, scores, strict=True)
        for text, score in zip(list(written), own, strict=True)
    ]


def conversation(column: str, text: str) -> dict[str, Any]:
    """An assistant's turn as a column."""
    return {column: [{"role": "assistant", "content": text}]}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
