from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.data.encoding import (
    encode_demonstrations,
    encode_labeled,
    encode_pair,
    encode_pairs,
    encode_stepwise,
)
from rlax_llm.data.messages import Verbatim
from rlax_llm.data.preferences import Demonstration, Labeled, Pair, Stepwise, every_turn, last_turn
from rlax_llm.data.rows import DataError
from rlax_llm.models.tokenizer import Tokenizer

ALPHABET = "ab 01\n.é😀"
CHARACTERS = Tokenizer.characters(ALPHABET)
TEXTS = st.text(ALPHABET + "the <|", min_size=1, max_size=30)
EOS = 2  # of SmolLM2: <|im_end|>
STRIPPING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def tokenizer(smollm2_tokenizer) -> Tokenizer:
    return smollm2_tokenizer


@pytest.fixture(scope="module")
def templated(tokenizer, tmp_path_factory):
    """SmolLM2's tokenizer with another chat template."""

    def built(template: str) -> Tokenizer:
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(folder)
        (folder / "chat_template.jinja").write_text(template)
        return Tokenizer.from_directory(folder)

    return built


def text(tokenizer: Tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special=False)


# What is encoded.


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS)
def test_smollm2_ids_spell_the_conversation(tokenizer, prompt, completion):
    messages = [user(prompt), assistant(completion)]
    (row,) = encode_demonstrations(tokenizer, [Demonstration(messages[:1], messages[1:])])
    assert text(tokenizer, row.prompt) + text(tokenizer, row.completion) + "\n" == tokenizer.conversation_text(messages)
    assert row.prompt == tokenizer.encode_prompt(messages[:1])
    assert row.completion == [*tokenizer.encode(completion), EOS]


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS)
def test_verbatim_ids_spell_the_text_whatever_meets_at_the_boundary(tokenizer, prompt, completion):
    (row,) = encode_demonstrations(tokenizer, [Demonstration(Verbatim(prompt), Verbatim(completion))])
    assert text(tokenizer, row.prompt) == prompt
    assert text(tokenizer, row.completion) == completion + "<|im_end|>"


@settings(max_examples=30, deadline=None)
@given(st.text(ALPHABET, min_size=1), st.text(ALPHABET, min_size=1))
def test_characters_spell_the_text(prompt, completion):
    (row,) = encode_labeled(CHARACTERS, [Labeled(prompt, completion, True)])
    assert CHARACTERS.decode(row.prompt) == prompt
    assert CHARACTERS.decode(row.completion) == completion
    assert row.completion[-1] == 1
    assert row.label


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from(["\n", "\n\n", " ки"]))
def test_steps_spell_the_text_and_no_token_is_of_two(tokenizer, steps, separator):
    record = Stepwise([user("1+1?")], steps, [True] * len(steps))
    (row,) = encode_stepwise(tokenizer, [record], separator)
    assert row.prompt == tokenizer.encode_prompt("1+1?")
    ended = [step if step.endswith(separator) else step + separator for step in steps]
    assert [text(tokenizer, ids) for ids in row.steps] == ended


def test_a_step_that_cannot_be_encoded_names_its_row():
    rows = [Stepwise("a", ["b"], [True]), Stepwise("a", ["b", "c"], [True, False], "line 2")]
    with pytest.raises(DataError, match=r"line 2: .*'c' at position 0 is not in the alphabet"):
        encode_stepwise(CHARACTERS, rows, "\n")


def test_the_boundary_does_not_shift(tokenizer):
    """Encoded as one text, the space and the word behind the prompt are one token."""
    prompt, completion = Verbatim("1+1 is"), Verbatim(" two")
    (row,) = encode_demonstrations(tokenizer, [Demonstration(prompt, completion)])
    assert row.prompt + row.completion[:-1] == tokenizer.encode("1+1 is two")
    (row,) = encode_demonstrations(tokenizer, [Demonstration(Verbatim("1+1 is "), Verbatim("two"))])
    assert row.prompt == tokenizer.encode("1+1 is ") != tokenizer.encode("1+1 is two")[: len(row.prompt)]


def test_a_string_is_what_generation_takes_it_for(tokenizer):
    row = encode_pair(tokenizer, Pair("1+1?", "2", "3", 0.5, "w"))
    assert row == encode_pair(tokenizer, Pair([user("1+1?")], [assistant("2")], [assistant("3")], 0.5, "w"))
    assert row.prompt == tokenizer.encode_prompt("1+1?")
    assert (row.chosen, row.rejected) == ([34, EOS], [35, EOS])


def test_the_text_is_the_templates_own(templated):
    tokenizer = templated(STRIPPING)
    row = encode_pair(tokenizer, Pair([user(" 1+1? ")], [assistant(" 2 ")], [assistant("3")]))
    assert text(tokenizer, row.prompt) == "[user]1+1?[assistant]"
    assert text(tokenizer, row.chosen) == "2<|im_end|>"


def test_a_template_without_a_stop_token_gets_one(templated):
    tokenizer = templated(STRIPPING.replace("<|im_end|>", ""))
    assert encode_pair(tokenizer, Pair("a", "2", "3")).chosen == [34, EOS]


