"""Between rows of text and arrays of tokens: prompts in, completions out, and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rlax_llm.commands.stopping import without_stop
from rlax_llm.core.keys import folded, seeded
from rlax_llm.core.mesh import ROWS, devices_along, fetch
from rlax_llm.core.types import Completions
from rlax_llm.data.tasks import Row, Task
from rlax_llm.generation.ladders import is_work, one_size
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Sampler
from rlax_llm.generation.turns import Generate
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.padding import bucket
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.calling import Scores

WAITING = 4  # times the rows that are drawn at a time: what waits for a place, where completions are measured


class Rollout(NamedTuple):
    """Completions of some rows, as arrays and as text.

    Attributes:
        rows: the row of each completion, ``[B]``.
        completions: arrays ``[B, T]`` on the host.
        texts: what was completed, without special tokens, ``[B]``.
        prompt_width: the columns that hold prompts.
        seconds: wall time of the generation.
    """

    rows: list[Row]
    completions: Completions
    texts: list[str]
    prompt_width: int
    seconds: float

    def lengths(self) -> np.ndarray:
        """Tokens that the model chose in each completion ``[B]``."""
        return np.asarray(self.completions.mask).sum(-1)

    def policy_steps(self) -> np.ndarray | None:
        """Steps that the policy of each completion's first token had taken ``[B]``; None where it is the learner's."""
        versions, mask = self.completions.versions, np.asarray(self.completions.mask)
        if versions is None or versions.ndim == 1:
            return None if versions is None else np.asarray(versions)
        return np.asarray(versions)[np.arange(len(mask)), mask.argmax(-1)]

    def written(self) -> np.ndarray:
        """Tokens behind each prompt ``[B]``, a tool's answers among them: what the limit counts."""
        return np.asarray(self.completions.valid)[:, self.prompt_width :].sum(-1)


class Sampling(NamedTuple):
    """What a model needs to complete rows: its shape, its tokenizer and the limits.

    Attributes:
        config: the decoder's shape.
        tokenizer: the model's.
        max_prompt_tokens: a longer prompt is an error that names its row.
        generate: the engine's, one that calls tools (``generation.turns.with_tools``) or a server's
            (``generation.served.Served``).
        slots: completions that are drawn at a time, at most; None draws all.
        width: columns for prompts of which the longest has so many tokens.
        stops: texts that end a completion, which are no part of what was completed.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    max_prompt_tokens: int
    generate: Generate = generate
    slots: int | None = None
    width: Callable[[int], int] = bucket
    stops: tuple[str, ...] = ()

    def rollout(self, params: Params, rows: Sequence[Row], key: jax.Array, request: Request) -> Rollout:
        """Draw ``request.group_size`` completions of each row."""
        start = time.perf_counter()
        prompts = [self.tokenizer.encode_prompt(row["prompt"]) for row in rows]
        drawn, width = self.complete(params, prompts, key, request)
        seconds = time.perf_counter() - start
        repeated = [row for row in rows for _ in range(request.group_size)]
        return Rollout(repeated, drawn, self.texts(drawn), width, seconds)

    def complete(
        self, params: Params, prompts: Sequence[Sequence[int]], key: jax.Array, request: Request
    ) -> tuple[Completions, int]:
        """``request.group_size`` completions of each prompt's token ids, on the host, and the columns of prompts."""
        padded = pad_prompts(prompts, self.tokenizer.pad_id, self.config.vocab_size, self.max_prompt_tokens, self.width)
        drawn = fetch(self.generate(self.config, params, padded, key, request, slots=self.slots))
        return trimmed(drawn, padded[0].shape[1], request.max_new_tokens), padded[0].shape[1]

    def texts(self, drawn: Completions) -> list[str]:
        """What was completed, without special tokens, and without the stop text that ended it."""
        return [self._text(tokens, mask) for tokens, mask in zip(drawn.tokens, np.asarray(drawn.mask), strict=True)]

    def _text(self, tokens: np.ndarray, mask: np.ndarray) -> str:
        if not self.stops:
            return self.tokenizer.decode(tokens[mask])
        # Of a completion with tools the last turn begins behind the last answer.
        begins = np.flatnonzero(mask & ~np.roll(mask, 1))
        before = int(mask[: begins[-1]].sum()) if begins.size else 0
        return without_stop(self.tokenizer.decode, tokens[mask].tolist(), self.stops, before)

    def records(self, rollout: Rollout, scores: Scores, chosen: range) -> list[dict[str, Any]]:
        """What ``completions.jsonl`` holds of some completions.

        Several rewards are listed one by one, and those of steps; ``feedback`` is what rewards said. Where a tool
        answered, ``transcript`` is all that followed the prompt; where an older policy may have drawn it,
        ``policy_step`` is the number of steps that it had taken at its first token.
        """
        drawn, width, lengths = rollout.completions, rollout.prompt_width, rollout.lengths()
        taken = rollout.policy_steps()
        found = []
        for i in chosen:
            record = {
                "prompt": rollout.rows[i]["prompt"],
                "completion": rollout.texts[i],
                "reward": float(scores.total[i]),
                "length": int(lengths[i]),
                "truncated": bool(drawn.truncated[i]),
            }
            if taken is not None:
                record["policy_step"] = int(taken[i])
            record |= _judged(scores, i)
            tokens, read, chose = (np.asarray(x)[i, width:] for x in (drawn.tokens, drawn.valid, drawn.mask))
            if chose.any() and (read & ~chose).any():
                record["transcript"] = self.tokenizer.decode(tokens[read])
            found.append(record)
        return found

    def request(self, sampler: Sampler, max_new_tokens: int, group_size: int = 1, min_new_tokens: int = 0) -> Request:
        """A request with the tokenizer's stop tokens."""
        return Request(sampler, self.tokenizer.eos_ids, max_new_tokens, group_size, min_new_tokens)


