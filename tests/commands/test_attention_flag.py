"""``--attention``: it reaches the model, and a kernel that cannot serve here is told in one sentence."""

from rlax_llm.cli.main import main
from rlax_llm.commands.plan.models import abstract_scalar
from rlax_llm.commands.setup import build_model
from rlax_llm.commands.shared_settings import ModelSettings
from rlax_llm.core.platform import targeting


def test_the_form_reaches_the_model_and_is_said(capsys):
    with targeting("tpu"):
        assert build_model("eval", ModelSettings(model="char", attention="splash"), 0).config.attention == "splash"
    assert capsys.readouterr().out == "Attention is splash's\n"
    assert build_model("eval", ModelSettings(model="char"), 0).config.attention == "auto"
    assert capsys.readouterr().out == ""


def test_the_form_reaches_the_model_of_a_plan():
    judge = abstract_scalar("qwen3-0.6b", ModelSettings(attention="blockwise"))
    assert judge.config.attention == "blockwise"


def test_a_kernel_of_another_machine_is_told(capsys):
    assert main(["grpo", "--attention", "splash", "--steps", "1"]) == 2
    said = capsys.readouterr()
    assert "attention: splash runs on a TPU, and this is a CPU; choose auto, or blockwise." in said.out + said.err
    assert "Traceback" not in said.err
