from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import KINDS, metaspace

from rlax_llm.models.tokenizer import Tokenizer, fast_class

ALPHABET = "0123456789+-=<|>eos \n\té😀"
CHARACTERS = Tokenizer.characters(ALPHABET)

# Written down from what others publish for this vocabulary: llama.cpp's and transformers' ids for SmolLM2-Instruct.
SYSTEM = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
SYSTEM += [2, 198, 1, 4093, 198]
ASSISTANT = [2, 198, 1, 520, 9531, 198]
FRANCE = [1780, 314, 260, 3575, 282, 4649, 47]


# Characters.


@given(st.text(ALPHABET))
def test_characters_round_trip_one_token_each(text):
    ids = CHARACTERS.encode(text)
    assert len(ids) == len(text)
    assert CHARACTERS.decode(ids) == text


def test_text_that_spells_a_special_token_stays_text():
    ids = CHARACTERS.encode("<|eos|>")
    assert not set(ids) & {CHARACTERS.pad_id, *CHARACTERS.eos_ids}
    assert CHARACTERS.decode(ids) == "<|eos|>"


def test_character_ids_follow_the_alphabet():
    tokenizer = Tokenizer.characters("ba")
    assert (tokenizer.pad_id, tokenizer.eos_ids, tokenizer.vocab_size) == (0, (1,), 4)
    assert tokenizer.encode("ab") == [3, 2]
    assert tokenizer.decode(np.array([3, 2, 1, 0])) == "ab"
    assert tokenizer.decode([3, 2, 1], skip_special=False) == "ab<|eos|>"
    assert not tokenizer.has_chat_template


@pytest.mark.parametrize(("alphabet", "words"), [("", "is empty"), ("aba", "repeats 'a'")])
def test_an_alphabet_must_be_distinct_characters(alphabet, words):
    with pytest.raises(ValueError, match=words):
        Tokenizer.characters(alphabet)


def test_an_unknown_character_is_named_with_its_place(tmp_path):
    CHARACTERS.save(tmp_path)
    for tokenizer in (CHARACTERS, Tokenizer.from_directory(tmp_path)):
        with pytest.raises(ValueError, match="'x' at position 1 is not in the alphabet"):
            tokenizer.encode("1x")


def test_saved_characters_come_back(tmp_path):
    CHARACTERS.save(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    text = "12 <|eos|>\n\té😀"
    assert loaded.encode(text) == CHARACTERS.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.pad_id, loaded.eos_ids, loaded.vocab_size) == (0, (1,), CHARACTERS.vocab_size)


def test_messages_need_a_chat_template():
    assert CHARACTERS.encode_prompt("1+2=") == CHARACTERS.encode("1+2=")
    with pytest.raises(ValueError, match="tokenizer has no chat template"):
        CHARACTERS.encode_prompt([{"role": "user", "content": "1+2="}])


# Stop ids.


def rebuilt(**special) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    backend = Backend(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2, "<end>": 3, "<unk>": 4}, unk_token="<unk>"))
    return Tokenizer(fast_class()(tokenizer_object=backend, unk_token="<unk>", **special), eos_ids=[3])


def test_every_listed_stop_id_counts_and_eos_stands_in_for_pad(tmp_path):
    tokenizer = rebuilt(eos_token="</s>", bos_token="<s>")
    assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id) == ((2, 3), 2, 1)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 2,
    }
    assert Tokenizer.from_directory(tmp_path).eos_ids == (2, 3)


def test_a_tokenizer_without_pad_and_eos_says_so(tmp_path):
    tokenizer = Tokenizer(rebuilt()._fast)
    with pytest.raises(ValueError, match="neither a pad nor an eos token"):
        _ = tokenizer.pad_id
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {}


def test_a_saved_tokenizer_names_a_class_that_every_transformers_knows(tmp_path):
    CHARACTERS.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        Tokenizer.from_directory(tmp_path)
    CHARACTERS.save(tmp_path)
    for content, words in (
        ("[]", r"generation_config\.json is not a JSON object"),
        ('{"eos_token_id": [null]}', r"generation_config\.json: eos_token_id is \[None\], wanted token ids"),
        ('{"eos_token_id": "abc"}', r"generation_config\.json: eos_token_id is 'abc', wanted token ids"),
    ):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            Tokenizer.from_directory(tmp_path)


# SmolLM2.


