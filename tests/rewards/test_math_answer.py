import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parser

from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.loading import load_reward
from rlax_llm.rewards.mathematics import math_answer
from rlax_llm.rewards.pool import RewardPool

EQUAL = [
    ("1/2", "It is 0.5."),
    ("1/2", r"so \boxed{\frac{2}{4}}"),
    (r"2\sqrt{3}", r"$\sqrt{12}$"),
    (r"$2\sqrt{3}$", [{"role": "assistant", "content": r"\boxed{2\sqrt{3}}"}]),
    ("x^2 + 2x + 1", r"\boxed{(x+1)^2}"),
    (r"\{1, 2\}", r"\boxed{\{2, 1\}}"),
    (42, "first 7, and then 42"),
    ("1,234", "1234"),
]
DIFFERENT = [("1/2", "1/3"), (r"2\sqrt{3}", "2"), ("x + 1", r"\boxed{x - 1}"), ("4", ""), ("4", "no idea")]
UNREADABLE = ["", r"\frac{", "$"]


def answers(pairs):
    return [""] * len(pairs), [completion for _, completion in pairs], [right for right, _ in pairs]


def test_answers_are_compared_by_value():
    for pairs, expected in ((EQUAL, 1.0), (DIFFERENT, 0.0)):
        prompts, completions, right = answers(pairs)
        assert math_answer(prompts, completions, answer=right) == [expected] * len(pairs)


@settings(deadline=None, max_examples=30)
@given(st.integers(-99, 99), st.integers(1, 99), st.integers(1, 9), st.integers(1, 3))
def test_a_fraction_equals_any_multiple_of_it_and_no_neighbor(above, below, factor, off):
    completion = rf"\boxed{{\frac{{{above * factor}}}{{{below * factor}}}}}"
    assert math_answer([""] * 2, [completion] * 2, answer=[f"{above}/{below}", f"{above + off}/{below}"]) == [1.0, 0.0]


def test_an_answer_that_cannot_be_parsed_abstains():
    assert math_answer([""] * 3, ["1"] * 3, answer=UNREADABLE) == [None] * 3


def test_another_thread_and_another_process_need_no_signals():
    found = []
    prompts, completions, right = answers(EQUAL[:2] + DIFFERENT[:1])
    thread = threading.Thread(target=lambda: found.append(math_answer(prompts, completions, answer=right)))
    thread.start()
    thread.join()
    with RewardPool("math_answer", workers=1, timeout=60.0) as pool:
        found.append(pool(prompts, completions, answer=right))
    assert found == [[1.0, 1.0, 0.0]] * 2


def test_a_formula_that_takes_too_long_is_given_up(monkeypatch):
    read = parser.extract_target_from_pred

    def slowly(text, *rest, **settings):
        if "slow" in text:
            time.sleep(60)
        return read(text, *rest, **settings)

    monkeypatch.setattr(parser, "extract_target_from_pred", slowly)
    monkeypatch.setattr("rlax_llm.rewards.mathematics._SECONDS", 1)
    before = signal.getsignal(signal.SIGALRM)
    assert math_answer([""] * 3, [r"$\sqrt{slow}$", "4", "4"], answer=["4", r"\sqrt{slow}", "4"]) == [0.0, None, 1.0]
    assert signal.getsignal(signal.SIGALRM) is before


def test_without_the_package_loading_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RewardError, match=r"^reward 'math_answer': .*pip install 'rlax-llm\[math\]'\.$"):
        load_reward("math_answer")


def test_the_package_is_imported_only_where_it_is_asked_for():
    program = "import sys, rlax_llm.rewards.loading; sys.exit('math_verify' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
