"""A language that a table would almost do for: of each of some words a spelling is to be found, letter by letter.

The policy adds up what it knows of the word, of the place and of the letter before, so that what is learned of one word
moves the others. A completion's score is the share of its letters that are right; the policy's own expectation of it is
a sum over letters, exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.types import Completions, Groups, Metrics, Params
from rlax_llm.loops.language import Collector


class Words(NamedTuple):
    """The task and the width of the policy.

    Attributes:
        words: that are to be spelled; a prompt is one of them.
        letters: of the alphabet.
        length: letters of every spelling.
        hidden: width of the policy.
    """

    words: int = 32
    letters: int = 8
    length: int = 4
    hidden: int = 32

    def start(self, key: jax.Array) -> Params:
        """A policy that writes every letter about as often as any other."""
        keys = jax.random.split(key, 4)
        rows = {"word": self.words, "place": self.length, "before": self.letters + 1}
        tables = {name: jax.random.normal(k, (n, self.hidden)) for k, (name, n) in zip(keys, rows.items())}
        return tables | {"out": 0.1 * jax.random.normal(keys[3], (self.hidden, self.letters))}

    def spellings(self, key: jax.Array) -> jax.Array:
        """What is right, ``[words, length]``."""
        return jax.random.randint(key, (self.words, self.length), 0, self.letters)


def next_letter(params: Params, words: Any, places: Any, before: Any) -> jax.Array:
    """Log-probabilities of every letter at a place of a word, behind another; arrays broadcast."""
    known = params["word"][words] + params["place"][places] + params["before"][before]
    return jax.nn.log_softmax(jnp.tanh(known) @ params["out"])


def log_probs(task: Words, params: Params, rows: Completions) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies of completions, as ``group_loop`` takes them."""
    words, letters = rows.tokens[:, :1], rows.tokens[:, 1:]
    before = jnp.concatenate([jnp.full_like(words, task.letters), letters[:, :-1]], 1)
    every = next_letter(params, words, jnp.arange(task.length), before)
    chosen = jnp.take_along_axis(every, letters[..., None], -1)[..., 0]
    entropy = -(jnp.exp(every) * every).sum(-1)
    own, uncertain = (jnp.pad(x, ((0, 0), (1, 0))) for x in (chosen, entropy))
    return own, uncertain


def drawn(task: Words, params: Params, words: jax.Array, key: jax.Array) -> Completions:
    """A spelling of each word ``[B]``."""

    def letter(before: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        place, key = given
        every = next_letter(params, words, place, before)
        found = jax.random.categorical(key, every)
        return found, (found, jnp.take_along_axis(every, found[:, None], -1)[:, 0])

    places = jnp.arange(task.length), jax.random.split(key, task.length)
    _, (letters, chosen) = jax.lax.scan(letter, jnp.full_like(words, task.letters), places)
    tokens = jnp.concatenate([words[:, None], letters.T], 1).astype(jnp.int32)
    mask = jnp.broadcast_to(jnp.arange(task.length + 1) > 0, tokens.shape)
    return Completions(
        tokens, jnp.ones_like(mask), mask, jnp.pad(chosen.T, ((0, 0), (1, 0))), jnp.zeros(len(words), bool)
    )


def sampling(task: Words, right: jax.Array, groups: int, group_size: int) -> Collector:
    """Fresh groups of words, with the share of letters that are right."""

    def collect(memory: Any, params: Params, key: jax.Array, version: Any) -> tuple[Any, Groups, Metrics]:
        del version  # None in the groups is the one that was given
        which, draw = jax.random.split(key)
        words = jax.random.randint(which, (groups,), 0, task.words)
        rows = drawn(task, params, jnp.repeat(words, group_size), draw)
        scores = (rows.tokens[:, 1:] == right[rows.tokens[:, 0]]).mean(-1)
        return memory, Groups(rows, scores.reshape(groups, group_size)), {}

    return Collector(lambda params: (), collect)


def accuracy(task: Words, right: jax.Array) -> Callable[[Params], jax.Array]:
    """The share of letters that a policy expects to have right, over all words: exact."""
    words = jnp.arange(task.words)[:, None]

    def of(params: Params) -> jax.Array:
        def letter(before: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
            # From the distribution of the letter before to that of this one.
            moves = jnp.exp(next_letter(params, words, place, jnp.arange(task.letters + 1)))
            now = jnp.einsum("wb,wbl->wl", before, moves)
            hit = jnp.take_along_axis(now, right[:, place][:, None], 1).mean()
            return jnp.pad(now, ((0, 0), (0, 1))), hit

        start = jnp.zeros((task.words, task.letters + 1)).at[:, -1].set(1.0)
        return jax.lax.scan(letter, start, jnp.arange(task.length))[1].mean()

    return of
