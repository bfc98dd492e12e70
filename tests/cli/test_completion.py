"""The completion of a shell, asked as the shell asks it."""

import subprocess

import pytest

from rlax_llm.cli.completion import SHELLS, completion
from rlax_llm.cli.main import main
from rlax_llm.commands.plan.command import PLANS
from rlax_llm.commands.table import commands


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "bash"
    path.write_text(completion(["bash"], commands(), PLANS), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["g"], ["grpo", "generate"]),
        (["pl"], ["plan"]),
        (["grpo", "--dty"], ["--dtype"]),
        (["grpo", "--dtype", ""], ["float32", "bfloat16"]),
        (["grpo", "--integer"], ["--integer-answers"]),
        (["grpo", "--no-rem"], ["--no-remat"]),
        (["grpo", "--recipe", "dap"], ["dapo"]),
        (["grpo", "--track", "m"], ["mlflow"]),
        (["control", "--env", "CartP"], ["CartPole-v1"]),
        (["eval", "--task", "arithmetic-"], ["arithmetic-words"]),
        (["sft", "--model", "smol"], ["smollm2"]),
        (["grpo", "--reward", "no_su"], ["no_such_file.py"]),
        (["data", "no_su"], ["no_such_file.py"]),
        (["plan", "gr"], ["grpo"]),
        (["plan", "grpo", "--on"], ["--on"]),
        (["compl"], ["completion"]),
        (["completion", "f"], ["fish"]),
    ],
)
def test_bash_completes(script, words, wanted, tmp_path):
    (tmp_path / "no_such_file.py").touch()
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f"source {script}; COMP_WORDS=(rlax-llm {quoted}); COMP_CWORD={len(words)}; _shtab_rlax_llm"
    done = subprocess.run(
        ["bash", "-c", f'{asked}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == wanted


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_every_command(shell):
    made = completion([shell], commands(), PLANS)
    assert all(name in made for name in commands())


def test_wrong_shells_are_told(capsys):
    assert main(["completion", "bush"]) == 2
    assert capsys.readouterr().err == "error: completion: 'bush' is no shell; did you mean 'bash'?\n"
    assert main(["completion", "bash", "zsh"]) == 2
    assert main(["completion"]) == 0
    assert capsys.readouterr().out.startswith("usage: rlax-llm completion SHELL")
