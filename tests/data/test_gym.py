import sys

import pytest

from rlax_llm.data import gym
from rlax_llm.data.rows import DataError
from rlax_llm.rewards.calling import score

SUMS = {"max_terms": 2, "max_digits": 1}


def scores(reward, rows, completions):
    return score([reward], rows, completions).total.tolist()


def test_rows_are_disjoint_repeatable_and_solved_by_their_own_answers():
    train, held_out, reward = gym.load("chain_sum", 30, 0, size=200, config=SUMS)
    prompts = [row["prompt"][0]["content"] for row in train + held_out]
    assert len(held_out) == 30
    assert len(prompts) == len(set(prompts)) < 230
    assert gym.load("chain_sum", 30, 0, size=200, config=SUMS)[:2] == (train, held_out)
    assert scores(reward, held_out, [row["completion"] for row in held_out]) == [1.0] * 30
    assert scores(reward, held_out[:1], [f"I think.\n**Answer: {held_out[0]['answer']}.**"]) == [1.0]
    assert scores(reward, held_out[:1], [f"<answer>{held_out[0]['answer']}</answer> or 99999"]) == [1.0]
    assert scores(reward, held_out[:1], ["none"]) == [0.0]


def test_neighboring_seeds_share_no_run_of_entries():
    questions = [[row["prompt"][0]["content"] for row in gym.load("chain_sum", 1, seed, size=20)[0]] for seed in (0, 1)]
    assert not set(questions[0]) & set(questions[1])


def test_answers_of_several_lines_and_text_that_a_scorer_cannot_parse():
    train, _, reward = gym.load("mini_sudoku", 1, 0, size=1)
    grid = train[0]["answer"]
    assert grid.count("\n") == 3
    assert scores(reward, train, [f"Here it is:\n{grid}\n"]) == [1.0]
    train, _, reward = gym.load("prime_factorization", 1, 0, size=1)
    assert scores(reward, train, ["hello"]) == [0.0]


def test_a_task_without_one_right_answer_has_no_demonstration():
    train, held_out, _ = gym.load("graph_color", 1, 0, size=2)
    assert all("completion" not in row and row["answer"] is None for row in train + held_out)


@pytest.mark.parametrize(
    ("text", "lines", "found"),
    [
        ("<answer>1</answer> then <answer> 2\n</answer>", 1, "2"),
        ("so <answer>3", 1, "3"),
        ("The final answer is: 4", 1, "4"),
        ("first\n\nlast  \n\n", 1, "last"),
        ("a\nb\nc", 2, "b\nc"),
        ("a\nb ", None, "a\nb"),
        ("", 1, ""),
    ],
)
def test_the_answer_is_taken_from_a_tag_or_the_last_lines(text, lines, found):
    assert gym.extract_answer(text, lines) == found


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("chain_sums", {}, "no such task, of * such as chain_sum; did you mean 'chain_sum'?"),
        ("chain_sum", {"seed": -1}, "seed is -1, wanted a whole number of at least 0."),
        ("chain_sum", {"size": "many"}, "size is 'many', wanted a whole number of at least 1."),
        ("chain_sum", {"config": {"terms": 2}}, "refused (TypeError: *); its settings are allow_negation, *"),
        ("chain_sum", {"config": {"min_terms": -1}}, "refused (AssertionError: min_terms must be positive); *"),
        (
            "chain_sum",
            {"config": SUMS, "held_out_size": 250},
            "1000 entries hold only * different questions, wanted 250 to hold out; "
            "hold out fewer, or set the task to be harder.",
        ),
    ],
)
def test_what_cannot_be_generated_is_named(name, arguments, said):
    with pytest.raises(DataError) as caught:
        gym.load(**{"name": name, "held_out_size": 1, "seed": 0} | arguments)
    message = str(caught.value)
    assert message.startswith(f"reasoning-gym:{name}: {said.split('*')[0]}")
    assert all(part in message for part in said.split("*"))


def test_a_training_question_must_be_left():
    with pytest.raises(DataError, match="every training question is held out; hold out fewer"):
        gym.load("chain_sum", 180, 0, size=1, config={"max_terms": 2, "max_digits": 1})


def test_a_missing_installation_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError) as caught:
        gym.load("chain_sum", 1, 0)
    assert "reasoning-gym is not installed" in str(caught.value)
    assert str(caught.value).endswith('pip install "rlax-llm[tasks]".')
