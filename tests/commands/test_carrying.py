"""Groups in flight over several rollouts: what they are in the end, and what is told of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.grpo.carrying import Asked, PartialRollouts
from rlax_llm.commands.rollout_metrics import Tally
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.serving import staleness
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.tokenizer import Tokenizer

READER = Tokenizer.characters("0123456789+=")
CONFIG = DecoderConfig(READER.vocab_size, 16, 24, 1, 4, 2, 4, max_positions=128)
BATCH, FURTHER, SIZE, LIMIT = 2, 3, 4, 40
REQUEST = Request(Categorical(top_k=9), READER.eos_ids, LIMIT, SIZE)
ROWS = [{"prompt": "1+" * (1 + i % 4) + "1="} for i in range(40)]


@cache
def params():
    return init_decoder(CONFIG, jax.random.key(0))


def drawing(request=REQUEST) -> Drawing:
    sampling = Sampling(CONFIG, READER, 16)
    return Drawing(sampling, sampling, request, request, lambda params, *_: params, Tally())


def asked(groups: np.ndarray) -> Asked:
    keys = jax.vmap(jax.random.key)(np.repeat(groups, SIZE) * SIZE + np.tile(np.arange(SIZE), len(groups)))
    return Asked(groups, [ROWS[i] for i in groups], keys)


def test_each_group_comes_once_whole_and_as_if_it_had_never_waited():
    roll, carried = PartialRollouts(drawing(), asked, BATCH, FURTHER), None
    taken, ages = [], []
    for number in range(5):
        indices, rollout, carried = roll(params(), number, carried, number)
        assert len(indices) == BATCH and len(carried.groups) == FURTHER
        assert indices.tolist() == sorted(indices)  # of those that are whole, the oldest
        completions: Any = rollout.completions
        columns = completions.mask[:, rollout.prompt_width :]
        versions = completions.versions[:, rollout.prompt_width :]
        for row, chosen in zip(versions, columns, strict=True):
            assert (np.diff(row[chosen]) >= 0).all() and row[chosen].max(initial=0) <= number
        told = staleness(completions, number)
        old = number - versions[columns]
        assert told == {
            "sampler/staleness": old.mean(),
            "sampler/older_tokens": (old > 0).mean(),
            "sampler/oldest": old.max(),
        }
        ages.append(old.max())
        taken.append((indices, rollout))
    assert carried is not None
    numbers = np.concatenate([indices for indices, _ in taken] + [carried.groups])
    assert sorted(numbers) == list(range(5 * BATCH + FURTHER))
    assert max(ages) >= 2  # some group waited twice
    rows = asked(numbers)
    alone = drawing().sampling.rollout(params(), rows.rows, rows.keys, REQUEST)
    assert [text for _, rollout in taken for text in rollout.texts] == alone.texts[: 5 * BATCH * SIZE]
    masks = [rollout.completions.mask.sum(1) for _, rollout in taken]
    np.testing.assert_array_equal(np.concatenate(masks), alone.lengths()[: 5 * BATCH * SIZE])
