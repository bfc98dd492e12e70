"""A bias on the logits of some tokens, as pairs (token id, nats): part of the distribution that is sampled from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LogitBias = Sequence[tuple[int, float]]
LARGEST = 1e30  # in magnitude: float32 has room for a logit next to it and for a temperature below it


def check_logit_bias(where: str, pairs: LogitBias) -> None:
    """Raise unless each pair is a token of its own and a bias that is a number below ∞; −∞ bans the token.

    Args:
        where: whose bias it is.
        pairs: ``(token id, bias)``.

    Raises:
        ValueError: naming the pair.

    >>> check_logit_bias("Categorical", ((3, float("nan")),))
    Traceback (most recent call last):
    ValueError: Categorical: logit_bias of token 3 is nan, wanted a number, or -inf to ban the token.
    """
    seen = set()
    for token, bias in pairs:
        if token < 0 or token in seen:
            told = "is given twice" if token in seen else "is not an id"
            raise ValueError(f"{where}: logit_bias: token {token} {told}; give each token id from 0 on once.")
        seen.add(token)
        if not (bias == -math.inf or abs(bias) <= LARGEST):
            raise ValueError(
                f"{where}: logit_bias of token {token} is {bias}, wanted a number, or -inf to ban the token."
            )


def bias_vector(where: str, pairs: LogitBias, vocabulary: int) -> np.ndarray | None:
    """What is added to the logits, ``[V]`` float32, or None where there is no bias.

    Args:
        where: whose bias it is.
        pairs: ``(token id, bias)``, nats before the temperature.
        vocabulary: V.

    Raises:
        ValueError: a pair that ``check_logit_bias`` refuses, a token beyond the vocabulary, or no token left.

    >>> bias_vector("greedy", ((2, -1.5),), 4).tolist()
    [0.0, 0.0, -1.5, 0.0]
    """
    check_logit_bias(where, pairs)
    if not pairs:
        return None
    biases = np.zeros(vocabulary, np.float32)
    for token, bias in pairs:
        if token >= vocabulary:
            raise ValueError(
                f"{where}: logit_bias names token {token}, the vocabulary has {vocabulary}; give ids below that."
            )
        biases[token] = bias
    if np.all(biases == -np.inf):
        raise ValueError(f"{where}: logit_bias bans all {vocabulary} tokens; leave one at least.")
    return biases
