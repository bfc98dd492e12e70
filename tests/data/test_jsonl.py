import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlax_llm.data.jsonl import read_rows
from rlax_llm.data.rows import DataError
from rlax_llm.data.tasks import Held, file_task

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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "{'prompt'",
            "not JSON (Expecting property name enclosed in double quotes at column 2); wanted one object per line.",
        ),
        ("[" * 100_000, "JSON that Python cannot read (*)."),
        ("[1]", 'a list, wanted an object such as {"prompt": "..."}.'),
        (b'{"prompt": "\xff"}', "byte 13 is not UTF-8; save the file as UTF-8."),
    ],
)
def test_a_line_that_is_no_row_is_named(path, line, said):
    path.write_bytes(
        GOOD.encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n" + GOOD.encode()
    )
    with pytest.raises(DataError) as caught:
        read_rows(path)
    start, _, end = f"{path}, line 3: {said}".partition("*")
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(end)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"promt": "a", "answer": 2}', "no column 'prompt'; the columns are promt, answer; did you mean 'promt'?"),
        ("{}", "no column 'prompt'; the columns are none."),
        ('{"prompt": null, "answer": 2}', "the prompt is null, wanted a string or a list of messages."),
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
        ('{"prompt": "a"}', "the columns are prompt, but most rows' are prompt, answer."),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "answer": 1}',
            "the prompt is a list, but most rows' is a string.",
        ),
        (
            '{"prompt": "a", "answer": ["\\ud83d"]}',
            "column 'answer' holds half a character (\\ud83d); write it whole or remove it.",
        ),
        (
            '{"prompt": [{"role": "user", "content": "\\udc00"}], "answer": 1}',
            "column 'prompt' holds half a character (\\udc00); write it whole or remove it.",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_and_named(path, line, said):
    path.write_text(GOOD + "\n" + line + "\n" + GOOD)
    kept = read_rows(path)
    assert list(kept) == [{"prompt": "1+1=", "answer": 2}] * 2
    assert kept.places == [f"{path}, line 1", f"{path}, line 4"]
    assert kept.left_out == [(f"{path}, line 3", f"{path}, line 3: {said}")]


def test_whole_characters_are_not_halves(path):
    path.write_text('{"prompt": "\\ud83d\\ude00 \\u00e9"}')
    assert read_rows(path)[0] == {"prompt": "😀 é"}


def test_a_file_without_a_row_that_can_be_used_is_refused_with_the_first_reason(path):
    path.write_text('{"promt": "a"}\n{"promt": "b"}\n')
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(caught.value) == (
        f"{path}: none of the 2 rows can be used. {path}, line 1: no column 'prompt'; the columns are promt; "
        "did you mean 'promt'?"
    )


def test_a_bad_file_is_named(path):
    more = "hold out none (--eval-size 0), or take those of a file (--eval-data)."
    for content, said in [
        (None, "cannot be read (No such file or directory)."),
        ("\n", "the file has no rows; wanted one JSON object per line."),
        (GOOD, f"only one prompt in all, and holding some out needs at least 2; {more}"),
        (GOOD * 2, f"only one prompt in all, and holding some out needs at least 2; {more}"),
    ]:
        if content is not None:
            path.write_text(content)
        with pytest.raises(DataError) as caught:
            file_task(path, None, Held(1))
        assert str(caught.value) == f"{path}: {said}"
    with pytest.raises(DataError, match="cannot be read"):
        file_task(path.parent, None, Held(1))


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=12).filter(lambda prompts: len(set(prompts)) > 1))
def test_one_prompt_is_on_one_side(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "row": i}) + "\n" for i, prompt in enumerate(prompts)))
    task = file_task(path, None, Held(1))
    assert len(task.held_out) == 1
    assert {row["prompt"] for row in task.train}.isdisjoint(row["prompt"] for row in task.held_out)
    for part in (task.train, task.held_out):
        assert part.places == [f"{path}, line {row['row'] + 1}" for row in part]
