from __future__ import annotations

import pytest

from rlax_llm.data.rows import DataError
from rlax_llm.data.sifting import Kept, LeftOut, flatten_rows, keep_commonest, number_rows, sift


def odd(rows):
    """The rows as text, none of which is even."""
    for row in rows:
        if row % 2 == 0:
            raise DataError(f"{row} is even; take an odd number.")
    return [str(row) for row in rows]


def number(where, row):
    if not row.isdigit():
        raise DataError(f"{where}: {row!r} is no number.")
    return int(row)


def test_a_bad_row_among_many_is_left_out_alone_and_the_others_stay_in_order():
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return odd(rows)

    numbers = [1] * 2500
    numbers[1200] = 4
    kept = number_rows("d", numbers).then(counted)
    assert (len(kept), kept.left_out) == (2499, [LeftOut("d, row 1201", "d, row 1201: 4 is even; take an odd number.")])
    assert kept.places[1199:1201] == ["d, row 1200", "d, row 1202"]
    assert (calls.count(1000), calls.count(1), calls.count(500)) == (2, 1000, 1), "only its own lot is tried apart"


def test_what_was_left_out_before_and_the_notes_stay():
    kept = sift("d", [("d, line 1", "1"), ("d, line 2", "x"), ("d, line 3", "2")], number)
    kept = kept.noted("d: a note").then(odd)
    assert list(kept) == ["1"]
    assert kept.report().splitlines() == [
        "d: a note",
        "d: 2 of 3 rows left out: 1 because 'x' is no number (line 2); 1 because 2 is even (line 3)",
    ]


def test_a_report_counts_each_reason_and_names_the_first_places():
    reasons = ["equal", "7 tokens long", "equal", "9 tokens long", *["null"] * 6, "a", "b", "c", "'d'"]
    left_out = [LeftOut(f"t, line {n}", f"t, line {n}: it is {said}; x.") for n, said in enumerate(reasons, 1)]
    assert Kept("t", [0] * 1000, [""] * 1000, left_out).report() == (
        "t: 14 of 1,014 rows left out: 6 because it is null (lines 5, 6, 7, 8, …); 2 because it is equal (lines 1, 3); "
        "2 because, as in line 2, it is 7 tokens long (lines 2, 4); 1 because it is a (line 11); 3 for other reasons"
    )


def test_nothing_left_says_why_the_first_row_was_left_out():
    with pytest.raises(DataError) as caught:
        number_rows("d", [2, 4]).then(odd)
    assert str(caught.value) == "d: none of the 2 rows can be used. d, row 1: 2 is even; take an odd number."
    with pytest.raises(DataError, match=r"^d, row 1: 2 is even"):
        number_rows("d", [2]).then(odd)
    assert len(number_rows("d", []).then(odd)) == 0


def test_other_errors_are_not_caught():
    with pytest.raises(ZeroDivisionError):
        number_rows("d", [1]).then(lambda rows: [1 / 0 for _ in rows])


def test_the_commonest_form_is_kept_whatever_comes_first():
    kept = keep_commonest(
        number_rows("d", ["x", 1, 2]), type, lambda row, usual: f"it is {row!r}, most are like {usual!r}."
    )
    assert list(kept) == [1, 2]
    assert kept.report() == "d: 1 of 3 rows left out: 1 because it is 'x', most are like 1 (row 1)"
    same = number_rows("d", [1, 2])
    assert keep_commonest(same, type, lambda row, usual: "") is same


def test_lists_come_apart_with_their_places():
    kept = flatten_rows(Kept("d", [[1, 2], [3]], ["line 1", "line 4"], [LeftOut("line 2", "line 2: no.")]))
    assert (list(kept), kept.places, len(kept.left_out)) == ([1, 2, 3], ["line 1", "line 1", "line 4"], 1)


def test_nothing_left_for_several_reasons_counts_them():
    left_out = [LeftOut(f"t, line {n}", f"t, line {n}: it is {said}; x.") for n, said in enumerate("aabb", 1)]
    left_out += [LeftOut("t, line 5", "t, line 5: it is b; x.")]
    with pytest.raises(DataError) as caught:
        Kept("t", [], [], left_out).checked()
    assert str(caught.value) == (
        "t: none of the 5 rows can be used: 3 because it is b (lines 3, 4, 5); 2 because it is a (lines 1, 2)."
    )
