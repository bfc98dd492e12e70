"""Directories with SentencePiece's ``tokenizer.model`` alone: its own pieces, and what is written of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import sentencepiece

from rlax_llm.models.loading import load_tokenizer
from rlax_llm.models.tokenizer import Tokenizer

CORPUS = [
    "the cat sat on the mat and added 12 plus 34",
    "Two words, and \u00e9 and \u65e5\u672c\u8a9e with tabs\tand more",
    "yes no maybe so four five six seven",
]
TEXTS = [*CORPUS, "", "a", " before", "behind ", "two  blanks", "\n\n a", "<|im_start|>user"]
TEXTS += ["\U0001f986 unseen \u03a9"]
KINDS = {
    "as Llama's": {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "as Gemma's": {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": ["<|im_start|>"]},
    "unigram": {"model_type": "unigram"},
}


def written(directory: Path, kind: str, **settings) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    fixed = {"vocab_size": 380, "byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, **fixed, **KINDS[kind]
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_sentencepiece(tmp_path, kind):
    theirs, ours = written(tmp_path, kind), load_tokenizer(tmp_path)
    assert ours.vocab_size == theirs.get_piece_size()
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id(), (theirs.eos_id(),))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    ours.save(tmp_path / "saved")
    (tmp_path / "saved" / "tokenizer.model").unlink(missing_ok=True)
    again = Tokenizer.from_directory(tmp_path / "saved")
    assert [again.encode_prompt(text) for text in TEXTS] == [ours.encode_prompt(text) for text in TEXTS]


@pytest.mark.parametrize(("settings", "begins"), [({}, True), ({"add_bos_token": False}, False)])
def test_a_text_begins_as_the_settings_say(tmp_path, settings, begins):
    theirs = written(tmp_path, "unigram", **settings)
    assert load_tokenizer(tmp_path).encode_prompt("yes") == theirs.encode("yes", add_bos=begins)


def test_what_is_missing_and_what_is_of_another_kind_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json and no tokenizer\.model, wanted one"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # as tiktoken has it
    with pytest.raises(ValueError, match="the tokenizer cannot be read"):
        Tokenizer.from_directory(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the packages sentencepiece and protobuf; pip install 'rlax"):
        Tokenizer.from_directory(tmp_path)