@pytest.fixture(scope="session")
def tokenizer(smollm2_tokenizer) -> Tokenizer:
    return smollm2_tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello! How can I help you today?", [19556, 17, 1073, 416, 339, 724, 346, 1834, 47]),
        ("hello world", [28120, 905]),
        # Every digit is a token of its own, and the space before a number is one too.
        ("Question: What is 84 * 3 / 2?", [17872, 42, 1812, 314, 216, 40, 36, 1672, 216, 35, 2272, 216, 34, 47]),
        ("Question: What is 2 + 2? Answer:", [17872, 42, 1812, 314, 216, 34, 1232, 216, 34, 47, 19842, 42]),
        ("La capitale de la France est Paris.", [15319, 47765, 1121, 367, 2618, 4649, 1264, 7042, 30]),
    ],
)
def test_smollm2_ids_are_the_published_ones(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_smollm2_chat_prompt_is_the_published_one(tokenizer):
    question = "What is the capital of France?"
    assert tokenizer.encode_prompt(question) == SYSTEM + FRANCE + ASSISTANT
    assert tokenizer.encode_prompt([{"role": "user", "content": question}]) == SYSTEM + FRANCE + ASSISTANT
    own_system = [{"role": "system", "content": "hello world"}, {"role": "user", "content": question}]
    assert tokenizer.encode_prompt(own_system) == [1, 9690, 198, 28120, 905, 2, 198, 1, 4093, 198, *FRANCE, *ASSISTANT]


def test_smollm2_special_ids(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)
    assert (tokenizer.vocab_size, tokenizer.has_chat_template) == (49_152, True)
    assert tokenizer.encode("<|im_start|>user") == [1, 4093]
    assert tokenizer.decode([1, 4093, 2]) == "user"
    assert tokenizer.decode([1, 4093, 2], skip_special=False) == "<|im_start|>user<|im_end|>"


@pytest.mark.parametrize("prompt", [[], [{"content": "hi"}], [{"role": "user"}]])
def test_messages_need_a_role_and_content(tokenizer, prompt):
    with pytest.raises(ValueError, match="wanted a list of at least one"):
        tokenizer.encode_prompt(prompt)


def test_a_template_that_refuses_the_messages_says_why(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match=r"refuses the messages \(roles must alternate\); give the roles"):
        Tokenizer.from_directory(tmp_path).encode_prompt("hi")


# Its vocabulary has no token for some control bytes, nor for the leading bytes of planes that are not assigned.
PRINTABLE = st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"])


@settings(max_examples=200)
@given(text=st.text(PRINTABLE) | st.text(" \n\t0123456789.,😀é日"))
def test_smollm2_round_trips_any_text_and_streams_it(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token) for token in ids] + [decoder.flush()]
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, 300)))
def test_any_ids_stream_to_their_decoding(tokenizer, ids):
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token) for token in ids] + [decoder.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)


def test_streaming_holds_a_character_back_until_it_is_whole(tokenizer):
    ids = tokenizer.encode("a 🦆!")
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token) for token in ids]
    assert len(ids) > 4
    assert "".join(pieces) == "a 🦆!"
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces.count("") == len(ids) - len([piece for piece in pieces if piece])


def test_an_unfinished_character_comes_out_as_a_replacement(tokenizer):
    decoder = tokenizer.stream_decoder()
    assert decoder.push(tokenizer.encode("🦆")[0]) == ""
    assert decoder.flush() == "\ufffd"


# Text that a tokenizer cannot take.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\ud83d", r"'\\ud83d' at position 1 is half of a character \(a lone surrogate\)"),
        ("ab\x13", r"the vocabulary has no token for '\\x13' at position 2"),
        ("\U00080000", r"the vocabulary has no token for '\\U00080000' at position 0"),
    ],
)
def test_smollm2_refuses_what_would_be_lost(tokenizer, text, words):
    for encode in (tokenizer.encode, tokenizer.encode_prompt):
        with pytest.raises(ValueError, match=r"the vocabulary has no|half of a character"):
            encode(text)
    with pytest.raises(ValueError, match=words):
        tokenizer.encode_all(["fine", text])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_smollm2_takes_a_text_whole_or_not_at_all(tokenizer, text):
    try:
        ids = tokenizer.encode(text)
    except ValueError:
        return
    assert tokenizer.decode(ids, skip_special=False) == text


def test_the_backends_errors_are_sentences():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    tokenizer = Tokenizer(fast_class()(tokenizer_object=Backend(models.WordLevel({"ab": 0}, unk_token="[UNK]"))))
    with pytest.raises(ValueError, match=r"cannot encode the text \(WordLevel error: Missing \[UNK\]"):
        tokenizer.encode("b")
    with pytest.raises(ValueError, match="cannot decode the ids"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("kind", [*KINDS, "bytes", "characters"])
def test_pieces_join_to_what_is_decoded(kind, smollm2):
    """Behind a text, for any tokens; half a character is bytes, and special tokens are none."""
    made = {"bytes": smollm2.tokenizer, "characters": Tokenizer.characters("abé =")}
    tokenizer = made[kind] if kind in made else metaspace(kind)
    pieces, random = tokenizer.pieces(), np.random.default_rng(0)
    assert pieces[tokenizer.eos_ids[0]] is None
    before = tokenizer.encode("a")
    for _ in range(100):
        ids = [*before, *random.integers(0, len(pieces), 6).tolist()]
        text = b"".join(pieces[token] or b"" for token in ids).decode(errors="replace")
        assert text.lstrip(" ") == tokenizer.decode(ids).lstrip(" ")
