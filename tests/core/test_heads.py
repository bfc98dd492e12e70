"""Rows of a head that stand apart: what the table says with the rows in it, and its slopes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core import vocabulary
from rlax_llm.core.buckets import bucket_log_probs
from rlax_llm.core.divergences import Predictions, comparison, forward_kl
from rlax_llm.core.heads import Patched, first_tokens
from rlax_llm.core.log_probs import token_log_probs

D, V, N = 6, 37, 19
TOKENS = jnp.array([35, 0, 7, V + 3])  # what lies beyond is nobody's


def given():
    random = np.random.default_rng(0)
    return tuple(jnp.asarray(random.normal(size=(size, D))) for size in (N, V, len(TOKENS)))


def compared(hidden, head):
    found = comparison(Predictions(hidden, head), Predictions(hidden[:, ::-1], given()[1]), targets(), forward_kl)
    return found.log_probs, found.entropy, found.divergence


def targets():
    return jnp.arange(N) % 36


READ = {
    "log-probabilities": lambda hidden, head: token_log_probs(hidden, head, targets(), 0.7),
    "a comparison": compared,
    "buckets": lambda hidden, head: bucket_log_probs(Predictions(hidden, head), jnp.tile(jnp.arange(9), (N, 1))),
    "fewer tokens": lambda hidden, head: token_log_probs(hidden, first_tokens(head, 30), targets() % 30),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", READ)
def test_rows_apart_say_what_the_table_says_with_them_in_it(name, monkeypatch):
    monkeypatch.setattr(vocabulary, "ROWS_OF_A_CHUNK", 8)
    monkeypatch.setattr(vocabulary, "LOGITS", 0)

    def slopes(make):
        def total(hidden, table, rows):
            found = READ[name](hidden, make(table, rows))
            return sum(jnp.sin(3 * x).sum() for x in jax.tree.leaves(found))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*given())

    found = slopes(lambda table, rows: Patched(table, rows, TOKENS))
    wanted = slopes(lambda table, rows: table.at[TOKENS].set(rows, mode="drop"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)
    assert all(np.abs(slope).max() > 1e-2 for slope in wanted[1])
