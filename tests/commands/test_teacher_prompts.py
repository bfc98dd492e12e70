"""What a teacher is asked that its student is not: hints of attempts, feedback, and the templates around them."""

from __future__ import annotations

import pytest

from rlax_llm.commands.distill.teachers import teacher_prompts
from rlax_llm.policy.distillation import (
    Attempt,
    Prompting,
    after_example,
    in_words,
    joined,
    own_feedback,
    solved_attempt,
    written,
)
from rlax_llm.recipes import trl
from rlax_llm.recipes.distillation import sdpo

ASKED = {"prompt": "2+3="}
SHARES = [(0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)]


def attempts(solved, said=(None, None, None), **columns) -> list[Attempt]:
    rows = zip("456", map(bool, solved), said, strict=True)
    return [Attempt(ASKED | columns, *row) for row in rows]


@pytest.mark.parametrize("solved", SHARES)
@pytest.mark.parametrize("recipe", [sdpo, trl.sdpo])
def test_without_feedback_sdpo_shows_right_attempts_alone(solved, recipe):
    tried = attempts(solved)
    alone = Prompting(solved_attempt, after_example)
    assert teacher_prompts(recipe().prompting, tried) == teacher_prompts(alone, tried)
    blank = attempts(solved, ("", " \n", None))
    assert teacher_prompts(recipe().prompting, blank) == teacher_prompts(alone, tried)


def test_feedback_stands_behind_a_right_attempt_or_alone():
    tried = attempts((0, 1, 0), ("too small", "well done", None))
    assert teacher_prompts(sdpo().prompting, tried) == [
        "2+3=5\ntoo small\n2+3=",
        "2+3=\nwell done\n2+3=",
        "2+3=5\n2+3=",
    ]
    assert teacher_prompts(sdpo().prompting, attempts((0, 0, 0), ("no", None, None))) == ["2+3=\nno\n2+3=", None, None]


def test_a_row_may_say_it_and_a_reward_says_it_louder():
    told = attempts((0, 0, 0), (None, "not 5", " "), feedback="add the numbers")
    assert own_feedback(told) == ["add the numbers", "not 5", "add the numbers"]


def test_what_is_filled_in_is_not_looked_through():
    """An attempt that writes a template's own marks, or any braces, is shown as it is."""
    odd = [Attempt({"prompt": "{hint}"}, "x", False, "{prompt} {0} {}"), Attempt({"prompt": "{hint}"}, "{hint}", True)]
    assert teacher_prompts(sdpo().prompting, odd)[0] == "{hint}{hint}\n{prompt} {0} {}\n{hint}"


def test_of_a_conversation_the_last_message_is_written_anew():
    asked = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q", "name": "me"}]}
    shown = Prompting(own_feedback, written("{prompt} [{hint}]"))
    found = teacher_prompts(shown, [Attempt(asked, "a", feedback="no"), Attempt(asked, "b")])
    assert found == [[asked["prompt"][0], {"role": "user", "content": "q [no]", "name": "me"}], None]


def test_one_hint_alone_is_that_hint():
    tried = attempts((0, 1, 0), (None, "no", None))
    assert joined(in_words(solved_attempt, "{hint}"))(tried) == solved_attempt(tried)
    assert joined(own_feedback, solved_attempt)(tried) == ["5", "no", "5"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: written("{prompt}"),
            "written: template is '{prompt}', wanted a text in which {hint} stands; put it in",
        ),
        (lambda: in_words(own_feedback, "x"), "in_words: template is 'x', wanted a text in which {hint} stands"),
    ],
)
def test_a_template_without_a_place_is_refused(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
