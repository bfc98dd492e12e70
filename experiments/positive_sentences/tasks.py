"""The task: a sentence about a topic, the more positive the better, as the VADER lexicon sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

_ALL = Path(__file__).with_name("topics.txt").read_text(encoding="utf-8").splitlines()
TOPICS, HELD_OUT = _ALL[:64], _ALL[64:]


def asked(system: str, topic: str) -> list[dict[str, str]]:
    """The conversation that asks for a sentence."""
    return [{"role": "system", "content": system}, {"role": "user", "content": topic}]


# What the instruct model answers to a bare topic is long and neutral; asked for news, it is of both kinds.
news = partial(asked, "Write a short sentence with good or bad news.")
prompt = partial(asked, "Write a sentence.")


def first_sentence(text: str, topic: str) -> str | None:
    """The sentence that ``text`` begins with, if it is one and names the topic.

    >>> first_sentence("The bridge has been taken down. We walk.", "a bridge"), first_sentence("bridge", "a bridge")
    ('The bridge has been taken down.', None)
    """
    found = re.match(r'"?([A-Z][^.!?\n"]{12,}[.!?])', text.strip())
    named = topic.split()[-1].rstrip("s").lower() in (found.group(1).lower() if found else "")
    return found.group(1) if found and named else None


def demonstration_rows(texts: Sequence[Sequence[str]], topics: Sequence[str]) -> list[dict[str, Any]]:
    """What a model that was asked for news answered, its first sentences, as the answers to ``prompt``."""
    pairs = [(topic, first_sentence(text, topic)) for topic, own in zip(topics, texts, strict=True) for text in own]
    return [{"prompt": prompt(topic)} | conversation("completion", text) for topic, text in pairs if text]


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def positive(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """VADER's compound score of each completion, from −1 to 1: a reward function of ``rlax-llm``."""
    del prompts, columns
    return [_analyzer().polarity_scores(text)["compound"] for text in completions]


LEAST = 0.5  # nearer scores say little of what a reader would prefer


def preference_rows(
    texts: Sequence[Sequence[str]], topics: Sequence[str], per_topic: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Pairs of completions of one prompt whose scores differ by ``LEAST``, the more positive one chosen.

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
        pairs = [(a, b) for a, b in pairs if scores[a] >= scores[b] + LEAST]
        for index in random.permutation(len(pairs))[:per_topic]:
            sides = [conversation(name, written[i]) for name, i in zip(("chosen", "rejected"), pairs[index])]
            rows.append({"prompt": prompt(topic)} | sides[0] | sides[1])
    return rows


def label_rows(texts: Sequence[Sequence[str]], topics: Sequence[str]) -> list[dict[str, Any]]:
    """Each completion with a label: desirable above a score of 0, not below it; one of exactly 0 is left out."""
    return [
        {"prompt": prompt(topic), "label": score > 0} | conversation("completion", text)
        for topic, own in zip(topics, texts, strict=True)
        for text, score in zip(own, positive([], own), strict=True)
        if score
    ]


def conversation(column: str, text: str) -> dict[str, Any]:
    """An assistant's turn as a column."""
    return {column: [{"role": "assistant", "content": text}]}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
