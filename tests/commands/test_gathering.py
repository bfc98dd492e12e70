"""Groups of a step on the host: joined from rollouts of other widths, filled up, kept and read again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.commands.grpo.gathering import Gatherer, Taken, filled_up, selected, together
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.rewards.calling import Scores

G = 2


def taken_of(scores, number=0, prompt_width=3, new_tokens=4, cut=False) -> Taken:
    """Groups with these scores; every token, and every word of a kept set, tells its rollout and its row."""
    scores = np.asarray(scores, np.float32)
    groups, rows = len(scores), scores.size
    tokens = 100 * number + np.arange(rows)[:, None] + np.zeros((1, prompt_width + new_tokens), int)
    valid = np.ones(tokens.shape, bool)
    valid[:, 0] = False  # padding of the prompt
    mask = np.broadcast_to(np.arange(tokens.shape[1]) >= prompt_width, tokens.shape)
    log_probs = np.where(mask, -1.0, 0.0)
    kept = np.where(mask[..., None], tokens[..., None] + np.arange(2), EVERY).astype(np.uint32) if cut else None
    completions = Completions(tokens.astype(np.int32), valid, mask, log_probs, np.zeros(rows, bool), kept)  # pyright: ignore[reportArgumentType]
    indices = 10 * number + np.arange(groups)
    named = [{"prompt": str(index)} for index in indices for _ in range(G)]
    rollout = Rollout(named, completions, [f"{number}-{row}" for row in range(rows)], prompt_width, 1.0)
    return Taken(indices, rollout, Scores(scores.ravel(), {"mine": scores.ravel()}, np.zeros(rows, bool)))


def chosen_tokens(taken: Taken) -> list[list[int]]:
    completions = taken.rollout.completions
    pairs = zip(np.asarray(completions.tokens), np.asarray(completions.mask), strict=True)
    return [tokens[mask].tolist() for tokens, mask in pairs]


@given(st.tuples(st.integers(2, 5), st.integers(1, 5)), st.tuples(st.integers(2, 5), st.integers(1, 5)))
@settings(max_examples=30, deadline=None)
def test_groups_of_other_widths_are_padded_and_stay_what_they_are(first, second):
    parts = [taken_of([[0, 1], [1, 0]], 0, *first), taken_of([[1, 1]], 1, *second)]
    joined = together(parts)
    assert chosen_tokens(joined) == chosen_tokens(parts[0]) + chosen_tokens(parts[1])
    width = max(first[0], second[0])
    assert joined.rollout.prompt_width == width
    completions = joined.rollout.completions
    assert completions.tokens.shape[1] == width + max(first[1], second[1])
    assert not np.asarray(completions.mask)[:, :width].any()
    for part, rows in zip(parts, (slice(0, 4), slice(4, 6)), strict=True):
        columns = np.asarray(completions.valid)[rows].sum(1)
        assert (columns == np.asarray(part.rollout.completions.valid).sum(1)).all()
    assert joined.by_group().tolist() == [[0, 1], [1, 0], [1, 1]]
    assert joined.rollout.seconds == 2


def test_kept_sets_go_where_their_tokens_go(tmp_path):
    """Joined with others, selected, filled up, written and read again; where nothing was drawn is every token."""
    parts = [taken_of([[0, 1], [1, 0]], 0, 2, 5, cut=True), taken_of([[1, 0]], 1, 4, 3, cut=True)]
    taken = filled_up(selected(together(parts), np.array([2, 0])), 3)
    gatherer = Gatherer(lambda params, number, carried: (taken, None), 3, 1)
    gatherer.kept = gatherer.kept._replace(surplus=taken)
    gatherer.keep(tmp_path, 7)
    again = Gatherer(lambda params, number, carried: (taken, None), 3, 1)
    again.load(tmp_path, 7, [{"prompt": ""}] * 20, lambda completions: [""] * 6)
    for found in (taken, again.kept.surplus):
        completions = found.rollout.completions
        mask = np.asarray(completions.mask)
        assert completions.kept.dtype == np.uint32 and mask[:4].any() and not mask[4:].any()
        np.testing.assert_array_equal(completions.kept[mask], completions.tokens[mask][:, None] + np.arange(2))
        assert (completions.kept[:4][~mask[:4]] == EVERY).all()


def test_selected_groups_keep_their_rows():
    some = selected(taken_of([[0, 1], [1, 0], [1, 1]]), np.array([2, 0]))
    assert some.indices.tolist() == [2, 0] and some.rollout.texts == ["0-4", "0-5", "0-0", "0-1"]
    assert [row["prompt"] for row in some.rollout.rows] == ["2", "2", "0", "0"]
    assert some.by_group().tolist() == [[1, 1], [0, 1]]


def test_places_that_are_missing_teach_nothing():
    full = filled_up(taken_of([[0, 1]]), 3)
    assert len(full.indices) == 3 and np.isnan(full.by_group()[1:]).all()
    mask = np.asarray(full.rollout.completions.mask)
    assert mask[:2].any() and not mask[2:].any()


def scripted(rounds):
    return lambda params, number, carried: (taken_of(rounds[number], number), carried)


ROUNDS = ([[0, 1], [1, 1]], [[0, 1], [1, 0]], [[1, 0], [0, 1]], [[0, 0], [0, 1]])


def test_surplus_groups_come_first_in_the_next_step(tmp_path):
    gather = Gatherer(scripted(ROUNDS), 2, 4)
    first, told, kept = gather(None, 0)
    assert gather.kept.drawn == 0  # a step that fails from here on has taken nothing
    assert gather(None, 0)[0].indices.tolist() == first.indices.tolist() == [0, 10]
    gather.kept = kept
    assert told["sampling/rounds"] == 2 and told["sampling/kept"] == 0.75 and told["sampling/surplus"] == 1
    gather.keep(tmp_path, 8)
    second, _, _ = gather(None, 1)
    assert second.indices.tolist() == [11, 20]
    again = Gatherer(scripted(ROUNDS), 2, 4)
    rows = [{"prompt": str(i)} for i in range(40)]
    again.load(tmp_path, 8, rows, lambda completions: ["1-2", "1-3"])
    resumed, _, _ = again(None, 1)
    assert resumed.indices.tolist() == second.indices.tolist()
    assert resumed.rollout.texts == second.rollout.texts and resumed.rollout.rows == second.rollout.rows
    for left, right in zip(resumed.rollout.completions, second.rollout.completions, strict=True):
        np.testing.assert_array_equal(left, right)


def test_without_rounds_a_rollout_is_taken_as_it_is():
    taken, told, _ = Gatherer(scripted(ROUNDS), 2, 0)(None, 3)
    assert taken.indices.tolist() == [30, 31] and told == {"reward_failures": 0}


def test_the_bound_ends_the_search():
    taken, told, _ = Gatherer(scripted([[[0, 1], [1, 1]], [[1, 1], [0, 0]]]), 2, 2)(None, 0)
    assert told["sampling/filled"] == 0.5 and np.isnan(taken.by_group()[1]).all()
    with pytest.raises(ValueError, match="all solved or all failed"):
        Gatherer(scripted([[[1, 1], [1, 1]]]), 2, 1)(None, 0)


def test_a_group_teaches_where_the_scores_that_tell_differ():
    def first_row(taken):
        return taken.by_group() * np.array([[1.0, 0.0]])  # as if the difference were a punishment's

    taken, _, _ = Gatherer(scripted([[[1, 1], [1, 1]], [[0, 1], [0, 0]]]), 2, 2, first_row)(None, 0)
    assert taken.by_group().tolist() == [[1, 1], [1, 1]]
