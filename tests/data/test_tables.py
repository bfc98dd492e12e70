from __future__ import annotations

import gzip
import json
import sys

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from rlax_llm.data.rows import DataError
from rlax_llm.data.tables import json_kind, read_table
from rlax_llm.data.tasks import Held, file_task

ROWS = [{"prompt": [{"role": "user", "content": f"{n}+1?"}], "margin": n / 2, "label": n % 2 == 0} for n in range(2500)]


@pytest.fixture
def table():
    return pyarrow.Table.from_pylist(ROWS)


def error(path, split="train") -> str:
    with pytest.raises(DataError) as caught:
        list(read_table(path, split))
    return str(caught.value)


def test_every_kind_of_table_gives_the_same_rows(tmp_path, table):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    parquet.write_table(table, tmp_path / "no_suffix")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    splits = datasets.DatasetDict({"train": datasets.Dataset(table), "test": datasets.Dataset(table.slice(0, 1))})
    splits.save_to_disk(tmp_path / "splits")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf\r\n " + json.dumps(ROWS).encode()))
    for name, place in [
        ("a.jsonl", "line"),
        ("a.jsonl.gz", "line"),
        ("a.json", "row"),
        ("b.json.gz", "row"),
        ("a.parquet", "row"),
        ("no_suffix", "row"),
        ("saved", "row"),
        ("splits", "row"),
    ]:
        path = tmp_path / name
        assert list(read_table(path)) == [(f"{path}, {place} {n}", row) for n, row in enumerate(ROWS, start=1)]
        assert [row for _, row in read_table(str(path))] == ROWS
    assert [row for _, row in read_table(tmp_path / "splits", "test")] == ROWS[:1]


def test_rows_chosen_and_shuffled_by_datasets_come_in_that_order(tmp_path, table):
    datasets.Dataset(table).select([7, 3, 2000]).save_to_disk(tmp_path / "saved")
    assert [row for _, row in read_table(tmp_path / "saved")] == [ROWS[7], ROWS[3], ROWS[2000]]


def test_a_task_can_be_a_parquet_file(tmp_path, table):
    parquet.write_table(table, tmp_path / "rows.parquet")
    task = file_task(tmp_path / "rows.parquet", None, Held(10))
    rows = [*task.train, *task.held_out]
    assert sorted(row["margin"] for row in rows) == [row["margin"] for row in ROWS]


def test_blank_lines_and_a_byte_order_mark_are_passed_over_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n\n  \n{"a": 2}')
    assert [(where.removeprefix(str(path)), row["a"]) for where, row in read_table(path)] == [
        (", line 2", 1),
        (", line 5", 2),
    ]


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nbroken')
    rows = read_table(tmp_path / "a.jsonl")
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(DataError, match="line 2: not JSON"):
        next(rows)


