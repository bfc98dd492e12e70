import subprocess
import sys

import pytest

from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.functions import integer_answer
from rlax_llm.rewards.loading import load_reward, load_rewards

WANTED = (
    "wanted MODULE:FUNCTION, FILE.py:FUNCTION or one of exact_answer, integer_answer, math_answer, format=REGEX, "
    "words=LIMIT, repetition=N"
)
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
    (folder / "of=3").mkdir()
    (folder / "of=3/own_rewards.py").write_text(
        SOURCE.replace("import own_helper", "").replace("own_helper.LENGTH", "9")
    )
    assert load_reward("of=3/own_rewards.py:short").function([""], ["ab"]) == [1.0]
    monkeypatch.chdir(folder.parent)
    assert load_reward(f"{folder}/own_rewards.py:short").function([""], ["ab"]) == [1.0]
    assert load_reward("integer_answer").function is integer_answer
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "integr_answer",
            f"{WANTED}; did you mean 'integer_answer'?",
        ),
        ("own_rewards:", f"{WANTED}."),
        ("format", f"{WANTED}; did you mean 'format'?"),
        ("frmat=<a:b>", f"{WANTED}; did you mean 'format'?"),
        ("words", f"{WANTED}; did you mean 'words'?"),
        ("integer_answer=3", f"{WANTED}; did you mean 'integer_answer'?"),
        (
            "format=(",
            "'(' is not a regular expression (missing ), unterminated subpattern at position 0); "
            "it is written format=REGEX.",
        ),
        ("words=few", "'few' is not a whole number; it is written words=LIMIT."),
        ("words=0", "the limit is 0, wanted at least 1 word; it is written words=LIMIT."),
        ("repetition=-1", "the size is -1, wanted at least 1 word; it is written repetition=N."),
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


def test_a_sum_has_a_reward_and_a_weight_for_each_term(folder):
    spec = "integer_answer + 0.2*format=a:b*c=+d + -5e-1 * words=3 + 0*own_rewards.py:short + repetition=2"
    rewards = load_rewards(spec)
    assert [(reward.name, reward.weight, reward.spec) for reward in rewards] == [
        ("integer_answer", 1.0, "integer_answer"),
        ("format", 0.2, "format=a:b*c=+d"),
        ("words", -0.5, "words=3"),
        ("short", 0.0, "own_rewards.py:short"),
        ("repetition", 1.0, "repetition=2"),
    ]
    assert rewards[1].function([""] * 2, ["a:bbc==d", "a:b*c=+d"]) == [1.0, 0.0]
    assert load_rewards("format=.*")[0].weight == 1.0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("half*words=3", "the weight 'half' is not a finite number."),
        ("nan*words=3", "the weight 'nan' is not a finite number."),
        ("*words=3", "the weight '' is not a finite number."),
        (" + words=3", "there is an empty term, wanted a reward on both sides of each ' + '."),
        (
            "format=a + 2*format=b",
            "two are named 'format', wanted different names, for metrics go by them; put one of them into a function "
            "with a name of its own.",
        ),
    ],
)
def test_a_sum_that_cannot_be_read_is_named(spec, said):
    with pytest.raises(RewardError) as caught:
        load_rewards(spec)
    assert str(caught.value) == f"rewards {spec!r}: {said}"


def test_loading_rewards_does_not_import_jax():
    program = "import sys, rlax_llm.rewards.loading, rlax_llm.rewards.pool; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
