"""``rlax-llm chat``: turns, words, what is too long, and an answer that is ended."""

from __future__ import annotations

import io

import jax
import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.chat import run as chat_run
from rlax_llm.commands.chat.run import Chat
from rlax_llm.commands.chat.settings import TurnSettings
from rlax_llm.commands.setup import build_model
from rlax_llm.commands.shared_settings import ModelSettings
from rlax_llm.commands.streaming import Grown
from rlax_llm.models.loading import load_model

USER, ASSISTANT = "user", "assistant"


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn instead: pieces, and the prompts' texts that were read."""
    read = []

    def pieces(model, prompts, key, request, stops):
        read.append(model.tokenizer.decode(prompts[0][0][prompts[1][0]], skip_special=False))
        yield Grown(["Ye"], [True])
        yield Grown([f"s {len(read)}"], [False])

    monkeypatch.setattr(chat_run, "answer_pieces", pieces)
    return read


def _chat(model, **settings) -> Chat:
    return Chat(model, TurnSettings(**settings), None, jax.random.key(0))


def test_a_turn_reads_all_before_it_and_again_draws_the_last_anew(smollm2, drawn, capsys):
    chat = _chat(smollm2)
    chat.say("Hi")
    chat.say("And?")
    assert [message["content"] for message in chat.messages] == ["Hi", "Yes 1", "And?", "Yes 2"]
    assert "Hi<|im_end|>" in drawn[1] and "Yes 1<|im_end|>" in drawn[1] and drawn[1].endswith("assistant\n")
    chat.again()
    assert drawn[2] == drawn[1] and chat.messages[-1] == {"role": ASSISTANT, "content": "Yes 3"}
    chat.begin()
    chat.again()
    assert chat.messages == [] and capsys.readouterr().out == "Yes 1\nYes 2\nYes 3\nThere is no answer yet.\n"


def test_the_oldest_turn_goes_where_a_conversation_is_too_long(smollm2, drawn, capsys):
    short = smollm2._replace(config=smollm2.config.__class__(**{**vars(smollm2.config), "max_positions": 160}))
    chat = _chat(short)
    for text in ("one", "two", "three", "four " * 10, "five " * 200):
        chat.say(text)
    said = capsys.readouterr().out
    assert "The oldest turn is left out" in said and "tokens, more than the 80 that the model reads here" in said
    assert chat.messages[0]["content"] != "one" and chat.messages[-1]["role"] == ASSISTANT, (
        "what was refused costs none"
    )


def test_an_answer_that_is_ended_or_cut_is_kept(smollm2, monkeypatch, capsys):
    def ended(*_):
        yield Grown(["On"], [True])
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_run, "answer_pieces", ended)
    chat = _chat(smollm2)
    chat.say("Hi")
    assert chat.messages[-1]["content"] == "On" and capsys.readouterr().out == "On … (ended)\n"
    monkeypatch.setattr(chat_run, "answer_pieces", lambda *_: iter([Grown(["On"], [True])]))
    chat.say("Hi")
    assert capsys.readouterr().out == "On … (cut at 512 tokens)\n"


def test_lines_are_read_from_a_pipe_and_words_are_told(monkeypatch, capsys):
    """Without a chat template each line is a text of its own; what cannot be read is told."""
    monkeypatch.setattr("sys.stdin", io.StringIO("1+1=\n\nabc\n/neww\n/new\n/help\n/exit\n2+2=\n"))
    assert main(["chat", "--model", "char", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert "char has no chat template" in said and "> 1+1=\n" in said and "2+2=" not in said
    assert "That cannot be read: " in said and "did you mean '/new'?" in said and "/again  draw" in said


def test_the_pieces_of_an_answer_are_its_text():
    from rlax_llm.commands.setup import build_request
    from rlax_llm.commands.streaming import answer_pieces, padded_and_request

    model = build_model("chat", ModelSettings(model="char"), 0)
    settings = TurnSettings(max_new_tokens=5, temperature=0.0)
    asked = build_request(settings, model.tokenizer, model.config.vocab_size, 5)
    prompts, request = padded_and_request(model, model.tokenizer.encode("1+1="), asked)
    grown = list(answer_pieces(model, prompts, jax.random.key(0), request))
    assert 2 <= len(grown) <= 6
    assert "".join(piece for (piece,), _ in grown) != ""
