from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.data.messages import Verbatim
from rlax_llm.data.preferences import (
    Labeled,
    Pair,
    every_turn,
    labeled_completion,
    last_turn,
    pair,
    prompt_key,
    read_demonstrations,
    read_labeled,
    read_pairs,
    read_stepwise,
    split_pairs,
    stepwise,
)
from rlax_llm.data.rows import DataError, split_rows


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


QUESTION = [{"role": "system", "content": "Be brief."}, user("1+1?")]
TURNS = [*QUESTION, assistant("2"), user("Sure?"), assistant("Yes.")]


@pytest.fixture
def write(tmp_path):
    def written(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


# Forms.


def test_pairs_standard_and_conversational():
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 1, "source": "a"}
    assert pair("w", row) == Pair("1+1=", "2", "3", 1.0, "w", {"source": "a"})
    row = {"prompt": QUESTION, "chosen": [assistant("2")], "rejected": [assistant("3")], "margin": None}
    assert pair("w", row) == Pair(QUESTION, [assistant("2")], [assistant("3")], None, "w", {})


def test_a_completion_takes_the_form_of_its_prompt():
    assert pair("w", {"prompt": QUESTION, "chosen": "2", "rejected": [assistant("3")]})[:3] == (
        QUESTION,
        [assistant("2")],
        [assistant("3")],
    )
    assert labeled_completion("w", {"prompt": "1+1=", "completion": [assistant("2")], "label": True}).completion == "2"


def test_an_implicit_prompt_of_messages_is_whole_messages():
    row = {"chosen": [*TURNS[:4], assistant("Yes.")], "rejected": [*TURNS[:4], assistant("No.")]}
    assert pair("w", row)[:3] == (TURNS[:4], [assistant("Yes.")], [assistant("No.")])


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("Q: 1+1? A: 2", "Q: 1+1? A: 3", ("Q: 1+1? A:", " 2", " 3")),
        ("ab", "abc", ("a", "b", "bc")),
        ("abc", "ab", ("a", "bc", "b")),
        ("a b", "a b c", ("a", " b", " b c")),
        ("a\nb", "a\nc", ("a\n", "b", "c")),
    ],
)
def test_an_implicit_prompt_of_strings_leaves_something_on_both_sides(chosen, rejected, parts):
    read = pair("w", {"chosen": chosen, "rejected": rejected})
    assert read[:3] == parts
    assert all(isinstance(part, Verbatim) for part in read[:3])


@settings(max_examples=30, deadline=None)
@given(st.text("ab ", min_size=1), st.text("ab ", min_size=1))
def test_an_implicit_prompt_is_the_longest_that_can_be(chosen, rejected):
    try:
        prompt, left, right, *_ = pair("w", {"chosen": chosen, "rejected": rejected})
    except DataError:
        assert (
            chosen == rejected or chosen[0] != rejected[0] or min(len(chosen), len(rejected)) == 1 or chosen[0] == " "
        )
        return
    assert (prompt + left, prompt + right) == (chosen, rejected)
    assert prompt and left and right
    longer = min(len(left), len(right)) == 1 or left[0] != right[0]
    cut = left[0] == right[0] == " " and (min(len(left), len(right)) <= 2 or left[1] != right[1])
    assert longer or cut


@pytest.mark.parametrize(("label", "meant"), [(True, True), (False, False), (1, True), (0, False), (1.0, True)])
def test_labels_are_booleans_or_ones_and_noughts(label, meant):
    row = {"prompt": "a", "completion": "b", "label": label, "n": 3}
    assert labeled_completion("w", row) == Labeled("a", "b", meant, "w", {"n": 3})
    assert labeled_completion("w", row).label is meant


