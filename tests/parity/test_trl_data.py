"""Column forms and token ids against TRL's own data functions."""

from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.data_utils import apply_chat_template, extract_prompt, unpair_preference_dataset

from rlax_llm.data.encoding import encode_pair
from rlax_llm.data.preferences import Pair, pair, split_pairs


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@settings(max_examples=30, deadline=None)
@given(st.text("ab ", min_size=2), st.text("ab ", min_size=2), st.text("ab ", min_size=2))
def test_implicit_prompts_of_strings_are_extracted_alike(prompt, left, right):
    row = {"chosen": f"{prompt.strip()}. {left}x", "rejected": f"{prompt.strip()}. {right}y"}
    wanted = extract_prompt(row)
    assert pair("w", row)[:3] == (wanted["prompt"], wanted["chosen"], wanted["rejected"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
def test_implicit_prompts_of_messages_are_extracted_alike(contents):
    shared = [message("user", content) for content in contents]
    row = {"chosen": [*shared, message("assistant", "x")], "rejected": [*shared, message("assistant", "y")]}
    wanted = extract_prompt(row)
    assert pair("w", row)[:3] == (wanted["prompt"], wanted["chosen"], wanted["rejected"])


def test_pairs_come_apart_into_the_same_labeled_completions():
    rows = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(4)]
    wanted = unpair_preference_dataset(Dataset.from_list(rows)).to_list()
    own = [row._asdict() for row in split_pairs([pair("w", row) for row in rows])]
    own = [{name: row[name] for name in ("prompt", "completion", "label")} for row in own]
    assert sorted(map(str, own)) == sorted(map(str, wanted))


@pytest.mark.parametrize("question", ["What is 1+1?", "  Say:\n", "é😀"])
@pytest.mark.parametrize("answer", ["Two.", " two ", "\n\n2", "3 4"])
def test_the_chat_templates_text_is_cut_at_the_same_place(smollm2, question, answer):
    """TRL's completion ends in what the template writes behind the stop token, which a model never gets to write."""
    tokenizer = smollm2.tokenizer
    row = {"prompt": [message("user", question)], "chosen": [message("assistant", answer)]}
    row["rejected"] = [message("assistant", "No.")]
    wanted = apply_chat_template(row, tokenizer._fast)
    own = encode_pair(tokenizer, pair("w", row))
    texts = [tokenizer.decode(ids, skip_special=False) for ids in own[:3]]
    assert texts == [wanted["prompt"], *(wanted[name].removesuffix("\n") for name in ("chosen", "rejected"))]
    joint = tokenizer._fast(wanted["prompt"] + wanted["chosen"], add_special_tokens=False)["input_ids"]
    if answer.startswith("\n"):
        # Encoded as one, the line ends of template and answer are one token: TRL's prompt is not generation's.
        assert joint[: len(own.prompt)] != own.prompt
    else:
        assert own.prompt + own.chosen == joint[:-1]
    assert encode_pair(tokenizer, Pair(question, answer, "No.")).prompt == own.prompt
