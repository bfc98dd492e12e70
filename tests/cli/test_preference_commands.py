"""``reward``, ``dpo``, ``kto`` and ``ppo`` as a person meets them: bad input is one sentence that names its place."""

import json

import jax
import pytest

from rlax_llm.cli.main import main
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.huggingface import write_scalar
from rlax_llm.models.scalar import init_scalar
from rlax_llm.models.tokenizer import Tokenizer


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def said(capsys, *words):
    """What a failing command prints: what was left out, and one line; no traceback."""
    assert main([*words, "--steps", "1"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines)
    return "\n".join(lines)


GOOD = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
LABELED = {"prompt": "1+1=", "completion": "2", "label": True}


@pytest.mark.parametrize(
    ("command", "rows", "message"),
    [
        (
            "dpo",
            [GOOD, GOOD | {"rejected": "2"}],
            "1 of 2 rows left out: 1 because chosen and rejected are equal (",
        ),
        ("dpo", [GOOD, GOOD | {"rejected": ""}], "1 because the rejected is empty (line 2)"),
        ("reward", [{"prompt": "1+1=", "chosen": "2"}], "line 1: no column 'rejected'"),
        (
            "dpo",
            [GOOD, GOOD | {"prompt": 3}],
            "1 because the prompt is a number, wanted a string or a list of",
        ),
        ("reward", [GOOD | {"margin": 1.0}, GOOD | {"margin": "much"}], "1 because the margin is 'much', wanted a"),
        ("kto", [LABELED, LABELED | {"prompt": "2+2="}], "all 2 labels are true"),
        ("kto", [LABELED, LABELED | {"label": "yes"}], "all 1 labels are true"),
        (
            "dpo",
            [GOOD, GOOD | {"prompt": "what?"}],
            "1 because 'w' at position 0 is not in the alphabet",
        ),
        ("dpo", [GOOD, GOOD], "only one prompt in all"),
    ],
)
def test_a_bad_row_is_named(file, capsys, command, rows, message):
    assert message in said(capsys, command, "--data", file(*rows), "--eval-size", "1")


def test_an_empty_file(file, capsys):
    assert "the file has no rows" in said(capsys, "dpo", "--data", file())


def test_rows_that_are_too_long_are_counted_and_left_out(file, capsys):
    rows = [GOOD | {"prompt": "1+" * i + "1="} for i in (1, 2, 30)]
    message = said(capsys, "dpo", "--data", file(*rows), "--max-prompt-tokens", "2", "--eval-size", "1")
    assert "none of the 3 rows can be used" in message
    assert "line 1: the prompt has 4 tokens, more than max_prompt_tokens 2" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dpo", "--recipe", "dppo"), "there is no recipe 'dppo'; did you mean 'dpo'"),
        (("dpo", "--recipe", "ipo", "--label-smoothing", "0.1"), "recipe ipo has no --label-smoothing"),
        (("dpo", "--recipe", "dpo,ipo"), "recipe ipo has a reward of its own"),
        (("dpo", "--recipe", "dpo:much"), "the weight of recipe dpo is 'much'"),
        (("dpo", "--lora-alpha", "8"), "--lora-alpha is given without --lora-rank"),
        (("dpo", "--lora-rank", "2", "--lora-targets", "q,w"), "'w'"),
        (("dpo", "--recipe", "dpo:0.5"), "has a weight and nothing beside it"),
        (("dpo", "--recipe", "dpo:-1,bco"), "the weight of recipe dpo is '-1'"),
        (("dpo", "--recipe", "orpo", "--beta", "-1"), "beta is -1.0, wanted a number greater than 0"),
        (("dpo", "--label-smoothing", "0.7"), "--label-smoothing is 0.7, wanted a share below 0.5"),
        (("dpo", "--lora-targets", "q"), "--lora-targets is given without --lora-rank"),
        (("dpo", "--recipe", "simpo", "--precompute-reference"), "recipe simpo reads no reference"),
        (("dpo", "--recipe", "aot", "--micro-batch-size", "64"), "the link reads the whole batch"),
        (("dpo", "--recipe", "aot", "--wpo"), "recipe aot reads the whole batch, and wpo weighs single pairs"),
        (("dpo", "--recipe", "simpo", "--divergence", "alpha"), "recipe simpo has a reward of its own"),
        (("dpo", "--recipe", "dpo,ipo", "--tail-coef", "0.5"), "recipe ipo has a reward of its own"),
        (("dpo", "--divergence-alpha", "0.3"), "divergence reverse_kl has no --divergence-alpha; leave it out"),
        (("dpo", "--tail-coef", "1.5"), "--tail-coef is 1.5, wanted a number from 0 to 1"),
        (("kto", "--beta", "0"), "beta is 0.0, wanted"),
        (
            ("ppo", "--batch-size", "6", "--minibatches", "2", "--micro-batch-size", "2"),
            "wanted a divisor of the 3 completions",
        ),
        (("ppo", "--kl-target", "0.1", "--kl-coef", "0"), "--kl-target is given and --kl-coef is 0"),
        (("ppo", "--value-model", "reward"), "--value-model is 'reward' and there is no --reward-model"),
        (("ppo", "--value-lambda", "1.5"), "--value-lambda is 1.5"),
        (("ppo", "--reward-model", "nowhere"), "'nowhere' is not a directory"),
    ],
)
def test_a_setting_that_cannot_be(capsys, words, message):
    assert message in said(capsys, *words)


def test_a_reward_model_of_another_vocabulary(tmp_path, capsys):
    tokenizer = Tokenizer.characters("abc")
    config = DecoderConfig(tokenizer.vocab_size, 8, 8, 1, 2, 1, 4)
    params = init_scalar(decoder.init_decoder(config, jax.random.key(0)), jax.random.key(1))
    write_scalar(tmp_path / "judge", config, params, tokenizer)
    message = said(capsys, "ppo", "--reward-model", str(tmp_path / "judge"))
    assert "another vocabulary than the policy" in message
