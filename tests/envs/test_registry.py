"""Environments by name, and what a wrong name says."""

from __future__ import annotations

import subprocess
import sys

import gymnax as library
import pytest

from rlax_llm.envs.probes import PROBES
from rlax_llm.envs.registry import make, names

LIGHT = ["CartPole-v1", "RockPaperScissors", *(f"probe:{name}" for name in PROBES)]


@pytest.mark.parametrize("name", LIGHT)
def test_an_environment_carries_the_name_that_makes_it(name):
    assert name in names() and make(name).name == name


def test_names_are_listed_once():
    assert len(set(names())) == len(names()) >= 26 + 12 + 1 + len(PROBES)
    assert set(library.registered_envs) <= set(names())


def test_parameters_reach_the_factory():
    assert make("probe:delayed_reward", delay_steps=3).observation.shape == (7,)
    assert make("DeepSea-bsuite", size=5).observation.shape == (5, 5)


@pytest.fixture
def mine():
    library.register("Mine-v0", library.registration._registry["CartPole-v1"])
    yield "Mine-v0"
    library.registered_envs.remove("Mine-v0")
    del library.registration._registry["Mine-v0"]


def test_one_registered_with_gymnax_is_found(mine):
    assert make(mine).name == mine


def test_names_cost_no_import_of_gymnax():
    program = (
        "import sys; from rlax_llm.envs.registry import make, names; assert names()\n"
        "try: make('Cartpole-v1')\nexcept ValueError: print('gymnax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("Cartpole"), "there is no environment 'Cartpole'; did you mean 'CartPole-v1'\\? names\\(\\) lis"),
        (
            lambda: make("probe:time_limits"),
            "there is no environment 'probe:time_limits'; did you mean 'probe:time_limit'",
        ),
        (lambda: make("probe:"), "make: there is no environment 'probe:'"),
        (lambda: make("RockPaperScissor"), "did you mean 'RockPaperScissors'"),
        (lambda: make("xyzzy"), r"make: there is no environment 'xyzzy'\. names\(\) lists them"),
        (
            lambda: make("RockPaperScissors", horizon=3),
            r"RockPaperScissors has no parameter 'horizon'; did you mean 'horizon_steps'\? It takes .*horizon_st",
        ),
        (lambda: make("probe:two_steps", gamma=0.9), r"probe:two_steps has no parameter 'gamma'\. It takes disc"),
        (lambda: make("CartPole-v1", gravty=9.0), "CartPole-v1 has no parameter 'gravty'; did you mean 'gravity'"),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
