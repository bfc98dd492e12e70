"""Turns with tools as GiGPO compares them: against lists, and from the command line's settings to a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.grpo import run as runs
from rlax_llm.commands.grpo.anchoring import DISCOUNT, TURNS, anchors_of, call_metrics, numbers_of, returns_of
from rlax_llm.commands.grpo.gathering import Taken
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.core.types import Completions, Known, Scored
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.generation.turns import Tool, calculate
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.loading import write_model
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.recipes.variants import gigpo
from rlax_llm.rewards.calling import Scores

P, G, WIDTH, COLUMNS, OMEGA = 3, 4, 2, 16, 0.5


def episodes(seed):
    """Rows of ``(chosen tokens, answer)`` per turn; the last turn has no answer, or one that was cut by the limit."""
    random = np.random.default_rng(seed)
    answers = [[7], [8, 9], [8]]
    rows = []
    for _ in range(P * G):
        turns = int(random.integers(1, TURNS + 1))
        row = [
            (random.integers(1, 6, random.integers(1, 3)).tolist(), answers[random.integers(3)]) for _ in range(turns)
        ]
        rows.append([*row[:-1], (row[-1][0], row[-1][1] if random.random() < 0.2 else [])])
    return rows, np.where(random.random(P * G) < 0.1, np.nan, random.integers(0, 2, P * G))


def laid_out(rows, scores) -> Taken:
    tokens = np.zeros((P * G, WIDTH + COLUMNS), np.int32)
    valid, mask = tokens > 0, tokens > 0
    valid[:, 1:WIDTH] = True  # a prompt of one token, which the policy did not choose either
    for place, row in enumerate(rows):
        column = WIDTH
        for chosen, answer in row:
            end = column + len(chosen) + len(answer)
            tokens[place, column:end] = chosen + answer
            valid[place, column:end], mask[place, column : column + len(chosen)] = True, True
            column = end
    completions = Completions(*(jnp.asarray(x) for x in (tokens, valid, mask, -1.0 * mask, mask[:, 0])))
    rollout = Rollout([{}] * (P * G), completions, [""] * (P * G), WIDTH, 0.0)
    return Taken(np.arange(P), rollout, Scores(np.asarray(scores, np.float32), {}, np.zeros(P * G, bool)))


def test_turns_are_compared_with_those_that_read_the_same_answer():
    rows, scores = episodes(0)
    taken = laid_out(rows, scores)
    calls = [sum(bool(answer) for _, answer in row) for row in rows]
    assert call_metrics(taken.rollout)["tools/call_frequency"] == pytest.approx(np.mean(calls))
    known = Known(turns=numbers_of(taken), anchors=anchors_of(taken), turn_returns=returns_of(taken))
    known = jax.tree.map(jnp.asarray, known)
    mask = np.asarray(taken.rollout.completions.mask).reshape(P, G, -1)
    by_group = scores.reshape(P, G)
    found = gigpo(OMEGA).advantage(Scored(jnp.asarray(by_group), jnp.zeros(mask.shape), jnp.asarray(mask), known=known))
    several = 0
    for p in range(P):
        group = rows[p * G : (p + 1) * G]
        states = {}  # what was read before a turn, to the returns of the turns
        for row, score in zip(group, by_group[p], strict=True):
            for turn in range(len(row)):
                state = tuple(row[turn - 1][1]) if turn else "the prompt"
                states.setdefault(state, []).append(DISCOUNT ** (len(row) - 1 - turn) * score)
        for g, row in enumerate(group):
            column = WIDTH
            for turn, (chosen, answer) in enumerate(row):
                state, score = tuple(row[turn - 1][1]) if turn else "the prompt", by_group[p, g]
                own = DISCOUNT ** (len(row) - 1 - turn) * score
                wanted = standing(score, by_group[p]) + OMEGA * standing(own, states[state])
                np.testing.assert_allclose(found[p, g, column : column + len(chosen)], wanted, atol=1e-4)
                several += turn > 0 and len(states[state]) > 1
                column += len(chosen) + len(answer)
    assert several > 5


def standing(own, values):
    """How many standard deviations above the mean; 0 where there is nothing to compare."""
    there = [x for x in values if not np.isnan(x)]
    if np.isnan(own) or len(there) < 2:
        return 0.0
    return (own - np.mean(there)) / (np.std(there, ddof=1) + 1e-4)


def test_without_a_call_it_is_grpo_times_one_more_than_the_weight():
    rows, scores = episodes(1)
    taken = laid_out([[(row[0][0], [])] for row in rows], scores)
    assert not numbers_of(taken).any() and (anchors_of(taken)[..., 0] == 0).all()
    assert call_metrics(taken.rollout) == {"tools/call_frequency": 0.0}
    returns = returns_of(taken)
    np.testing.assert_array_equal(returns[..., 0].ravel(), scores)
    assert np.isnan(returns[..., 1:]).all()


def test_a_run_compares_turns_of_a_model_that_calls(tmp_path, monkeypatch):
    """Tags of one character, which a model that knows nothing writes too where they are made likely."""
    tokenizer = Tokenizer.characters("".join(dict.fromkeys(f"{ALPHABET}<result></result>")))
    config = DecoderConfig(tokenizer.vocab_size, 16, 32, 1, 2, 2, 8, max_positions=64)
    write_model(tmp_path / "model", config, decoder.init_decoder(config, jax.random.key(0)), tokenizer)
    given = {"recipe": "gigpo", "step_coef": 0.5, "tool": "calculator", "model": str(tmp_path / "model")}
    given["logit_bias"] = ",".join(f"{token}=2" for token in tokenizer.encode("+8"))
    sizes = {
        "batch_size": 2,
        "group_size": 4,
        "max_new_tokens": 56,
        "max_prompt_tokens": 8,
        "steps": 1,
        "warm_start_steps": 0,
        "eval_size": 0,
    }
    settings = GrpoSettings.of(**given, **sizes, task="arithmetic,largest=9", out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="tool is calculator, which this model cannot call; take another model"):
        runs.run_grpo(settings.changed(out=str(tmp_path / "none")))
    monkeypatch.setitem(runs._TOOLS, "calculator", Tool("calculator", "+", "8", calculate))
    directory = runs.run_grpo(settings)
    assert any("<result>" in row.get("transcript", "") for row in directory.completions())
    told = directory.metrics()[-1]
    assert np.isfinite(told["policy_loss"]) and told["tools/call_frequency"] > 0


def test_without_a_tool_there_is_one_turn():
    with pytest.raises(ValueError, match="recipe gigpo compares turns, and without a tool there is one; give tool, or"):
        GrpoSettings.of(recipe="gigpo")