def test_demonstrations_of_every_form():
    assert last_turn("w", {"prompt": "a", "completion": "b", "c": 1}) == ("a", "b", "w", {"c": 1})
    assert last_turn("w", {"messages": TURNS, "c": 1}) == (TURNS[:-1], TURNS[-1:], "w", {"c": 1})
    assert every_turn("w", {"messages": TURNS}) == (QUESTION, TURNS[2:], "w", {})
    assert every_turn("w", {"messages": TURNS[:3]}) == last_turn("w", {"messages": TURNS[:3]})
    assert every_turn("w", {"prompt": "a", "completion": "b"}) == last_turn("w", {"prompt": "a", "completion": "b"})
    text = last_turn("w", {"text": "abc"})
    assert (text.prompt, text.completion) == ("", "abc")
    assert isinstance(text.prompt, Verbatim)


def test_pairs_come_apart_into_labels():
    pairs = [Pair("a", "b", "c", 0.5, "w", {"n": 1}), Pair("d", "e", "f")]
    apart = split_pairs(pairs)
    assert apart[:2] == [Labeled("a", "b", True, "w", {"n": 1}), Labeled("a", "c", False, "w", {"n": 1})]
    assert [row.label for row in apart] == [True, False, True, False]


def test_files_of_each_form(write):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    path = write(*rows)
    assert [row.where for row in read_pairs(path)] == [f"{path}, line 1", f"{path}, line 2"]
    assert list(read_labeled(path)) == split_pairs(read_pairs(path))
    path = write({"messages": TURNS})
    assert len(read_demonstrations(path)[0].prompt) == 4
    assert len(read_demonstrations(path, form=every_turn)[0].prompt) == 2


