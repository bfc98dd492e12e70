"""The tokens of prompt and answer are those of the unbroken text, and the prompt's are those that a sampler reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import CHATML, KINDS, LLAMA_2, ZEPHYR, metaspace

from rlax_llm.data.encoding import encode_demonstrations, encode_labeled
from rlax_llm.data.messages import Verbatim
from rlax_llm.data.preferences import Demonstration, Labeled, every_turn, last_turn
from rlax_llm.models.tokenizer import Tokenizer

MADE = {(kind, template): metaspace(kind, template) for kind in KINDS for template in (None, ZEPHYR, LLAMA_2, CHATML)}
WORDS = st.text("ab two\n é😀<", min_size=1, max_size=12)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def transformers_ids(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    return tokenizer._fast(text, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "completion"), [("2+2=", "4"), ("two plus two is", " four"), ("two\n", "four")])
def test_a_base_models_row_is_the_unbroken_text(kind, prompt, completion):
    tokenizer = MADE[kind, None]
    (row,) = encode_labeled(tokenizer, [Labeled(prompt, completion, True)])
    whole = transformers_ids(tokenizer, prompt + completion, special=True)
    assert [*row.prompt, *row.completion] == [*whole, *tokenizer.eos_ids]
    assert row.prompt == transformers_ids(tokenizer, prompt, special=True) == tokenizer.encode_prompt(prompt)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [ZEPHYR, LLAMA_2, CHATML])
def test_a_conversation_is_the_unbroken_one(kind, template):
    tokenizer = MADE[kind, template]
    messages = [user("two plus two?"), assistant("four"), user("is it?"), assistant("yes")]
    whole = transformers_ids(tokenizer, tokenizer._fast.apply_chat_template(messages, tokenize=False), special=False)
    (row,) = encode_demonstrations(tokenizer, [last_turn("w", {"messages": messages})])
    ids = [*row.prompt, *row.completion]
    assert ids == whole[: len(ids)]
    assert row.completion[-1] in tokenizer.eos_ids
    (turns,) = encode_demonstrations(tokenizer, [every_turn("w", {"messages": messages})])
    assert [*turns.prompt, *turns.completion] == ids
    learned = [token for token, own in zip(turns.completion, turns.learned, strict=True) if own]
    ends = [place for place, token in enumerate(learned) if token == row.completion[-1]]
    assert len(ends) == 2
    assert (
        tokenizer.decode(learned).split() == ["four", "yes"] or tokenizer.decode(learned).replace(" ", "") == "fouryes"
    )


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), WORDS, WORDS)
def test_any_base_models_row_spells_the_text_behind_the_samplers_prompt(kind, prompt, completion):
    """Also where a token of the unbroken text lies across the boundary: the sampler never reads that token."""
    tokenizer = MADE[kind, None]
    (row,) = encode_labeled(tokenizer, [Labeled(prompt, completion, True)])
    assert row.prompt == tokenizer.encode_prompt(prompt)
    ids = [*row.prompt, *row.completion[:-1]]
    whole = transformers_ids(tokenizer, prompt + completion, special=True)
    assert tokenizer.decode(ids) == tokenizer.decode(whole)
    if whole[: len(row.prompt)] == row.prompt:
        assert ids == whole


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from([ZEPHYR, LLAMA_2, CHATML]), st.lists(WORDS, min_size=4, max_size=4))
def test_any_turns_spell_the_conversation(kind, template, contents):
    tokenizer = MADE[kind, template]
    messages = [role(content) for role, content in zip((user, assistant) * 2, contents, strict=True)]
    (row,) = encode_demonstrations(tokenizer, [every_turn("w", {"messages": messages})])
    assert row.prompt == tokenizer.encode_prompt(messages[:1])
    text = tokenizer.decode([*row.prompt, *row.completion], skip_special=False)
    whole = tokenizer.encode(tokenizer.conversation_text(messages))
    assert tokenizer.decode(whole, skip_special=False).startswith(text)


@settings(max_examples=40, deadline=None)
@given(st.text("ab é😀日\n 1", min_size=1, max_size=12), st.text("ab é😀日\n 1", min_size=1, max_size=12))
def test_a_byte_level_row_is_the_unbroken_text_but_where_a_token_lies_across(smollm2_tokenizer, prompt, completion):
    tokenizer = smollm2_tokenizer
    (row,) = encode_demonstrations(tokenizer, [Demonstration(Verbatim(prompt), Verbatim(completion))])
    assert row.prompt == tokenizer.encode(prompt)
    whole = tokenizer.encode(prompt + completion)
    straddles = whole[: len(row.prompt)] != row.prompt
    assert row.completion[:-1] == (tokenizer.encode(completion) if straddles else whole[len(row.prompt) :])


@pytest.mark.parametrize("kind", KINDS)
def test_text_inside_a_text_has_no_blank_before_it(kind):
    tokenizer = MADE[kind, None]
    assert tokenizer.decode([*tokenizer.encode("two"), *tokenizer.encode_inside("two")]) == "twotwo"
    assert tokenizer.decode([*tokenizer.encode("two"), *tokenizer.encode("two")]) == "two two"
