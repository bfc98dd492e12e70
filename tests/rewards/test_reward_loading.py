import sys

import pytest

from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.functions import integer_answer
from rlax_llm.rewards.loading import load_reward

SOURCE = """
import own_helper
LIMIT = 3
def short(prompts, completions, **_):
    return [float(len(text) < own_helper.LENGTH) for text in completions]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(SOURCE)
    (tmp_path / "own_helper.py").write_text("LENGTH = 3")
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_needy.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_functions_load_by_module_by_file_and_by_built_in_name(folder, monkeypatch):
    path = list(sys.path)
    for spec in ("own_rewards:short", "own_rewards.py:short"):
        reward = load_reward(spec)
        assert (reward.name, reward.weight) == ("short", 1.0)
        assert reward.function(["", ""], ["ab", "abc"]) == [1.0, 0.0]
    monkeypatch.chdir(folder.parent)
    assert load_reward(f"{folder}/own_rewards.py:short").function([""], ["ab"]) == [1.0]
    assert load_reward("integer_answer").function is integer_answer
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "integr_answer",
            "wanted MODULE:FUNCTION, FILE.py:FUNCTION or one of exact_answer, integer_answer; "
            "did you mean 'integer_answer'?",
        ),
        ("own_rewards:", "wanted MODULE:FUNCTION, FILE.py:FUNCTION or one of exact_answer, integer_answer."),
        ("own_reward:short", "there is no module 'own_reward' here or installed; did you mean 'own_rewards'?"),
        ("own_reward.py:short", "there is no file own_reward.py; did you mean 'own_rewards.py'?"),
        ("own_rewards:shrt", "own_rewards has no function 'shrt'; did you mean 'short'?"),
        ("own_rewards:LIMIT", "LIMIT is of type int, wanted a function."),
        ("own_broken:f", "importing own_broken raised ZeroDivisionError: division by zero."),
        ("own_broken.py:f", "importing own_broken.py raised ZeroDivisionError: division by zero."),
        (
            "own_needy:f",
            "importing own_needy raised ModuleNotFoundError: No module named 'not_installed_anywhere'.",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(folder, spec, said):
    with pytest.raises(RewardError) as caught:
        load_reward(spec)
    assert str(caught.value) == f"reward {spec!r}: {said}"