# Errors.

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LABEL = {"prompt": "a", "completion": "b", "label": True}
SHOWN = {"prompt": QUESTION, "completion": [assistant("2")]}
STEPS = {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        (
            pair,
            {"prompt": "a", "completion": "b", "label": True},
            "no column 'chosen'; the columns are prompt, completion, label, nearest to an unpaired preference "
            "(prompt, completion, label), wanted those of a preference (prompt, chosen, rejected).",
        ),
        (
            pair,
            {"prompt": "a", "chosen": "b", "reject": "c"},
            "no column 'rejected'; the columns are prompt, chosen, reject, wanted those of a preference "
            "(prompt, chosen, rejected); did you mean 'reject'?",
        ),
        (
            pair,
            {"prompt": "a", "choosen": "b", "rejected": "c"},
            "no column 'chosen'; the columns are prompt, choosen, rejected, wanted those of a preference "
            "(prompt, chosen, rejected); did you mean 'choosen'?",
        ),
        (
            labeled_completion,
            {"prompt": "a", "completion": "b"},
            "no column 'label'; the columns are prompt, completion, nearest to a demonstration (prompt, completion), "
            "wanted those of an unpaired preference (prompt, completion, label).",
        ),
        (
            last_turn,
            {},
            "no column 'prompt'; the columns are none, wanted those of a demonstration (prompt, completion).",
        ),
        (pair, PAIR | {"chosen": 3}, "the chosen is a number, wanted a string or a list of messages."),
        (pair, PAIR | {"prompt": None}, "the prompt is null, wanted a string or a list of messages."),
        (pair, PAIR | {"prompt": ""}, "the prompt is empty."),
        (pair, PAIR | {"rejected": ""}, "the rejected is empty."),
        (pair, PAIR | {"rejected": []}, "the rejected is empty."),
        (pair, PAIR | {"rejected": [assistant("")]}, "the rejected is empty."),
        (
            pair,
            PAIR | {"rejected": "b"},
            "chosen and rejected are equal; a preference needs two different completions.",
        ),
        (
            pair,
            PAIR | {"rejected": [assistant("b")]},
            "chosen and rejected are equal; a preference needs two different completions.",
        ),
        (
            pair,
            {"chosen": "ab", "rejected": "bb"},
            "no column 'prompt', and chosen and rejected have no common beginning to take for it.",
        ),
        (
            pair,
            {"chosen": "ab", "rejected": [assistant("b")]},
            "chosen is a string and rejected a list; wanted two of a kind.",
        ),
        (
            pair,
            {"chosen": TURNS[:3], "rejected": [*QUESTION, assistant("3"), user("?")]},
            "the last message of the rejected is the user's, wanted the assistant's.",
        ),
        (
            pair,
            {"chosen": TURNS[:3], "rejected": [*QUESTION, assistant("3"), user("?"), assistant("4"), assistant("5")]},
            "the last two messages of the rejected are both the assistant's; join them into one.",
        ),
        (
            labeled_completion,
            LABEL | {"prompt": "Say \ud83d"},
            "the prompt has half of a character, '\\ud83d' (a lone surrogate), at position 4; write the character "
            "whole or remove it.",
        ),
        (
            labeled_completion,
            SHOWN | {"label": True, "completion": [assistant("\udc00")]},
            "message 0 of the completion has half of a character, '\\udc00' (a lone surrogate), at position 0; write "
            "the character whole or remove it.",
        ),
        (
            last_turn,
            SHOWN | {"completion": [{"role": "assistant", "content": [{"type": "image"}]}]},
            "message 0 of the completion: the content of a message holds 'image', wanted text or parts of type 'text'.",
        ),
        (pair, PAIR | {"margin": "2"}, "the margin is '2', wanted a number."),
        (pair, PAIR | {"margin": True}, "the margin is True, wanted a number."),
        (pair, PAIR | {"margin": [1]}, "the margin is a list, wanted a number."),
        (pair, PAIR | {"margin": float("nan")}, "the margin is nan, wanted a finite number."),
        (pair, PAIR | {"margin": float("-inf")}, "the margin is -inf, wanted a finite number."),
        (labeled_completion, LABEL | {"label": "yes"}, "the label is 'yes', wanted true or false (1 or 0)."),
        (labeled_completion, LABEL | {"label": 2}, "the label is 2, wanted true or false (1 or 0)."),
        (labeled_completion, LABEL | {"label": None}, "the label is null, wanted true or false (1 or 0)."),
        (labeled_completion, LABEL | {"completion": ""}, "the completion is empty."),
        (
            stepwise,
            LABEL,
            "no column 'completions'; the columns are prompt, completion, label, nearest to an unpaired preference "
            "(prompt, completion, label), wanted those of a completion of labeled steps (prompt, completions, labels); "
            "did you mean 'completion'?",
        ),
        (
            stepwise,
            STEPS | {"completions": "a"},
            "completions is a string, wanted a list, with an entry for each step.",
        ),
        (stepwise, STEPS | {"completions": []}, "completions is empty, wanted at least one step."),
        (stepwise, STEPS | {"completions": ["b", 3]}, "step 1 of the completions is a number, wanted a string."),
        (stepwise, STEPS | {"completions": ["b", "\n"]}, "the step 1 of the completions is empty."),
        (
            stepwise,
            STEPS | {"labels": [True]},
            "there are 2 completions and 1 labels, wanted a label for each step.",
        ),
        (stepwise, STEPS | {"labels": [True, 2]}, "label 1 is 2, wanted true or false (1 or 0)."),
        (
            last_turn,
            SHOWN | {"completion": [user("2")]},
            "the last message of the completion is the user's, wanted the assistant's.",
        ),
        (
            last_turn,
            SHOWN | {"completion": [{"role": "assistant"}]},
            "message 0 of the completion has 'content' missing, wanted a string.",
        ),
        (last_turn, SHOWN | {"prompt": ["hi"]}, "message 0 of the prompt is a string, wanted an object."),
        (last_turn, {"messages": "hi"}, "messages is a string, wanted a list of messages."),
        (last_turn, {"messages": []}, "the conversation is empty."),
        (
            last_turn,
            {"messages": QUESTION},
            "the last message of the conversation is the user's, wanted the assistant's.",
        ),
        (
            last_turn,
            {"messages": [assistant("2")]},
            "the conversation has one message, the assistant's; wanted one to answer before it.",
        ),
        (
            every_turn,
            {"messages": [assistant("2"), *TURNS]},
            "the first message is the assistant's; wanted a message to answer before it.",
        ),
        (every_turn, {"messages": [*QUESTION, assistant(""), *TURNS]}, "the completion is empty."),
        (last_turn, {"messages": [*QUESTION, assistant("")]}, "the completion is empty."),
        (last_turn, {"text": ["a"]}, "the text is a list, wanted a string."),
        (last_turn, {"text": ""}, "the text is empty."),
    ],
)
def test_a_bad_row_is_named(form, row, said):
    with pytest.raises(DataError) as caught:
        form("rows.jsonl, line 3", row)
    assert str(caught.value) == f"rows.jsonl, line 3: {said}"


