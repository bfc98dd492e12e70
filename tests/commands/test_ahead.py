"""``--ahead 1``: the next step's completions are drawn before an update and scored during it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.rewards.calling import RewardError

TINY = GrpoSettings.of(
    task="arithmetic,largest=9",
    batch_size=4,
    group_size=4,
    steps=3,
    warm_start_steps=0,
    eval_every=0,
    eval_size=4,
    save_every=1,
    learning_rate=1e-2,
    schedule="constant",
    kl_coef=0.0,
    reward="format=[0-9]*",  # of which an untrained model gives some
)


@pytest.fixture
def phase_of(monkeypatch):
    """The phase of settings, and the parameters that it begins with."""

    def found(settings: GrpoSettings) -> tuple[GroupPhase, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(runs, "run_language", lambda settings, phase, params, *rest: (phase, params))
            built: Any = runs.run_grpo(settings)
        return built

    return found


def test_each_step_learns_from_completions_of_the_policy_before_it(phase_of):
    """A loop written out: batch i is drawn from the policy after i − 1 updates, and update i learns from it."""
    literal, params = phase_of(TINY.changed(correction="token"))
    state = literal.init(params)
    policies, wanted = [], []
    for index in range(4):
        policies.append(jax.tree.map(jnp.copy, state.params))
        batch, _ = literal.draw(policies[max(index - 1, 0)], index, None)
        order = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), index), 2**31 - 1)
        state, metrics, _ = literal.update(state, batch, None, order)
        wanted.append((batch, float(metrics["policy_loss"])))

    phase, params = phase_of(TINY.changed(ahead=1))
    order, state = [], phase.init(params)
    phase.begin(state, lambda params, every: params)
    for name in ("roll", "judge", "update"):
        told(phase, name, order)
    for index, (batch, loss) in enumerate(wanted):
        done = phase.step(state, index)
        state = done.state
        assert done.metrics["policy_loss"] == loss
        assert [row["completion"] for row in done.rows] == batch.rollout.texts[:4]
        assert {row["policy_step"] for row in done.rows} == {max(index - 1, 0)}
        assert done.metrics["sampler/staleness"] == min(index, 1)
        assert min(done.metrics[f"{part}_seconds"] for part in ("rollout", "scoring", "update")) >= 0
    assert any(loss for _, loss in wanted)
    assert order == ["roll", "judge"] + 4 * ["roll", "update", "judge"]  # a score is waited for behind the update


def told(phase: Any, name: str, order: list[str]) -> None:
    """Note each call of a phase's part."""
    part = getattr(phase, name)

    class Noted:
        def __call__(self, *arguments: Any) -> Any:
            order.append(name)
            return part(*arguments)

        def __getattr__(self, attribute: str) -> Any:
            return getattr(part, attribute)

    setattr(phase, name, Noted())


def test_what_was_drawn_ahead_is_there_after_a_checkpoint(tmp_path):
    """With unfinished groups and a surplus too."""
    settings = TINY.changed(ahead=1, partial_rollouts=2, dynamic_rounds=30, learning_rate=1e-3)
    whole, half = (runs.run_grpo(settings.changed(steps=steps, out=str(tmp_path / str(steps)))) for steps in (4, 2))
    again = runs.run_grpo(settings.changed(steps=4, resume=str(half.path)))
    rows, resumed = ([row for row in run.metrics() if row["step"] > 0] for run in (whole, again))
    timed = {name for name in rows[0] if "second" in name or name in ("time", "mfu")}
    for row, other in zip(rows, resumed, strict=True):
        wanted, found = ({k: v for k, v in each.items() if k not in timed} for each in (row, other))
        for name, value in wanted.items():
            np.testing.assert_equal(found[name], value, err_msg=name)
    assert max(row["sampler/oldest"] for row in rows) >= 2


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_reward_that_fails_ends_the_run_at_its_own_step(tmp_path, ahead):
    (tmp_path / "own.py").write_text(
        "calls = []\n\ndef own(prompts, completions, **columns):\n    calls.append(1)\n"
        "    return [0.0] if len(calls) == 4 else [float(len(text)) for text in completions]\n"
    )
    settings = TINY.changed(ahead=ahead, reward=f"{tmp_path}/own.py:own", out=str(tmp_path / "run"))
    with pytest.raises(RewardError, match="own"):
        runs.run_grpo(settings)
    assert [row["step"] for row in RunDirectory.reopen(tmp_path / "run").metrics()] == [0, 1, 2]