def test_nulls_in_messages_are_not_there(templated):
    tokenizer = templated("{% for m in messages %}{% if m.name is defined %}!{% endif %}{{ m.content }}.{% endfor %}")
    (row,) = encode_labeled(tokenizer, [Labeled([user("a") | {"name": None}], [assistant("b")], True)])
    assert text(tokenizer, row.prompt) == "a."


def test_a_stop_token_in_the_text_is_not_doubled(tokenizer):
    for end in ("<|im_end|>", "<|im_end|>\n", ""):
        row = encode_pair(tokenizer, Pair(Verbatim("a"), Verbatim("2" + end), Verbatim("3")))
        assert row.chosen == [34, EOS]


def test_every_turn_is_learned_and_nothing_else(tokenizer):
    messages = [user("1+1?"), assistant("2"), user("Sure?"), assistant("Yes.")]
    (row,) = encode_demonstrations(tokenizer, [every_turn("w", {"messages": messages})])
    assert text(tokenizer, [*row.prompt, *row.completion]) + "\n" == tokenizer.conversation_text(messages)
    learned = [token for token, own in zip(row.completion, row.learned, strict=True) if own]
    assert text(tokenizer, learned) == "2<|im_end|>Yes.<|im_end|>"
    between = [token for token, own in zip(row.completion, row.learned, strict=True) if not own]
    assert text(tokenizer, between) == "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    (last,) = encode_demonstrations(tokenizer, [last_turn("w", {"messages": messages})])
    assert [*last.prompt, *last.completion] == [*row.prompt, *row.completion]
    (alone,) = encode_demonstrations(tokenizer, [every_turn("w", {"messages": messages[:2]})])
    assert alone == encode_demonstrations(tokenizer, [last_turn("w", {"messages": messages[:2]})])[0]


def test_a_whole_text_is_predicted_but_for_its_first_token(tokenizer):
    story = "One day. <|im_end|> Another day."
    (row,) = encode_demonstrations(tokenizer, [last_turn("w", {"text": story})])
    assert (len(row.prompt), row.prompt + row.completion) == (1, [*tokenizer.encode(story), EOS])


def test_many_rows_are_each_as_alone(tokenizer):
    pairs = [Pair(f"What is {n % 7} + {n}?", f"{n}", f"{n + 1} ", None, f"line {n}") for n in range(50)]
    assert encode_pairs(tokenizer, pairs) == [encode_pair(tokenizer, pair) for pair in pairs]


# Errors.


@pytest.mark.parametrize(
    ("prompt", "completion", "said"),
    [
        (
            [user("a")],
            "2<|im_end|>",
            "the completion holds the stop token '<|im_end|>'; remove it from the text.",
        ),
        (
            Verbatim("a"),
            "2<|im_end|>3",
            "the completion goes on after the stop token '<|im_end|>'; remove it from the text.",
        ),
        (
            Verbatim("a"),
            [assistant("b")],
            "the prompt is a string and the completion a list of messages; give two of a kind.",
        ),
        (Verbatim(""), "", "the prompt has no tokens; a completion needs at least one before it."),
    ],
)
def test_a_bad_exchange_names_its_row(tokenizer, prompt, completion, said):
    with pytest.raises(DataError) as caught:
        encode_demonstrations(tokenizer, [Demonstration("a", "b"), Demonstration(prompt, completion, "line 2")])
    assert str(caught.value) == f"line 2: {said}"


def test_messages_need_a_chat_template():
    with pytest.raises(DataError) as caught:
        encode_labeled(CHARACTERS, [Labeled([user("a")], [assistant("b")], True, "line 2")])
    assert str(caught.value) == (
        "line 2: the prompt is a list of messages, wanted a string, as the model's tokenizer has no chat template; "
        "give a string, or take a model with one, such as an instruction model."
    )


def test_an_unknown_character_names_its_row():
    rows = [Labeled("a", "b", True, "line 1"), Labeled("a", "bz", True, "line 2")]
    with pytest.raises(DataError, match=r"^line 2: 'z' at position 1 is not in the alphabet"):
        encode_labeled(CHARACTERS, rows)


def test_a_template_that_rewrites_earlier_turns_is_refused(templated):
    tokenizer = templated("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError) as caught:
        encode_pair(tokenizer, Pair("a", "b", "c", None, "line 2"))
    assert str(caught.value) == (
        "line 2: the chat template's text of the conversation does not begin with its text of the prompt; use a "
        "template that writes earlier turns alike."
    )


def test_a_template_that_refuses_names_the_row(templated):
    tokenizer = templated("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"^line 2: the chat template refuses the messages \(roles must"):
        encode_pair(tokenizer, Pair("a", "b", "c", None, "line 2"))


def test_sides_that_the_template_makes_equal_are_refused(templated):
    with pytest.raises(DataError) as caught:
        encode_pair(templated(STRIPPING), Pair("a", "b", "b ", None, "line 2"))
    assert str(caught.value) == "line 2: chosen and rejected have the same tokens; leave the row out."