def test_bad_files_are_named(tmp_path, table):
    missing, empty, broken = tmp_path / "none.jsonl", tmp_path / "empty.jsonl", tmp_path / "broken.parquet"
    assert error(missing) == f"{missing}: cannot be read (No such file or directory)."
    assert error("rows/none.jsonl") == "rows/none.jsonl: cannot be read (No such file or directory)."
    empty.write_text("\n")
    assert error(empty) == f"{empty}: the file has no rows; wanted one JSON object per line."
    (tmp_path / "cut.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode())[:-9])
    assert error(tmp_path / "cut.gz").startswith(f"{tmp_path / 'cut.gz'}: cannot be read as gzip (Compressed file")
    (tmp_path / "array.json").write_text('[{"prompt": "a"},\n{"prompt": ]')
    assert error(tmp_path / "array.json") == (
        f"{tmp_path / 'array.json'}, line 2: not JSON (Expecting value at column 12); the file begins with '[', "
        "wanted one array of objects, or one object per line."
    )
    (tmp_path / "array.json").write_text('[{"prompt": "a"}, 3]')
    assert error(tmp_path / "array.json").endswith('row 2: a number, wanted an object such as {"prompt": "..."}.')
    (tmp_path / "array.json").write_text("[]")
    assert error(tmp_path / "array.json").endswith("the table has no rows; wanted at least one.")
    broken.write_bytes(b"PAR1 and nothing")
    assert error(broken).startswith(f"{broken}: cannot be read as Parquet (")
    parquet.write_table(table.slice(0, 0), broken)
    assert error(broken) == f"{broken}: the table has no rows; wanted at least one."
    assert error(tmp_path) == (
        f"{tmp_path}: cannot be read (a directory without state.json or dataset_dict.json, which save_to_disk writes)."
    )
    datasets.DatasetDict({"one": datasets.Dataset(table), "two": datasets.Dataset(table)}).save_to_disk(tmp_path / "d")
    assert error(tmp_path / "d") == f"{tmp_path / 'd'}: no split 'train'; the splits are one, two."
    (tmp_path / "one" / "data").mkdir(parents=True)
    (tmp_path / "one" / "state.json").write_text("{}")
    assert error(tmp_path / "one").startswith(f"{tmp_path / 'one'}: cannot be read as a saved data set (")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.parquet",
            b"<!DOCTYPE html>\n<html>",
            "neither Parquet nor JSON (it begins with '<!DOCTYPE html>\\n<html>')",
        ),
        ("a.parquet", b"PAR", "neither Parquet nor JSON (it begins with 'PAR')"),
        ("a.parquet", b"", "neither Parquet nor JSON (it begins with nothing)"),
        ("a.jsonl.GZ", b"version https://git-lfs.github.com/spec/v1", "(it begins with 'version https://git-lfs.')"),
        ("a.gz", b"\x1f", "neither gzip nor JSON (it begins with '\\x1f')"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told_so(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    told = error(tmp_path / name)
    assert told.startswith(f"{tmp_path / name}: named {(tmp_path / name).suffix}, and neither ")
    assert told.endswith(f"{said}; download or write it again, or give it the name of what it is.")


def test_csv_is_told_what_to_become(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer\n1+1=,2\n")
    told = error(tmp_path / "a.csv")
    assert told.startswith(
        f"{tmp_path}/a.csv: CSV is not read; write it as .jsonl, .json or .parquet, as with pandas: "
    )
    assert told.endswith('read_csv("a.csv").to_json("a.jsonl", orient="records", lines=True).')


@pytest.mark.parametrize("name", ["a.parquet", "a.gz"])
def test_json_by_another_name_is_read(tmp_path, name):
    (tmp_path / name).write_text('\n{"a": 1}\n')
    assert [row for _, row in read_table(tmp_path / name)] == [{"a": 1}]


def test_a_hub_name_is_loaded_or_refused_in_one_sentence(monkeypatch, table):
    asked = []

    def load_dataset(name, *configuration, split):
        asked.append((name, *configuration, split))
        if name == "openai/gsm8k" and not configuration:
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['main', 'socratic']\nAs"
            )
        if configuration == ("main",):
            return datasets.Dataset(table)
        if name == "some/rows":
            return datasets.Dataset(table)
        raise ConnectionError("Couldn't reach the Hub.\nmany\nlines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row for _, row in read_table("some/rows")] == ROWS
    assert next(read_table("some/rows"))[0] == "some/rows, row 1"
    assert error("some/others", "test") == (
        "some/others: neither a file here nor a data set that the Hugging Face hub gives with the split 'test' "
        "(Couldn't reach the Hub); check the name and the connection, or give a file."
    )
    assert asked[-1] == ("some/others", "test")
    assert next(read_table("openai/gsm8k:main", "test")) == ("openai/gsm8k:main, row 1", ROWS[0])
    assert asked[-1] == ("openai/gsm8k", "main", "test")
    assert error("openai/gsm8k") == (
        "openai/gsm8k: a data set of several configurations, main, socratic; name one, as openai/gsm8k:main."
    )


def test_a_missing_package_is_named(monkeypatch, tmp_path, table):
    parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert error(tmp_path / "a.parquet") == (
        f"{tmp_path / 'a.parquet'}: a Parquet file needs the package pyarrow; pip install 'rlax-llm[datasets]'."
    )
    for name in (tmp_path / "saved", "some/rows"):
        assert error(name) == (
            f"{name}: a data set of the Hugging Face hub, or a directory, needs the package datasets; "
            "pip install 'rlax-llm[datasets]', or give a JSON Lines file."
        )


def test_values_are_named_by_their_type_in_json():
    values = ["a", 1, 0.5, True, None, [], {}, b""]
    assert [json_kind(value) for value in values] == [
        "a string",
        "a number",
        "a number",
        "a boolean",
        "null",
        "a list",
        "an object",
        "of type bytes",
    ]
