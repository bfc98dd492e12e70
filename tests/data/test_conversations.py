"""What is learned is what a model has to write behind the prompt that generation reads, whatever the chat template."""

from __future__ import annotations

import pytest
from made_tokenizers import CHATML, CUTTING, LLAMA_2, OPENING, SHOWING, ZEPHYR, metaspace

from rlax_llm.data.encoding import encode_demonstrations, encode_labeled, encode_pairs
from rlax_llm.data.preferences import every_turn, labeled_completion, last_turn, pair
from rlax_llm.data.rows import DataError
from rlax_llm.models.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "2+2?"}]
BEFORE = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def texts(tokenizer: Tokenizer, prompt, *answers) -> tuple[str, str]:
    """Prompt and completion as text; the prompt is the one that generation reads."""
    (row,) = encode_demonstrations(tokenizer, [last_turn("line 1", {"prompt": prompt, "completion": [*answers]})])
    assert row.prompt == tokenizer.encode_prompt(prompt)
    prompt_text, whole = (
        tokenizer.decode(ids, skip_special=False) for ids in (row.prompt, [*row.prompt, *row.completion])
    )
    return prompt_text, whole.removeprefix(prompt_text)


def chatml(template: str) -> Tokenizer:
    return metaspace("first", template, eos="</s>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    shapes = {"chatml": CHATML, "cutting": CUTTING, "opening": OPENING, "showing": SHOWING, "zephyr": ZEPHYR}
    return {name: chatml(template) for name, template in (shapes | {"llama 2": LLAMA_2}).items()}


REASONED = "<think>\nadd them\n</think>\n\n4"


@pytest.mark.parametrize(
    ("shape", "answer", "prompt_text", "completion"),
    [
        ("chatml", said(REASONED), BEFORE, REASONED + "<|im_end|>"),
        ("cutting", said("4"), BEFORE, "4<|im_end|>"),
        # The prompt opens the reasoning: what is learned goes on from there, however the row writes the opening.
        ("opening", said(REASONED), BEFORE + "<think>\n", "add them\n</think>\n\n4<|im_end|>"),
        ("opening", said("<think>add them</think>4"), BEFORE + "<think>\n", "add them</think>4<|im_end|>"),
        ("opening", said("add them\n</think>\n\n4"), BEFORE + "<think>\n", "add them\n</think>\n\n4<|im_end|>"),
        # The whole conversation writes it again, in the template's own form.
        ("showing", said("<think>add them</think>4"), BEFORE, REASONED + "<|im_end|>"),
        ("showing", said("4", reasoning_content="add them"), BEFORE, REASONED + "<|im_end|>"),
        ("showing", said("4"), BEFORE, "<think>\n\n</think>\n\n4<|im_end|>"),
        ("llama 2", said("4"), "<s>[INST] 2+2? [/INST]", " 4 </s>"),
        ("zephyr", said("4"), "<|user|>\n2+2?</s>\n<|assistant|>\n", "4</s>"),
    ],
)
def test_what_is_learned_follows_the_prompt_of_generation(tokenizers, shape, answer, prompt_text, completion):
    assert texts(tokenizers[shape], ASK, answer) == (prompt_text, completion)


def test_a_prompt_that_opens_reasoning_in_whole_conversations_too(tokenizers):
    template = SHOWING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    found = texts(chatml(template), ASK, said("<think>add them</think>4"))
    assert found == (BEFORE + "<think>\n", "add them\n</think>\n\n4<|im_end|>")
    assert texts(chatml(template), ASK, said("4"))[1] == "\n</think>\n\n4<|im_end|>"


@pytest.mark.parametrize(
    ("shape", "answer", "words"),
    [
        ("cutting", said(REASONED), r"line 1: the chat template leaves out some of the answer's content \('<think>"),
        ("chatml", said("4", reasoning_content="add them"), r"leaves out some of the answer's reasoning_content"),
        ("chatml", said("4", tool_calls=[{"function": {"name": "add"}}]), "leaves out the answer's call of the tool"),
        ("opening", said("4"), "prompt ends in '<think>', and the answer has no '</think>'; begin the answer with its"),
        ("chatml", said("4<|im_end|>"), "the completion holds the stop token"),
        ("showing", said("4", reasoning_content="a<|im_end|>"), "the completion holds the stop token"),
    ],
)
def test_nothing_that_is_said_is_dropped_in_silence(tokenizers, shape, answer, words):
    with pytest.raises(DataError, match=words):
        texts(tokenizers[shape], ASK, answer)


def test_answers_that_differ_in_their_reasoning_alone_are_refused_and_not_called_equal(tokenizers):
    row = {"prompt": ASK, "chosen": [said("<think>a</think>4")], "rejected": [said("<think>b</think>4")]}
    with pytest.raises(DataError, match="leaves out some of the answer's content"):
        encode_pairs(tokenizers["cutting"], [pair("line 1", row)])
    (encoded,) = encode_pairs(tokenizers["opening"], [pair("line 1", row)])
    assert encoded.chosen != encoded.rejected


# Beginnings.


@pytest.mark.parametrize("shape", ["chatml", "cutting", "showing"])
@pytest.mark.parametrize(
    ("beginning", "rest"), [("<think>", "add them</think>4"), ("<think>\nadd", " them\n</think>4")]
)
def test_a_beginning_of_the_answer_is_continued(tokenizers, shape, beginning, rest):
    prompt_text, completion = texts(tokenizers[shape], [*ASK, said(beginning)], said(rest))
    assert prompt_text == BEFORE + beginning
    # This template writes reasoning on lines of its own.
    line = "\n" if beginning == "<think>" else ""
    end = line + rest.split("</think>")[0].rstrip() + "\n</think>\n\n4" if shape == "showing" else rest
    assert completion == end + "<|im_end|>"


def test_a_beginning_takes_the_place_of_an_opening(tokenizers):
    """The prompt that opens the reasoning by itself does not open it twice."""
    prompt = [*ASK, said("<think>\nadd")]
    assert tokenizers["opening"].prompt_text(prompt) == BEFORE + "<think>\nadd"
    assert texts(tokenizers["opening"], prompt, said(" them</think>4"))[1] == " them</think>4<|im_end|>"


def test_a_string_continues_a_beginning_too(tokenizers):
    tokenizer, prompt = tokenizers["chatml"], [*ASK, said("It is")]
    (row,) = encode_labeled(
        tokenizer, [labeled_completion("w", {"prompt": prompt, "completion": " four.", "label": True})]
    )
    (same,) = encode_demonstrations(tokenizer, [last_turn("w", {"prompt": prompt, "completion": [said(" four.")]})])
    assert (row.prompt, row.completion) == (same.prompt, same.completion)
    assert texts(tokenizer, prompt, said(" four.")) == (BEFORE + "It is", " four.<|im_end|>")


# Several turns.

TOOLS = [said("", tool_calls=[{"function": {"name": "add"}}]), {"role": "tool", "content": "4"}, said("four")]
CALLING = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] }}{% for c in m['tool_calls'] %}[{{ c.function.name }}]{% endfor %}"
)


