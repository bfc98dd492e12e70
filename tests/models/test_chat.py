from __future__ import annotations

import json

import pytest
from made_tokenizers import CHATML, CUTTING, KINDS, LLAMA_2, ZEPHYR, metaspace

from rlax_llm.models.chat import MAX_STEPS
from rlax_llm.models.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "two?"}]


# Beginnings of texts.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["two plus two is", "", "\n"])
def test_a_base_models_prompt_begins_as_the_tokenizer_begins_a_text(kind, text):
    tokenizer = metaspace(kind)
    ids = tokenizer.encode_prompt(text)
    assert ids == tokenizer._fast(text)["input_ids"]
    assert ids.count(tokenizer.bos_id) == 1
    # A text that has its beginning of sequence already does not get another one.
    assert tokenizer.encode_prompt("<s>" + text) == tokenizer.encode("<s>" + text)


def test_an_end_of_sequence_that_the_tokenizer_adds_does_not_end_a_prompt():
    from tokenizers import processors

    fast = metaspace("first")._fast
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    fast.backend_tokenizer.post_processor = ends
    assert fast("two")["input_ids"][-1] == 2
    assert Tokenizer(fast).encode_prompt("two") == fast("two")["input_ids"][:-1]


@pytest.mark.parametrize("template", [LLAMA_2, CHATML, ZEPHYR])
def test_a_chat_begins_as_its_template_has_it(template):
    tokenizer = metaspace("first", template)
    ids = tokenizer.encode_prompt("two?")
    text = tokenizer._fast.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert ids == tokenizer._fast(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_id) == (template == LLAMA_2)


# Ends of turns.


@pytest.mark.parametrize(
    ("template", "eos", "ends"),
    [
        (CHATML, "</s>", ["</s>", "<|im_end|>"]),
        (CHATML, "<|im_end|>", ["<|im_end|>"]),
        (LLAMA_2, "</s>", ["</s>"]),
        (ZEPHYR, "<|im_end|>", ["<|im_end|>"]),
        # It ends no turn, and opens one behind the last: what opens turns ends none.
        (
            "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>{% endif %}",
            "</s>",
            ["</s>"],
        ),
        ("{{ raise_exception('no') }}", "</s>", ["</s>"]),
        (None, "</s>", ["</s>"]),
    ],
)
def test_what_ends_the_assistants_turn_in_the_template_ends_a_completion(template, eos, ends, tmp_path):
    tokenizer = metaspace("first", template, eos)
    assert [tokenizer.decode([token], skip_special=False) for token in tokenizer.eos_ids] == ends
    tokenizer.save(tmp_path)
    listed = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert listed == (list(tokenizer.eos_ids) if len(ends) > 1 else tokenizer.eos_ids[0])
    assert Tokenizer.from_directory(tmp_path).eos_ids == tokenizer.eos_ids


# Beginnings of answers.


@pytest.mark.parametrize("beginning", ["<think>", "It is", "It is ", "<think>a</think>", ""])
def test_a_prompt_that_ends_in_the_assistants_turn_leaves_it_open(smollm2_tokenizer, beginning):
    prompt = [*ASK, {"role": "assistant", "content": beginning}]
    tokenizer = smollm2_tokenizer
    assert tokenizer.prompt_text(prompt) == tokenizer.prompt_text(ASK) + beginning
    ids = tokenizer._fast.apply_chat_template(prompt, continue_final_message=True, tokenize=True, return_dict=False)
    assert tokenizer.encode_prompt(prompt) == ids


def test_a_beginning_that_the_template_cuts_is_refused():
    tokenizer = metaspace("first", CUTTING)
    with pytest.raises(ValueError, match="a template must write the beginning that it is to continue"):
        tokenizer.prompt_text([*ASK, {"role": "assistant", "content": "<think>a</think>It is"}])


# Strangers' templates.


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            f"{MAX_STEPS:,} steps over 1 m",
        ),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "has not ended"),
        ("{{ 9 ** 9 ** 9 }}", r"line 1 takes a power"),
        (
            "{% set n = [1] %}{% for a in 'ab' * 40000 %}{% for b in 'ab' * 40000 %}x{% endfor %}{% endfor %}",
            "has not ended",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.append(1) }}", "refuses the messages"),
    ],
)
def test_a_template_that_does_not_end_is_refused_in_a_sentence(template, words):
    tokenizer = metaspace("first", template)
    with pytest.raises(ValueError, match=words) as caught:
        tokenizer.encode_prompt("two?")
    assert "\n" not in str(caught.value)


def test_counting_leaves_another_tracer_in_its_place():
    import sys

    seen = []

    def tracer(frame, event, argument):
        seen.append(event)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        metaspace("first", CHATML).encode_prompt("two?")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


def test_named_arguments_are_no_power():
    tokenizer = metaspace("first", "{% set a = {'b': 1} %}{{ dict(**a)['b'] }}{{ messages[0].content }}")
    assert tokenizer.prompt_text("two?") == "1two?"
