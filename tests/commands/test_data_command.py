"""``rlax-llm data``: what is shown of a file, and that it is what the training commands read."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from rlax_llm.cli.main import main
from rlax_llm.commands.data.run import run_data
from rlax_llm.commands.data.settings import DataSettings
from rlax_llm.commands.data.showing import colored, columns_grid, lengths_grid, pieces
from rlax_llm.commands.data.uses import encode_prompts, use_of
from rlax_llm.commands.grids import on_screen
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.data.encoding import DemonstrationTokens, PairTokens, encode_stepwise
from rlax_llm.data.preferences import read_stepwise
from rlax_llm.data.rows import DataError
from rlax_llm.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer.characters("0123456789+=")
TURNS = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4."}]


@pytest.fixture
def table(tmp_path):
    def write(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("row", "use"),
    [
        ({"prompt": "1+1=", "chosen": "2", "rejected": "3"}, "dpo"),
        ({"prompt": "1+1=", "completion": "2", "label": True}, "kto"),
        ({"prompt": "1+1=", "completions": ["1+1", "2"], "labels": [True, False]}, "process"),
        ({"prompt": "1+1=", "completion": "2"}, "sft"),
        ({"text": "1+1=2"}, "sft"),
        ({"conversations": TURNS}, "sft"),
        ({"instruction": "1+1=", "output": "2"}, "sft"),
        ({"question": "1+1=", "answer": "#### 2"}, "grpo"),
        ({"prompt": "1+1=", "answer": 2}, "grpo"),
    ],
)
def test_columns_choose_the_command(table, row, use):
    assert use_of(table("a.jsonl", row), "train") == use


def test_columns_and_lengths_are_counted():
    grid = columns_grid("a", [{"x": "a", "y": None}, {"x": 3, "y": None}], everything=True)
    assert grid.title == "a: 2 rows" and grid.rows == [
        ["x", "a string or a number", "100%", "a"],
        ["y", "null", "0%", ""],
    ]
    rows = [DemonstrationTokens([2] * n, [3] * 4, [True, False, True, True]) for n in (1, 2, 3, 30)]
    lines = {line[0]: line[1:] for line in lengths_grid(rows).rows}
    assert lines["prompt"] == ["1", "2", "30", "30", "36"]
    assert lines["completion"][-1] == "16" and lines["completion, learned"][-1] == "12"
    assert [line[0] for line in lengths_grid([PairTokens([2], [3], [4])]).rows] == ["prompt", "chosen", "rejected"]


def _shown(row, in_color):
    console = Console(width=60, color_system="standard" if in_color else None, force_terminal=in_color)
    with console.capture() as capture:
        for text in colored(TOKENIZER, row, in_color):
            console.print(text, end="|")
    return capture.get()


def test_a_terminal_obeys_nothing_of_a_file():
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(on_screen(columns_grid("b[/b].jsonl", [{"x\x1b": "\x1b[2J\u202e"}], everything=True)))
    shown = capture.get()
    assert "b[/b].jsonl: 1 row" in shown and "x␛" in shown and "␛[2J⟨202e⟩" in shown
    odd = Tokenizer.characters("\x1b\r1")
    assert pieces(odd, odd.encode("1\x1b\r")) == ["1", "␛", "␍"]


def test_tokens_show_what_is_learned_from():
    """With brackets where there is no color, else green, bold by turns; a rejected side is red, the rest yellow."""
    ids = TOKENIZER.encode("1+1=2")
    row = DemonstrationTokens(ids[:2], ids[2:], [True, False, True])
    assert _shown(row, False) == "1+⟦1⟧=⟦2⟧|"
    assert _shown(row, True).startswith("\x1b[2m1\x1b[0m\x1b[2m+\x1b[0m\x1b[32m1\x1b[0m\x1b[33m=\x1b[0m")
    pair = PairTokens(ids[:4], ids[4:], ids[:1])
    assert _shown(pair, False) == "1+1=|chosen: ⟦2⟧|rejected: ⟦1⟧|"
    assert "\x1b[31m1" in _shown(pair, True)
    (prompt,) = encode_prompts(TOKENIZER, [{"prompt": "1+1=", "answer": 2, "completion": "2"}])
    assert _shown(prompt, False) == "1+1=|for the reward: answer: 2|"


def test_pieces_join_to_the_text_and_long_rows_are_cut():
    ids = TOKENIZER.encode("12+3=") * 100
    found = pieces(TOKENIZER, ids)
    assert "".join(found[:-1]) == "12+3=" * 80 and found[-1] == " … 100 more tokens"


def test_a_file_is_shown_as_it_is_trained_on(table, capsys):
    """The chat text, learned tokens of every turn, what is left out and the limit that keeps it, repeated prompts."""
    alpaca = table(
        "alpaca.jsonl",
        {"instruction": "2+2?", "input": "", "output": "4."},
        {"instruction": "A story.", "input": "", "output": "Once more. " * 60},
        {"instruction": "Empty", "input": "", "output": ""},
    )
    chats = table("chats.jsonl", {"conversations": TURNS}, {"conversations": [*TURNS, *TURNS]})
    found = run_data(DataSettings.of(files=[alpaca, chats], every_turn=True))
    assert [len(kept) for kept in found] == [1, 2]
    shown = capsys.readouterr().out
    assert "Alpaca's columns; " in shown and "ShareGPT's columns; " in shown
    assert "the completion is empty (line 3)" in shown and "more than max_new_tokens 64 (line 2)" in shown
    assert "Used: 1 of 3 rows; --max-new-tokens " in shown
    assert shown.count("<|im_start|>assistant⏎\n⟦4.<|im_end|>⟧") == 3 + 1
    assert "1 of 2 rows repeat" in shown and "1 prompts of" in shown, "of the first file too"


def test_labeled_steps_are_shown_where_each_is_judged(table, capsys):
    right, wrong = ["2+3", "5"], ["2+3", "6"]
    path = table(
        "steps.jsonl",
        {"prompt": "1+1+3=", "completions": right, "labels": [True, True]},
        {"prompt": "1+1+3=", "completions": wrong, "labels": [True, False]},
        {"prompt": "1+1+3=", "completions": ["2+3"], "labels": [True, False]},
        {"prompt": "1+1+3=", "completions": ["1" * 12, "5"], "labels": [False, False]},
    )
    words = ["data", path, "--model", "char", "--step-separator", "=", "--max-new-tokens", "9", "--rows", "4"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "Read as completions of labeled steps, for rlax-llm reward --process; --use names another" in told
    assert "there are 1 completions and 2 labels, wanted a label for each step (line 3)" in told
    assert "the completion has 15 tokens, more than max_new_tokens 9 (line 4)" in told
    assert "Used: 2 of 4 rows; --max-new-tokens 15 keeps all that can be read." in told
    assert "right step: 2+3⟦=⟧" in told and "wrong step: 6⟦=⟧" in told
    (used,) = run_data(DataSettings.of(files=(path,), model="char", step_separator="=", max_new_tokens=20, rows=0))
    assert list(used) == encode_stepwise(Tokenizer.characters(ALPHABET), read_stepwise(path), "=")
    assert main(["data", path, "--use", "kto", "--step-separator", "="]) == 2
    assert (
        "--step-separator is given with --use kto, whose completions are not read in steps" in capsys.readouterr().err
    )


def test_prompts_and_the_rewards_that_read_their_answers(table, capsys):
    path = table("sums.jsonl", {"question": "1+1=", "answer": "#### 2"}, {"question": "1+2=", "answer": "many"})
    assert main(["data", path, "--model", "char", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Read as prompts, for rlax-llm grpo" in shown and "of 2: integer_answer 1, math_answer 2" in shown
    assert "line 1:\n1+1=\nfor the reward: answer: #### 2" in shown


def test_a_file_that_cannot_be_used_shows_its_columns_first(table, capsys):
    path = table("rows.jsonl", {"prompt": "abc", "answer": 1})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: "):
        run_data(DataSettings.of(files=path, model="char"))
    assert "answer   a number" in capsys.readouterr().out