def test_a_file_with_labels_of_one_kind_is_refused(write):
    path = write(LABEL, LABEL | {"completion": "c"})
    with pytest.raises(DataError) as caught:
        read_labeled(path)
    assert str(caught.value) == f"{path}: all 2 labels are true; wanted desirable and undesirable ones."


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [(1.5, None, "no margin, but most rows have one."), (None, 1.5, "a margin, but most rows have none.")],
)
def test_margins_are_in_all_rows_or_in_none(write, first, second, said):
    path = write(PAIR | {"margin": first}, PAIR | {"margin": second}, PAIR | {"margin": first})
    kept = read_pairs(path)
    assert [row.margin for row in kept] == [first, first]
    assert kept.left_out == [(f"{path}, line 2", f"{path}, line 2: {said}")]


@pytest.mark.parametrize(
    ("read", "good", "bad", "reason"),
    [
        (read_pairs, PAIR, PAIR | {"rejected": "b"}, "chosen and rejected are equal"),
        (read_pairs, PAIR, PAIR | {"rejected": ""}, "the rejected is empty"),
        (read_pairs, PAIR, PAIR | {"chosen": None}, "the chosen is null, wanted a string or a list of messages"),
        (read_pairs, PAIR, PAIR | {"prompt": " \ud83d"}, r"column 'prompt' holds half a character (\ud83d)"),
        (read_labeled, LABEL, LABEL | {"label": "yes"}, "the label is 'yes', wanted true or false (1 or 0)"),
        (read_labeled, PAIR, PAIR | {"rejected": "b"}, "chosen and rejected are equal"),
        (read_demonstrations, SHOWN, SHOWN | {"completion": ""}, "the completion is empty"),
        (read_demonstrations, {"messages": TURNS}, {"messages": []}, "the conversation is empty"),
        (read_stepwise, STEPS, STEPS | {"labels": [0, "no"]}, "label 1 is 'no', wanted true or false (1 or 0)"),
    ],
)
def test_rows_that_cannot_be_used_are_left_out_counted_and_named(write, read, good, bad, reason):
    other = good | {"label": False} if "label" in good else good
    path = write(good, bad, other, bad)
    kept = read(path)
    assert set(kept.places) == {f"{path}, line 1", f"{path}, line 3"}
    assert kept.report() == f"{path}: 2 of {len(kept) + 2} rows left out: 2 because {reason} (lines 2, 4)"


# A prompt that the completions repeat.

SHORT = [user("1+1?")]
ASKED = "Human: 1+1? Assistant:"


@pytest.mark.parametrize("prompt", [SHORT, "1+1?", " 1+1?\n", [*QUESTION]])
def test_a_prompt_beside_whole_conversations_is_their_common_part(prompt):
    begin = QUESTION if prompt == QUESTION else SHORT
    row = {"prompt": prompt, "chosen": [*begin, assistant("2")], "rejected": [*begin, assistant("3")]}
    assert pair("w", row)[:3] == (begin, [assistant("2")], [assistant("3")])
    row = {"prompt": prompt, "completion": [*begin, assistant("2")], "label": True}
    assert labeled_completion("w", row)[:2] == last_turn("w", row)[:2] == (begin, [assistant("2")])