def test_an_answer_of_several_turns_is_learned_where_it_is_the_assistants():
    tokenizer = chatml(CALLING)
    row = {"prompt": ASK, "completion": TOOLS, "label": True}
    (encoded,) = encode_labeled(tokenizer, [labeled_completion("line 1", row)])
    learned = [token for token, own in zip(encoded.completion, encoded.learned, strict=True) if own]
    assert tokenizer.decode(learned, skip_special=False) == "[add]<|im_end|>four<|im_end|>"
    whole = tokenizer.encode(tokenizer.conversation_text([*ASK, *TOOLS]))
    assert [*encoded.prompt, *encoded.completion] == whole[: len(encoded.prompt) + len(encoded.completion)]
    pairs = {"prompt": ASK, "chosen": TOOLS, "rejected": [said("five")]}
    (both,) = encode_pairs(tokenizer, [pair("line 1", pairs)])
    assert (both.chosen, both.learned) == (encoded.completion, (encoded.learned, None))


def test_sides_that_answer_different_prompts_are_refused(tokenizers):
    follow = [{"role": "user", "content": "Sure?"}, said("yes")]
    row = {
        "chosen": [*ASK, said("4"), *follow],
        "rejected": [*ASK, said("4"), {"role": "user", "content": "So?"}, said("no")],
    }
    with pytest.raises(DataError, match="line 1: chosen and rejected answer different prompts"):
        encode_pairs(tokenizers["chatml"], [pair("line 1", row)])


def test_turns_that_the_template_writes_otherwise_later_can_be_learned_one_by_one(tokenizers):
    messages = [*ASK, said("4"), {"role": "user", "content": "Sure?"}, said("yes")]
    with pytest.raises(DataError, match="writes earlier turns alike, or learn from the last answer alone"):
        encode_demonstrations(tokenizers["showing"], [every_turn("line 1", {"messages": messages})])
    (row,) = encode_demonstrations(tokenizers["showing"], [last_turn("line 1", {"messages": messages})])
    assert tokenizers["showing"].decode(row.completion, skip_special=False) == "<think>\n\n</think>\n\nyes<|im_end|>"


def test_parts_of_text_are_one_text(tokenizers):
    def parted(*parts):
        return [{"type": "text", "text": part} for part in parts]

    row = {"prompt": [{"role": "user", "content": parted("2+", "2?")}], "completion": [said(parted("fo", "ur"))]}
    (encoded,) = encode_demonstrations(tokenizers["chatml"], [last_turn("line 1", row)])
    plain = {"prompt": ASK, "completion": [said("four")]}
    assert encoded == encode_demonstrations(tokenizers["chatml"], [last_turn("line 1", plain)])[0]
    assert last_turn("line 1", row | {"prompt": "2+2?"}).completion == "four"
