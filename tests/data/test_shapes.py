"""Tables in the columns of Alpaca, ShareGPT, GSM8K and MATH are read as if they had the product's own."""

from __future__ import annotations

import json

import pytest

from rlax_llm.data.jsonl import read_rows
from rlax_llm.data.preferences import every_turn, read_demonstrations, read_pairs
from rlax_llm.data.rows import DataError
from rlax_llm.data.shapes import own_reward, shape_of

USER = {"role": "user", "content": "Hi"}
SAID = {"role": "assistant", "content": "Yes?"}
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]


@pytest.fixture
def table(tmp_path):
    def write(*rows):
        path = tmp_path / "table.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "name"),
    [
        ({"instruction": "Add.", "input": "1, 1", "output": "2"}, "Add.\n\n1, 1", "2", "Alpaca"),
        ({"instruction": "Hi", "input": "", "output": "Yes?", "text": "### Hi Yes?"}, "Hi", "Yes?", "Alpaca"),
        (
            {"instruction": "Hi", "output": "Yes?", "system": "Be kind.", "history": [["a", "b"]]},
            [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                USER,
            ],
            [SAID],
            "Alpaca",
        ),
        ({"conversations": TURNS}, [USER], [SAID], "ShareGPT"),
        ({"conversations": [USER, SAID]}, [USER], [SAID], "ShareGPT"),
        ({"conversations": TURNS, "system": "s"}, [{"role": "system", "content": "s"}, USER], [SAID], "ShareGPT"),
        ({"question": "1+1?", "answer": "It is\n#### 2"}, "1+1?", "It is\n#### 2", "GSM8K"),
        ({"problem": "1+1?", "solution": "\\boxed{2}", "answer": "2"}, "1+1?", "\\boxed{2}", "MATH"),
        ({"problem": "1+1?", "answer": 2}, "1+1?", "2", "MATH"),
    ],
)
def test_a_row_is_one_prompt_and_its_completion(table, row, prompt, completion, name):
    """For prompts and for demonstrations, with a sentence on the columns; the answer stays what a reward reads."""
    path = table(row)
    (asked,), shown = read_rows(path), read_demonstrations(path)
    assert asked["prompt"] == prompt
    assert asked["completion"] == (completion if isinstance(completion, str) else completion[0]["content"])
    assert asked.get("answer") == row.get("answer", row.get("solution"))
    assert shown[0][:2] == (prompt, completion)
    assert shown.report().startswith(f"{path}: {name}'s columns; ")
    assert own_reward(path) == ("math_answer" if name in ("GSM8K", "MATH") else None)


def test_every_turn_of_a_conversation_is_kept(table):
    path = table({"conversations": [*TURNS, *TURNS]})
    (shown,) = read_demonstrations(path, form=every_turn)
    assert (len(shown.prompt), len(shown.completion)) == (1, 3)
    assert read_rows(path)[0]["prompt"] == [USER, SAID, USER]
    assert read_rows(table({"messages": [USER, SAID, USER]}))[0] == {"prompt": [USER, SAID, USER]}


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"instruction": "Hi", "chosen": "a", "rejected": "b"}, ("Hi", "a", "b")),
        (
            {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": {"from": "gpt", "value": "No"}},
            ([USER], [SAID], [{"role": "assistant", "content": "No"}]),
        ),
    ],
)
def test_pairs_have_the_same_columns(table, row, pair):
    assert read_pairs(table(row))[0][:3] == pair


def test_own_columns_stay_as_they_are():
    assert shape_of({"prompt": "a", "question": "b", "answer": "c"}) is None
    assert shape_of({"messages": [], "conversations": []}) is None
    assert shape_of({"text": "a"}) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": "Hi"}, "conversations is a string, wanted a list of turns"),
        (
            {"conversations": [{"from": "function_call", "value": "{}"}]},
            "turn 0 of the conversation is from 'func",
        ),
        ({"conversations": ["Hi"]}, "turn 0 of the conversation is a string, wanted an object"),
        ({"conversations": []}, "messages is a list"),
        ({"instruction": 3, "output": "a"}, "the instruction is a number, wanted a string"),
        ({"instruction": "a", "output": "a", "history": "b"}, "the history is a string, wanted a list of pairs"),
        ({"instruction": "a", "input": "b"}, "no column 'prompt'; the columns are instruction, input"),
    ],
)
def test_rows_that_cannot_be_read_are_left_out_by_their_reason(table, row, said):
    with pytest.raises(DataError, match=f"table.jsonl, line 1: {said}"):
        read_rows(table(row))


def test_a_row_without_the_columns_of_the_first_is_left_out(table):
    kept = read_rows(table({"question": "a", "answer": "b"}, {"question": "c"}))
    assert len(kept) == 1 and "1 of 2 rows left out: 1 because no column 'prompt'" in kept.report()