def test_a_conversation_may_go_on_or_begin_earlier_than_its_prompt():
    for prompt in ("1+1?", SHORT, "Sure?", QUESTION):
        row = {"prompt": prompt, "chosen": TURNS, "rejected": [*TURNS[:4], assistant("No.")]}
        assert pair("w", row)[:3] == (TURNS[:4], TURNS[4:], [assistant("No.")])
    row = {"prompt": "1+1?", "completion": TURNS[:3]}
    assert last_turn("w", row)[:2] == (QUESTION, TURNS[2:3])


def test_a_prompt_of_another_conversation_is_refused():
    sides = {"chosen": [*SHORT, assistant("2")], "rejected": [*SHORT, assistant("3")]}
    for form, row in [
        (pair, {"prompt": "2+2?"} | sides),
        (pair, {"prompt": [user("2+2?")]} | sides),
        (labeled_completion, {"prompt": "2+2?", "completion": [*SHORT, assistant("2")], "label": 1}),
    ]:
        with pytest.raises(DataError, match="w: the prompt is not in the conversation of the c"):
            form("w", row)


def test_strings_that_begin_with_the_prompt_beside_them_are_taken_without_it(write):
    rows = [{"prompt": f"{ASKED} ", "chosen": f"{ASKED} {n}", "rejected": f"{ASKED} no"} for n in range(3)]
    path = write(*rows, {"prompt": ASKED, "chosen": "2", "rejected": "3"}, rows[0] | {"rejected": f"{ASKED} "})
    kept = read_pairs(path)
    assert [row[:3] for row in kept] == [(ASKED, f" {n}", " no") for n in range(3)]
    assert all(isinstance(part, Verbatim) for part in kept[0][:3])
    assert kept.report().splitlines() == [
        f"{path}: chosen and rejected begin with the prompt, which is taken once and without a chat template",
        f"{path}: 2 of 5 rows left out: 1 because chosen and rejected do not begin with the prompt, as most rows' do "
        "(line 4); 1 because the rejected is empty after the prompt (line 5)",
    ]
    assert [row.completion for row in read_labeled(write(*rows))][:2] == [" 0", " no"]
    shown = read_demonstrations(write({"prompt": ASKED, "completion": f"{ASKED} 2"}))
    assert shown[0][:2] == (ASKED, " 2")


def test_a_completion_that_begins_with_its_prompt_by_chance_stays(write):
    rows = [{"prompt": "1", "completion": f"1{n}"} for n in range(3)]
    assert [row.completion for row in read_demonstrations(write(*rows))] == ["10", "11", "12"]
    chance = {"prompt": "So what", "completion": "So what?"}
    kept = read_demonstrations(write(chance, {"prompt": "Say it", "completion": "it"}))
    assert [row.completion for row in kept] == ["So what?", "it"]
    assert kept.report() == ""


# Splits.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=20).filter(lambda keys: len(set(keys)) > 1), st.integers(0, 3))
def test_no_prompt_is_on_both_sides(keys, seed):
    records = split_pairs(
        [Pair([user(str(key))], [assistant(f"a{n}")], [assistant(f"b{n}")]) for n, key in enumerate(keys)]
    )
    train, held_out = split_rows("d", records, [prompt_key(record) for record in records], 1, seed)
    assert len(held_out) == 1
    assert held_out[0].prompt not in [row.prompt for row in train]


def test_whole_texts_are_split_by_themselves():
    texts = [last_turn("w", {"text": text}) for text in "abcd"]
    train, held_out = split_rows("d", texts, [prompt_key(text) for text in texts], 2, 0)
    assert len(train) == len(held_out) == 2