def _judged(scores: Scores, i: int) -> dict[str, Any]:
    """What a record holds of a completion's scores beside their sum."""
    record: dict[str, Any] = {}
    if len(scores.by_name) > 1:
        record["rewards"] = {name: float(values[i]) for name, values in scores.by_name.items()}
    if scores.steps is not None:
        record["step_rewards"] = scores.steps[i][~np.isnan(scores.steps[i])].tolist()
    if scores.feedback is not None and scores.feedback[i]:
        record["feedback"] = scores.feedback[i]
    return record


def trimmed(completions: Completions, prompt_width: int, limit: int) -> Completions:
    """Without the columns that no completion reached: a quarter of the limit, half of it or all, to compile for few."""
    longest = int(np.asarray(completions.valid)[:, prompt_width:].sum(-1).max())
    width = prompt_width + min(size for size in learned_widths(limit) if size >= longest)
    return jax.tree.map(lambda x: x[:, :width] if x.ndim > 1 else x, completions)


def learned_widths(limit: int) -> list[int]:
    """Columns that completions of at most ``limit`` tokens are learned from in.

    >>> learned_widths(1024), learned_widths(40)
    ([256, 512, 1024], [16, 20, 40])
    """
    return sorted({min(limit, max(-(-limit // part), 16)) for part in (4, 2, 1)})


class Graded(NamedTuple):
    """A batch of completions of held-out rows, and their scores.

    Attributes:
        rollout: the completions; those from ``known`` on fill the batch up.
        scores: of each.
        known: completions that count.
    """

    rollout: Rollout
    scores: Scores
    known: int


class Grades(NamedTuple):
    """Completions of all held-out rows, and their scores.

    Attributes:
        sampling: drew them.
        solved_at: whether a first reward means that the task is solved.
        batches: of the rows in order.
    """

    sampling: Sampling
    solved_at: Callable[[float], bool]
    batches: list[Graded]

    def totals(self) -> np.ndarray:
        """Of each completion, ``[B]``, NaN where it has no score."""
        found = [batch.scores.total[: batch.known] for batch in self.batches]
        return np.concatenate(found) if found else np.zeros(0)

    def solved(self) -> np.ndarray:
        """Of each completion, ``[B]``, whether the task accepts it, by its first reward."""
        found = [batch.scores.first[: batch.known] for batch in self.batches]
        firsts = np.nan_to_num(np.concatenate(found), nan=-np.inf) if found else np.zeros(0)
        return np.array([self.solved_at(float(score)) for score in firsts], bool)

    def records(self) -> list[dict[str, Any]]:
        """What ``completions.jsonl`` holds of each."""
        found = []
        for batch in self.batches:
            records = self.sampling.records(batch.rollout, batch.scores, range(batch.known))
            found += [record | {"held_out": True} for record in records]
        return found

    def metrics(self, right_and_wrong: bool = True) -> dict[str, float]:
        """Mean reward of those that have one, and the share that is solved where there is right and wrong.

        Nothing of no rows.
        """
        totals = self.totals()
        if not totals.size:
            return {}
        known = totals[~np.isnan(totals)]
        found = {"held_out_reward": float(known.mean()) if known.size else float("nan")}
        if right_and_wrong:
            found["held_out_accuracy"] = float(self.solved().mean())
        return found


def grade(
    sampling: Sampling,
    params: Params,
    task: Task,
    judge: Callable[[Rollout, int], Scores],
    request: Request,
    batch: int,
    seed: int = 0,
) -> Grades:
    """Complete every held-out row, at most ``batch`` rows at a time, and score; nothing where none is held out.

    The last batch is filled up with the first row, so that no further shape is compiled and the devices divide it; that
    does not count. Where generations are much work and rows more than a batch, they enter as others end. Each draws in
    one size, so that measuring compiles little.
    """
    held_out = list(task.held_out)
    sampling, batch = _measuring(sampling, request, min(batch, len(held_out)), len(held_out))
    key = seeded(seed)
    batches = []
    for start in range(0, len(held_out), batch or 1):
        taken = held_out[start : start + batch]
        filled = taken + [held_out[0]] * (batch - len(taken))
        rollout = sampling.rollout(params, filled, folded(key, start), request)
        scores = judge(rollout, request.group_size)
        batches.append(Graded(rollout, scores, len(taken) * request.group_size))
    return Grades(sampling, task.solved, batches)


def _measuring(sampling: Sampling, request: Request, batch: int, count: int) -> tuple[Sampling, int]:
    """What draws completions of ``count`` rows, ``batch`` rows at a time at most, and the rows that it is given."""
    whole = batch + -batch % devices_along(*ROWS)
    if sampling.generate is not generate or not batch:
        return sampling, whole
    one = sampling._replace(generate=partial(generate, sizes=one_size))
    given = min(count, WAITING * batch)
    given += -given % devices_along(*ROWS)
    rows = given * request.group_size
    together = count <= batch and rows <= (sampling.slots or rows)  # nothing would wait
    if together or not is_work(sampling.config, rows, request.max_new_tokens):
        return one._replace(slots=None), _all_at_once(batch, count, sampling.slots, request.group_size)
    slots = min(batch * request.group_size, -(-rows // WAITING))
    return one._replace(slots=min(slots, sampling.slots or slots)), given


def _all_at_once(batch: int, count: int, slots: int | None, group_size: int) -> int:
    """Rows of as many batches as it takes, each of which is drawn at once by one program, on no more than the slots."""
    most = batch if slots is None else max(min(batch, slots // group_size), 1)
    # Batches of about one size: little fills the last one up.
    each = most if slots is None else -(-count // -(-count // most))
    return each + -each % devices_along(*ROWS)
