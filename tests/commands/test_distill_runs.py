"""``rlax-llm distill`` in whole: every kind of teacher, who is refused, and a run that goes on."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest

from rlax_llm.commands.distill.run import run_distill
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.host.failures import RunFailed
from rlax_llm.models import decoder
from rlax_llm.models.adapter_files import write_adapter
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.lora import init_adapter
from rlax_llm.models.tokenizer import Tokenizer

SMALL = {"batch_size": 4, "eval_size": 4, "eval_every": 0, "steps": 2, "max_new_tokens": 4, "max_prompt_tokens": 8}
TOKENIZER = Tokenizer.characters(ALPHABET + "\n")


def shape(width: int, vocab_size: int = TOKENIZER.vocab_size, **given) -> DecoderConfig:
    return DecoderConfig(vocab_size, width, 2 * width, 1, 2, 2, width // 2, max_positions=64, **given)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A student, a wider teacher of another family, one of another tokenizer, and adapters over the student."""
    place = tmp_path_factory.mktemp("models")
    for name, config in (("student", shape(16)), ("teacher", shape(32, qk_norm="head"))):
        write_model(place / name, config, decoder.init_decoder(config, jax.random.key(len(name))), TOKENIZER)
    other = Tokenizer.characters("ab" + ALPHABET)
    config = shape(16, other.vocab_size)  # and without a new line
    write_model(place / "stranger", config, decoder.init_decoder(config, jax.random.key(1)), other)
    adapted = shape(16, lora=Lora(2, 4.0, ("q", "v")))
    adapter = jax.tree.map(lambda x: x + 0.1, init_adapter(adapted, jax.random.key(2)))
    write_adapter(place / "adapter", adapted, adapter, str(place / "student"))
    return place


def run(models: Path, out: Path, teacher: str | None = "teacher", **given) -> list[dict]:
    told = {"teacher": None if teacher is None else str(models / teacher)} | {"model": str(models / "student")}
    directory = run_distill(DistillSettings.of(**SMALL | told | {"out": str(out)} | given))
    return [json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()]


def steps(lines: list[dict]) -> list[dict]:
    return [line for line in lines if line["step"]]


@pytest.mark.parametrize(
    ("recipe", "given", "told"),
    [
        ("opd", {}, "kl"),
        ("iw_opd", {"gamma": 1.0}, "kl"),
        ("gkd", {"on_policy": 1.0, "temperature": 0.7, "top_k": 8}, "divergence"),
        ("gkd", {"on_policy": 0.0, "teacher_top_k": 4}, "divergence"),
        ("minillm", {"micro_batch_size": 2}, "divergence"),
        ("opd_grpo", {"group_size": 2}, "reward_std"),
    ],
)
def test_a_teacher_of_another_family(models, tmp_path, recipe, given, told):
    lines = steps(run(models, tmp_path / "run", recipe=recipe, **given))
    assert len(lines) == 2
    assert all(line[told] is not None and line["grad_norm"] > 0 for line in lines)
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert all(("kl_old" in line) == (line["on_policy"] == 1) for line in lines)


