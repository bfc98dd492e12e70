from __future__ import annotations

import jax
import numpy as np
import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.sampling_settings import DrawSettings
from rlax_llm.commands.setup import build_model, build_request
from rlax_llm.commands.shared_settings import ModelSettings
from rlax_llm.commands.stopping import StopFilter, without_stop
from rlax_llm.core.types import Completions

PIECES = ["a", "b", "ab", "ba", ".", "\n", "é", ""]
STOPS = ["ab.", ".\n", "éa"]


def decode(ids) -> str:
    return "".join(PIECES[token] for token in ids)


def test_pieces_that_are_shown_are_the_text_that_is_read():
    """Of random completions: those that the last token ends, and those that go on behind a stop text."""
    random, cut = np.random.default_rng(0), 0
    for _ in range(400):
        ids = random.integers(0, len(PIECES), 12).tolist()
        shown = StopFilter(STOPS)
        pieces = [shown.push(PIECES[token]) for token in ids]
        text = without_stop(decode, ids, STOPS, 0)
        assert "".join(pieces) + shown.flush("") == text
        assert decode(ids).startswith(text)
        cut += len(text) < len(decode(ids))
    assert cut > 20


def test_a_stop_text_across_an_answer_of_a_tool_is_none():
    assert without_stop(decode, [0, 1, 4], ["ab."], 1) == "ab."
    assert without_stop(decode, [0, 0, 1, 4], ["ab."], 1) == "a"


def test_texts_of_a_rollout_stand_before_the_stop_text_and_its_tokens_are_learned_from():
    model = build_model("grpo", ModelSettings(model="char"), 0)
    given = DrawSettings(stop=("1", "=2", "+-"), temperature=1.5, repetition_penalty=1.1)
    request = build_request(given, model.tokenizer, model.config.vocab_size, 12, 16)
    sampling = Sampling(model.config, model.tokenizer, 16, stops=given.stops)
    found = sampling.rollout(model.params, [{"prompt": "1+1="}, {"prompt": "12-"}], jax.random.key(0), request)
    drawn: Completions = found.completions
    stopped = 0
    for text, tokens, mask, truncated in zip(found.texts, drawn.tokens, drawn.mask, drawn.truncated, strict=True):
        whole = model.tokenizer.decode(tokens[mask])
        ends = [stop for stop in given.stops if whole.endswith(stop)]
        assert not any(stop in whole[:-1] for stop in given.stops)
        assert whole == text + (ends[0] if ends else "")
        assert not (ends and truncated)
        stopped += bool(ends)
    assert stopped > 5


def test_generate_prints_what_stands_before(capsys):
    given = ["--model", "char", "--temperature", "2", "--max-new-tokens", "9", "--seed", "5"]
    assert main(["generate", "1+1=", *given]) == 0
    whole = capsys.readouterr().out.rstrip("\n")
    stop = whole[3:5]
    assert len(stop) == 2
    assert main(["generate", "1+1=", *given, "--stop", stop]) == 0
    assert capsys.readouterr().out.rstrip("\n") == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stop": ("a", "")}, "stop has an empty text, wanted texts that end a completion; leave it out."),
        (
            {"pattern": "a", "min_new_tokens": 2},
            "pattern and min_new_tokens are given, and may leave no token to draw; leave one out.",
        ),
        ({"pattern": "a", "tool": "calculator"}, "pattern is given with tool calculator, whose calls it would have to"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, wanted a number greater than 0."),
        ({"presence_penalty": 1e4}, "presence_penalty is 10000.0, wanted a number from -1000 to 1000."),
        ({"stop_ids": (-1,)}, "stop_ids are [-1], wanted ids of tokens, from 0 on."),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ValueError) as caught:
        GrpoSettings.of(**given)
    assert message in str(caught.value)


def test_escapes_are_those_of_a_new_line_a_tab_and_a_backslash():
    assert DrawSettings(stop=(r"a\nb\t", r"\\neq", "\n", r"\d")).stops == ("a\nb\t", r"\neq", "\n", r"\d")


def test_stop_ids_are_beside_the_tokenizers():
    model = build_model("eval", ModelSettings(model="char"), 0)
    vocabulary = model.config.vocab_size
    assert build_request(DrawSettings(stop_ids=(4, 1)), model.tokenizer, vocabulary, 5).stop_ids == (1, 4)
    with pytest.raises(ValueError, match=f"stop_ids has {vocabulary}, and the vocabulary has {vocabulary} tokens;"):
        build_request(DrawSettings(stop_ids=(vocabulary,)), model.tokenizer, vocabulary, 5)
