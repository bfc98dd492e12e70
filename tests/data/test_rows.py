import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlax_llm.data.rows import DataError, batch_indices, split_rows


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(1, 4))
def test_every_epoch_is_a_permutation_whatever_the_batch_size(size, batch_size, seed, epochs):
    steps = -(-size * epochs // batch_size)
    stream = np.concatenate([batch_indices(size, batch_size, seed, step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(st.integers(50, 100), st.integers(0, 9), st.integers(0, 10**6))
def test_epochs_and_seeds_differ_and_equal_arguments_agree(size, seed, epoch):
    one = batch_indices(size, size, seed, epoch)
    np.testing.assert_array_equal(one, batch_indices(size, size, seed, epoch))
    assert (one != batch_indices(size, size, seed, epoch + 1)).any()
    assert (one != batch_indices(size, size, seed + 1, epoch)).any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 1, 0, 0), "batch_indices: the data set is empty; give at least one row."),
        ((1, 0, 0, 0), "batch_indices: batch_size is 0, wanted at least 1."),
        ((1, 1, -1, 0), "batch_indices: seed is -1, wanted 0 or more."),
        ((1, 1, 0, -2), "batch_indices: step is -2, wanted 0 or more."),
    ],
)
def test_arguments_of_a_batch_are_checked(arguments, said):
    with pytest.raises(DataError) as caught:
        batch_indices(*arguments)
    assert str(caught.value) == said


NONE = "none (--eval-size 0), or take those of a file (--eval-data)."


def test_no_row_need_be_held_out():
    assert split_rows("d", ["x"], ["a"], 0, 3) == (["x"], [])


@given(st.lists(st.integers(0, 8), min_size=2, max_size=40), st.integers(1, 12), st.integers(0, 3))
def test_no_key_is_on_both_sides_of_a_split(keys, held_out_size, seed):
    rows = [{"prompt": str(key), "row": index} for index, key in enumerate(keys)]
    try:
        train, held_out = split_rows("d", rows, keys, held_out_size, seed)
    except DataError:
        assert len(set(keys)) == 1 or held_out_size > len(keys) - max(map(keys.count, keys))
        return
    assert (train, held_out) == split_rows("d", rows, keys, held_out_size, seed)
    assert len(held_out) == held_out_size
    assert train == sorted(train, key=lambda row: row["row"])
    assert train
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert len({row["row"] for row in train + held_out}) == len(train) + len(held_out)


@pytest.mark.parametrize(
    ("keys", "held_out_size", "seed", "said"),
    [
        ("aa", 1, 0, f"d: only one prompt in all, and holding some out needs at least 2; hold out {NONE}"),
        ("ab", -1, 0, "d: held_out_size is -1, wanted 0 or more."),
        ("ab", 1, -1, "d: seed is -1, wanted 0 or more."),
        ("abc", 3, 0, f"d: holding out 3 of 3 rows leaves none to train on; hold out fewer, {NONE}"),
    ],
)
def test_arguments_of_a_split_are_checked(keys, held_out_size, seed, said):
    with pytest.raises(DataError) as caught:
        split_rows("d", [{"prompt": key} for key in keys], keys, held_out_size, seed)
    assert str(caught.value) == said