def test_what_a_teacher_said_teaches_as_the_teacher_does(models, tmp_path, capsys):
    """With all tokens written, the steps are those of the live teacher on the same rows."""
    file = tmp_path / "said.parquet"
    size = TOKENIZER.vocab_size
    written = run_distill(
        DistillSettings.of(**SMALL, teacher=str(models / "teacher"), write_teacher=str(file), teacher_top_k=size)
    )
    assert written is None and f"the {size} likeliest tokens" in capsys.readouterr().out
    live = steps(run(models, tmp_path / "live", recipe="reverse_kl"))
    stored = steps(run(models, tmp_path / "stored", str(file), recipe="reverse_kl"))
    for one, other in zip(live, stored, strict=True):
        assert other["divergence"] == pytest.approx(one["divergence"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    with pytest.raises(ValueError, match="the teacher that wrote it has another vocabulary than the student"):
        run(models, tmp_path / "no", str(file), recipe="forward_kl", model=str(models / "stranger"))
    with pytest.raises(ValueError, match=f"teacher_top_k is 4, and .* holds {size} at each token; leave it out"):
        run(models, tmp_path / "no", str(file), recipe="forward_kl", teacher_top_k=4)
    with pytest.raises(ValueError, match="recipe opd asks the teacher of the student's completions"):
        run(models, tmp_path / "no", str(file), recipe="opd")


def test_adapters_over_the_students_base_hold_it_once(models, tmp_path):
    whole = steps(run(models, tmp_path / "whole", "adapter"))
    shared = steps(run(models, tmp_path / "shared", "adapter", lora_rank=2))
    # Before the first step both students are the base, and both teachers the base with these adapters.
    assert shared[0]["kl"] == pytest.approx(whole[0]["kl"], rel=1e-3)
    assert (tmp_path / "shared" / "model_adapter").is_dir()


@pytest.mark.parametrize("recipe", ["sdft", "opsd", "sdpo"])
def test_a_student_that_teaches_itself(models, tmp_path, recipe, capsys):
    # A row shows its answer always; no attempt of an untrained student is right, and then nothing is taught.
    taught = recipe != "sdpo"
    with nullcontext() if taught else pytest.raises(RunFailed, match=r"in any of the 2 steps .*nothing was learned"):
        run(models, tmp_path / "run", None, recipe=recipe, max_prompt_tokens=8)
    lines = steps([json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()])
    assert len(lines) == 2 and all("grad_norm" in line for line in lines)
    assert {(line["frac_hinted"] == 1, line["grad_norm"] > 0) for line in lines} == {(taught, taught)}
    assert ("frac_hinted is 0" in capsys.readouterr().err) != taught


TOLD = """
def told(prompts, completions, **columns):
    return [(0.0, None if place % 2 else "1+1=2") for place, _ in enumerate(prompts)]
"""


def test_feedback_teaches_where_no_attempt_is_right(models, tmp_path):
    """Of every other completion a reward says something; of a long text the end is shown."""
    (tmp_path / "told.py").write_text(TOLD)
    given = {"reward": f"{tmp_path}/told.py:told", "teacher_prompt": r"{hint}\n{prompt}", "max_feedback_tokens": 2}
    lines = steps(run(models, tmp_path / "run", None, recipe="trl:sdpo", **given))
    assert all(line["frac_hinted"] == 0.5 and line["grad_norm"] > 0 for line in lines)
    records = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    drawn = [record for record in records if record["step"]]
    assert [record.get("feedback") for record in drawn[:2]] == ["1+1=2", None]


def test_rows_that_say_their_own_feedback_need_no_reward(models, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "1+{n}=", "feedback": "{n}"}}\n' for n in range(16)))
    lines = steps(run(models, tmp_path / "run", None, recipe="sdpo", data=(str(tmp_path / "rows.jsonl"),)))
    assert all(line["frac_hinted"] == 1 and line["grad_norm"] > 0 for line in lines)


def test_a_run_goes_on_as_if_it_had_not_ended(models, tmp_path):
    whole = steps(run(models, tmp_path / "whole", None, recipe="sdft", steps=3, schedule="constant"))
    run(models, tmp_path / "part", None, recipe="sdft", steps=2, schedule="constant")
    settings = DistillSettings.of(**SMALL, model=str(models / "student"), recipe="sdft", schedule="constant")
    directory = run_distill(settings.changed(resume=str(tmp_path / "part"), steps=3))
    lines = [json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()]
    assert steps(lines)[-1]["divergence"] == pytest.approx(whole[-1]["divergence"], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, "distill: there is no teacher; give teacher"),
        ({"teacher": "stranger"}, "The teacher has another vocabulary than the policy"),
        ({"beta": 0.5}, "distill: recipe opd has no beta; leave it out, or take one of gkd"),
        ({"recipe": "sdft"}, "distill: recipe sdft has no teacher but the student; leave teacher out"),
        ({"recipe": "gdk"}, "there is no recipe 'gdk'; did you mean 'gkd'"),
        ({"separator": "+"}, "distill: recipe opd has no separator; leave it out, or take one of sdft"),
        ({"on_policy": 1.5, "recipe": "gkd"}, "on_policy is 1.5"),
        (
            {"recipe": "gkd", "teacher_top_k": 4, "logit_bias": "3=1"},
            "logit_bias is given with the likeliest tokens of a teacher",
        ),
        ({"write_teacher": "x.json"}, "write_teacher is 'x.json', wanted a file that ends in .parquet"),
        ({"teacher_top_k": 4}, "teacher_top_k is 4, and recipe opd reads the tokens that were drawn alone"),
        ({"write_teacher": "none/x.parquet"}, "write_teacher is 'none/x.parquet', and its directory is not there"),
        ({"write_teacher": "x.parquet", "temperature": 0.5}, "temperature is 0.5, and what a teacher says is written"),
        ({"recipe": "opd_grpo", "data": ("bare",)}, "recipe opd_grpo reads the scores of completions, and data has"),
        (
            {"recipe": "sdpo", "teacher": None, "data": ("bare",)},
            "scores of completions or feedback, and data has neither",
        ),
        (
            {"recipe": "sdpo", "teacher": None, "teacher_prompt": "{prompt}"},
            "teacher_prompt is .* in which {hint} stands",
        ),
        (
            {"recipe": "forward_kl", "router_replay": True},
            "router_replay is given, and recipe forward_kl draws no completions",
        ),
        ({"feedback_template": "{hint}"}, "recipe opd has no feedback_template; leave it out, or take one of sdpo"),
        ({"max_feedback_tokens": 9}, "max_feedback_tokens is given and recipe opd shows no feedback"),
        ({"recipe": "iw_opd", "gamma": -1.0}, "gamma is -1"),
        ({"recipe": "sdpo", "teacher": None, "group_size": 1}, "recipe sdpo compares .* group_size is 1; give at"),
        ({"recipe": "opsd", "teacher": None, "data": ("bare",)}, "give rows with a column hint, completion or answer"),
    ],
)
def test_what_is_refused(models, tmp_path, given, message):
    named = {"teacher": "teacher"} | given
    if "data" in given:
        (tmp_path / "bare.jsonl").write_text("".join(f'{{"prompt": "1+{n}="}}\n' for n in range(16)))
        named["data"] = (str(tmp_path / "bare.jsonl"),)
    with pytest.raises(ValueError, match=message):
        run(models, tmp_path / "run", **named)


def test_an_answer_that_cannot_be_shown_is_told(models, tmp_path):
    told = r"the model has no tokens for what stands around an answer .* '\\n' at .* Give separator, a text that it can"
    with pytest.raises(ValueError, match=told):
        run(models, tmp_path / "run", None, recipe="sdft", model=str(models / "stranger"))
    with pytest.raises(ValueError, match=r"'é' at .* Give teacher_prompt, a text that it can write\.$"):
        run(
            models,
            tmp_path / "run",
            None,
            recipe="sdft",
            model=str(models / "stranger"),
            teacher_prompt="{prompt}é{hint}",
        )
    lines = run(models, tmp_path / "run", None, recipe="sdft", model=str(models / "stranger"), separator="*", steps=1)
    assert steps(lines)[0]["frac_hinted"] == 1
