"""What a person sees of completions: the records of ``completions.jsonl`` and the table on the screen."""

from __future__ import annotations

import io
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlax_llm.commands.judging import Judge
from rlax_llm.commands.rollouts import Rollout, Sampling
from rlax_llm.core.types import Completions
from rlax_llm.generation.sampling import Categorical
from rlax_llm.host.completions_table import completions_table
from rlax_llm.host.progress import Progress
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.calling import Reward, Scores

TOKENS = Tokenizer.characters("12+=[]{}")
SAMPLING = Sampling(DecoderConfig(TOKENS.vocab_size, 8, 8, 1, 1, 1, 8), TOKENS, 8)
WIDTH = 4


def rollout(*rows: tuple[str, str, str]) -> Rollout:
    """Rows of a prompt, a completion, and for each of its characters whether the model chose it (x) or a tool (.)."""
    columns = WIDTH + max(len(said) for _, said, _ in rows)
    tokens, valid, mask = (np.zeros((len(rows), columns), kind) for kind in (int, bool, bool))
    for row, (prompt, said, chose) in enumerate(rows):
        ids = TOKENS.encode(prompt + said)
        start = WIDTH - len(prompt)
        tokens[row, start : start + len(ids)], valid[row, start : start + len(ids)] = ids, True
        mask[row, WIDTH : WIDTH + len(said)] = [letter == "x" for letter in chose]
    nothing = np.zeros(tokens.shape)
    completions = Completions(tokens, valid, mask, nothing, np.zeros(len(rows), bool))  # pyright: ignore[reportArgumentType]
    return Rollout([{"prompt": prompt} for prompt, _, _ in rows], completions, SAMPLING.texts(completions), WIDTH, 1.0)


def test_the_transcript_holds_what_a_tool_answered():
    drawn = rollout(("1+1=", "[1+1]{2}2", "xxxxx...x"), ("1=", "1", "x"))
    scores = Scores(np.array([1.0, 0.0]), {"right": np.array([1.0, 0.0])}, np.zeros(2, bool))
    with_call, without = SAMPLING.records(drawn, scores, range(2))
    assert (with_call["completion"], with_call["transcript"]) == ("[1+1]2", "[1+1]{2}2")
    assert with_call["length"] == 6
    assert "transcript" not in without and "rewards" not in without


def test_limits_count_what_a_tool_wrote():
    drawn = rollout(("1+1=", "[1+1]{2}2", "xxxxx...x"), ("1=", "1", "x"))
    judge = Judge([Reward("any", lambda prompts, completions: [0.0] * len(prompts))], None, ("length", lambda x: -x))
    written = judge(drawn, 1).by_name["length"]
    assert written[0] < -drawn.lengths()[0] and written[1] == -drawn.lengths()[1]


def test_a_reward_reads_the_beginning_that_the_prompt_gave():
    begun = [{"role": "user", "content": "1="}, {"role": "assistant", "content": "[1"}]
    drawn = rollout(("1=", "1]", "xx"), ("1=", "1", "x"))
    drawn = drawn._replace(rows=[{"prompt": begun}, drawn.rows[1]])
    seen = []
    Judge([Reward("any", lambda prompts, completions: seen.extend(completions) or [0.0] * 2)])(drawn, 1)
    assert seen == [[{"role": "assistant", "content": "[11]"}], "1"]
    assert drawn.texts == ["1]", "1"]


def test_several_rewards_are_told_one_by_one():
    scores = Scores(np.array([0.75]), {"right": np.array([1.0]), "short": np.array([-0.5])}, np.zeros(1, bool))
    (record,) = SAMPLING.records(rollout(("1=", "1", "x")), scores, range(1))
    assert record["reward"] == 0.75 and record["rewards"] == {"right": 1.0, "short": -0.5}


def shown(rows: list[dict[str, object]], width: int = 60) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(completions_table(rows, "step 3"))
    return stream.getvalue().splitlines()


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=80)), min_size=1, max_size=6))
def test_a_completion_is_a_line_whatever_it_holds(texts):
    # Characters that a terminal gives no width, or takes as a line's end, are the console's affair.
    clean = [["".join(x for x in text if x.isprintable() or x == "\n") for text in pair] for pair in texts]
    rows = [{"prompt": p, "completion": c, "reward": 0.5, "length": 3, "truncated": False} for p, c in clean]
    assert len([line for line in shown(rows) if "0.500" in line]) == min(len(rows), 4)


def test_brackets_are_no_markup_and_a_conversation_shows_its_last_message():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one[red]two"}]
    (line,) = [
        x
        for x in shown([{"prompt": prompt, "completion": "[/b]a\nb", "reward": 1.0, "length": 4, "truncated": True}])
        if "1.000" in x
    ]
    assert "one[red]two" in line and "[/b]a⏎b" in line and "4+" in line and "Be brief" not in line


@pytest.mark.parametrize("steps", [1, 30])
def test_a_table_comes_behind_the_line_of_its_step(steps):
    stream = io.StringIO()
    ticks = iter(range(1000))
    with Progress(steps, "grpo", stream=stream, clock=lambda: next(ticks) / 100) as progress:
        for step in range(1, steps + 1):
            progress.update(step, {"reward": 0.5})
        progress.show(
            completions_table(
                [{"prompt": "1=", "completion": "1", "reward": 1.0, "length": 1, "truncated": False}], "x"
            )
        )
    lines = stream.getvalue().splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith(f"grpo {steps}/{steps}"))
    assert any("1.000" in line for line in lines[last + 1 :])
    assert sum(line.startswith(f"grpo {steps}/{steps}") for line in lines) == 1


def test_completions_drawn_in_slots_are_those_drawn_at_once():
    """Tokens alike; log-probabilities to the rounding of products of other sizes."""
    params = init_decoder(SAMPLING.config, jax.random.key(0))
    request = SAMPLING.request(Categorical(), 4, group_size=2)
    prompts = [TOKENS.encode(text) for text in ("1+1=", "2=", "1+2=")]
    whole, _ = SAMPLING.complete(params, prompts, jax.random.key(1), request)
    for slots in (2, 4):
        parts, _ = SAMPLING._replace(slots=slots).complete(params, prompts, jax.random.key(1), request)
        np.testing.assert_allclose(parts.log_probs, whole.log_probs, rtol=0, atol=1e-6)
        assert jax.tree.all(jax.tree.map(np.array_equal, parts._replace(log_probs=whole.log_probs), whole))


def test_rows_draw_by_keys_of_their_own():
    params = init_decoder(SAMPLING.config, jax.random.key(0))
    request = SAMPLING.request(Categorical(), 4, group_size=8)
    drawn, width = SAMPLING._replace(slots=8).complete(params, [[3], [3]], jax.random.key(1), request)
    first, second = np.split(np.asarray(drawn.tokens)[:, width:], 2)
    assert (first != second).any()


def test_what_has_no_score_has_a_dash():
    row = {"prompt": "1+1=", "completion": "2", "reward": math.nan, "length": 1, "truncated": False}
    (line,) = [line for line in shown([row]) if "1+1=" in line]
    assert line.split() == ["1+1=", "2", "–", "1"]
