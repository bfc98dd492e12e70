import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlax_llm.data.jsonl import load, read_rows
from rlax_llm.data.rows import DataError

CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
GOOD = '{"prompt": "1+1=", "answer": 2}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def test_rows_come_as_written_past_byte_order_mark_and_blank_lines(path):
    path.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "é"}\r\n\n  \n{"prompt": "b\\u2028"}'.encode())
    assert list(read_rows(path)) == [{"prompt": "é"}, {"prompt": "b\u2028"}]


def test_a_demonstration_is_a_string_however_it_is_written(path):
    rows = [
        {"prompt": CHAT, "completion": "a"},
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "b"}]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(read_rows(path)) == [{"prompt": CHAT, "completion": "a"}, {"prompt": CHAT, "completion": "b"}]


def test_rows_are_read_as_they_are_asked_for(path):
    path.write_text(GOOD + "broken")
    rows = read_rows(path)
    assert next(rows)["answer"] == 2
    with pytest.raises(DataError, match="line 2: not JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "{'prompt'",
            "not JSON (Expecting property name enclosed in double quotes at column 2); wanted one object a line.",
        ),
        ("[" * 100_000, "JSON that Python cannot read (*)."),
        ("[1]", 'a list, wanted an object such as {"prompt": "..."}.'),
        ('{"answer": 2}', "no column 'prompt'; the columns are answer."),
        ("{}", "no column 'prompt'; the columns are none."),
        ('{"prompt": 3, "answer": 2}', "the prompt is a number, wanted a string or a list of messages."),
        ('{"prompt": "", "answer": 2}', "the prompt is empty."),
        ('{"prompt": [], "answer": 2}', "the prompt is empty."),
        ('{"prompt": ["hi"], "answer": 2}', "message 0 of the prompt is a string, wanted an object."),
        ('{"prompt": [{"content": "hi"}]}', "message 0 of the prompt has 'role' missing, wanted a string."),
        (
            '{"prompt": [{"role": "user", "content": null}]}',
            "message 0 of the prompt has 'content' null, wanted a string.",
        ),
        ('{"prompt": "a", "completion": {}}', "the completion is an object, wanted a string or one assistant message."),
        ('{"prompt": "a"}', "the columns are prompt, but the first row's are prompt, answer."),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "answer": 1}',
            "the prompt is a list, but the first row's is a string.",
        ),
        (b'{"prompt": "\xff"}', "byte 13 is not UTF-8; save the file as UTF-8."),
    ],
)
def test_a_bad_line_is_named(path, line, said):
    path.write_bytes(
        GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + GOOD.encode()
    )
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    start, _, end = f"{path}, line 3: {said}".partition("*")
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


def test_a_bad_file_is_named(path):
    for content, said in [
        (None, "cannot be read (No such file or directory)."),
        ("\n", "the file has no rows; wanted one JSON object a line."),
        (GOOD, "the file has 1 row; wanted at least 2, one to train on and one to hold out."),
        (GOOD * 2, "1 different prompts in all; holding some out needs at least 2."),
    ]:
        if content is not None:
            path.write_text(content)
        with pytest.raises(DataError) as caught:
            load(path, 1, 0)
        assert str(caught.value) == f"{path}: {said}"
    with pytest.raises(DataError, match="cannot be read"):
        load(path.parent, 1, 0)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12).filter(lambda prompts: len(set(prompts)) > 1))
def test_one_prompt_is_on_one_side(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "row": i}) + "\n" for i, prompt in enumerate(prompts)))
    train, held_out = load(path, 1, 0)
    assert len(held_out) == 1
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in held_out)
