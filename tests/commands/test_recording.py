"""What is kept of rollouts, held against the rollout and against the model's own log-probabilities."""

import json

import jax
import numpy as np
import pytest

from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import as_heard, as_told
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.recording import Recorder
from rlax_llm.commands.setup import build_model
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.rewards.calling import Scores

SETTINGS = GrpoSettings.of(batch_size=3, group_size=4, max_new_tokens=7, temperature=0.7, top_k=5)
PROMPTS = ["1+2=", "10+20=", "1+2="]


@pytest.fixture(scope="module")
def drawn():
    model = build_model("grpo", SETTINGS.model, 0, SETTINGS.sampling)
    learner = language_learner(SETTINGS.model, model, 0)
    drawing = build_drawing(SETTINGS.sampling, SETTINGS.rollout, learner)
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    rollout = drawing.sampling.rollout(learner.sampled(learner.params), rows, jax.random.key(1), drawing.request)
    total = np.array([0.5, np.nan, 1, 0] + [0] * 4 + [1] * 4, np.float32)
    return learner, rollout, Scores(total, {}, np.zeros(12, bool))


def recorder(learner):
    return Recorder(learner, SETTINGS.sampling, lambda score: score >= 1, SETTINGS.rollout.group_size)


def test_scores_and_lengths_of_every_completion_and_each_prompt_s_text_once(drawn):
    learner, rollout, scores = drawn
    record = recorder(learner)
    advantages = np.zeros(rollout.completions.tokens.shape)
    (line,) = record(100, rollout, scores, learner.params, advantages)["rollouts"]
    lengths = rollout.lengths().reshape(3, 4).tolist()
    assert (line["completions"], line["lengths"]) == (12, lengths)
    assert line["rewards"] == [[0.5, None, 1.0, 0.0], [0.0] * 4, [1.0] * 4]
    assert line["solved"] == [1, 0, 4]
    first, second, third = line["prompts"]
    assert first == third != second
    assert line["texts"] == {first: "1+2=", second: "10+20="}
    assert record(101, rollout, scores, learner.params, advantages)["rollouts"][0]["texts"] == {}


def test_ratios_are_1_before_an_update_and_those_of_the_rows_after_one(drawn):
    learner, rollout, scores = drawn
    moved = jax.tree.map(lambda x: x * 1.1, learner.params)
    advantages = np.arange(12.0)[:, None] * np.ones(rollout.completions.tokens.shape)
    sampling = SETTINGS.sampling
    oracle = row_log_probs(learner.config, False, sampling.temperature, sampling.bias)
    for params, exact in ((learner.params, True), (moved, False)):
        lines = recorder(learner)(1, rollout, scores, params, advantages)["tokens"]
        assert [line["reward"] for line in lines] == [None, 0.0, 0.5, 1.0]
        literal = np.asarray(oracle(params, rollout.completions)[0])
        for line, row in zip(lines, (1, 3, 0, 2), strict=True):
            mask = np.asarray(rollout.completions.mask)[row]
            before = np.asarray(rollout.completions.log_probs)[row, mask]
            np.testing.assert_allclose(line["log_probs"], before, rtol=1e-3, atol=1e-6)
            wanted = np.exp(np.clip(literal[row, mask] - before, -20, 20))
            np.testing.assert_allclose(line["ratios"], wanted, rtol=1e-3)
            assert np.allclose(line["ratios"], 1, atol=1e-3) == exact
            assert line["advantages"] == [float(row)] * mask.sum()
            tokens = np.asarray(rollout.completions.tokens)[row, mask]
            assert "".join(line["pieces"]) == learner.tokenizer.decode(tokens, skip_special=False)
            assert (line["prompt"], line["left_out"]) == ("1+2=", 0)


def test_of_a_long_run_fewer_steps_are_kept(drawn):
    learner, rollout, scores = drawn
    record = recorder(learner)
    advantages = np.zeros(rollout.completions.tokens.shape)
    steps = (12, 512, 513, 1000, 99_999)
    found = {step: set(record(step, rollout, scores, learner.params, advantages)) for step in steps}
    assert found == {12: {"rollouts"}, 512: {"rollouts"}, 513: set(), 1000: {"rollouts", "tokens"}, 99_999: set()}


def test_what_a_process_tells_of_its_scores_is_heard_by_the_others():
    """By JSON, with what rewards said; together with a part that said nothing."""
    nan = np.array([1.5, np.nan], np.float32)
    one = Scores(nan, {"f": 2 * nan}, np.array([False, True]), feedback=("short", None))
    parts = [as_heard(json.loads(json.dumps(as_told(part)))) for part in (one, one._replace(feedback=None))]
    found = Scores.together(parts)
    np.testing.assert_array_equal(found.total, np.concatenate([nan, nan]))
    np.testing.assert_array_equal(found.by_name["f"], np.concatenate([2 * nan, 2 * nan]))
    assert found.total.dtype == found.by_name["f"].dtype == np.float32
    assert found.failed.tolist() == [False, True, False, True]
    assert found.feedback == ("short", None, None, None) and found.steps is None
