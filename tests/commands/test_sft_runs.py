"""``sft`` on files: what becomes of their columns, and rows that examples share."""

import json

import numpy as np
import pytest

from rlax_llm.cli.main import main
from rlax_llm.commands.sft.run import DFT, paid_by, run_sft
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.models.loading import load_model

ADAPTERS = {"lora_rank": 2, "lora_dropout": 0.1, "lora_tokens": (5, 3)}
CONFIG = SftSettings.of(steps=2, batch_size=4, max_new_tokens=6, eval_size=4, eval_every=1)


def file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_shared_rows_have_the_loss_of_rows_apart(tmp_path):
    data = file(tmp_path / "sums.jsonl", [{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(16)])
    apart = run_sft(CONFIG.changed(data=data, out=str(tmp_path / "apart"))).metrics()
    shared = run_sft(CONFIG.changed(data=data, packed_tokens=24, out=str(tmp_path / "shared"), **ADAPTERS))
    assert shared.metrics()[0]["held_out_loss"] == pytest.approx(apart[0]["held_out_loss"], rel=1e-5)
    assert shared.metrics()[-1]["held_out_loss"] < shared.metrics()[0]["held_out_loss"]
    written = json.loads((shared.path / "model_adapter" / "adapter_config.json").read_text())
    assert (written["lora_dropout"], written["trainable_token_indices"]) == (0.1, [5, 3])
    embedding, merged = (load_model(shared.path / name).params["embed"] for name in ("model_adapter", "model"))
    np.testing.assert_array_equal(embedding, merged)


def test_a_text_is_learned_whole_held_to_the_model_before(tmp_path):
    data = file(tmp_path / "texts.jsonl", [{"text": f"{a}+1"} for a in range(16)])
    rows = run_sft(CONFIG.changed(data=data, loss="asft", out=str(tmp_path / "run"))).metrics()
    assert rows[-1]["held_out_loss"] < rows[0]["held_out_loss"]
    first, second = (row["kl"] for row in rows[1:])
    assert first == pytest.approx(0, abs=1e-6) and second > 1e-4


def test_asft_is_dft_with_a_kl():
    assert paid_by(SftSettings.of(loss="asft").optimizer) == DFT._replace(kl_coef=0.1)
    assert paid_by(SftSettings.of(loss="asft", kl_coef=0.0).optimizer) == paid_by(SftSettings.of(loss="dft").optimizer)
    assert SftSettings.of(loss="asft").changed(loss="nll").optimizer.kl_coef == 0
    with pytest.raises(ValueError, match=r"kl_coef is 0\.1 and loss is dft, which has no KL; choose asft"):
        SftSettings.of(loss="dft", kl_coef=0.1)


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"prompt": "1+1=", "completion": ""}] * 2, (), "line 1: the completion is empty"),
        ([{"prompt": "1+1="}] * 2, (), "line 1: no column 'completion'"),
        (
            [{"prompt": f"{a}=", "completion": "1"} for a in range(3)],
            ("--packed-tokens", "3"),
            "--packed-tokens is 3, the longest example has 4",
        ),
        (
            [{"messages": [{"role": r, "content": str(a)} for r in ("user", "assistant")]} for a in range(3)],
            (),
            "no chat template",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, rows, flags, message):
    data = file(tmp_path / "rows.jsonl", rows)
    assert main(["sft", "--data", data, "--eval-size", "1", "--steps", "1", *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
