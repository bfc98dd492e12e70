"""What is kept of rollouts for a person who looks at the run later, cheap and bounded in size.

``rollouts.jsonl`` holds score and length of every completion of a step, ``tokens.jsonl`` the numbers of each token of a
few completions: its log-probability when it was drawn, how the step's update changed it, and its advantage.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.commands.sampling_settings import SamplingSettings
from rlax_llm.core.mesh import ROWS, devices_along, fetch
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions
from rlax_llm.host.thinning import due
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.calling import Scores

_EVERY_STEP = 512  # up to this step each is kept in rollouts.jsonl
_PER_TENFOLD = 250  # and from there on so many of each power of ten
_COMPLETIONS = 256  # of a step in rollouts.jsonl
_TEXT = 160  # characters of a prompt that are kept
_TEXTS = 500_000  # and of all prompts
_ROWS, _TOKENS = 4, 512  # of a step in tokens.jsonl, and of a completion there

Records = dict[str, list[dict[str, Any]]]
"""Lines of files of the run's directory, by the files' names without ``.jsonl``."""


class Recorder:
    """Makes the records of steps.

    Args:
        learner: the policy.
        settings: of its sampler.
        solved: whether a first reward means that the task is solved; None where there is no right and wrong.
        group_size: completions of a prompt.
    """

    def __init__(
        self, learner: Learner, settings: SamplingSettings, solved: Callable[[float], bool] | None, group_size: int
    ):
        self.learner, self.settings, self.solved, self.group_size = learner, settings, solved, group_size
        self._told: set[str] = set()
        self._room = _TEXTS
        self._program = lru_cache(self._compiled)

    def __call__(
        self,
        step: int,
        rollout: Rollout,
        scores: Scores,
        params: Params,
        advantages: jax.Array | np.ndarray,
    ) -> Records:
        """The records of a step.

        Args:
            step: its number, from 1.
            rollout: its completions.
            scores: of them.
            params: after its update.
            advantages: those of the tokens that it learned from, ``[B, T]``.
        """
        found: Records = {}
        if step <= _EVERY_STEP or due(step, _PER_TENFOLD):
            found["rollouts"] = [self._outcomes(rollout, scores)]
        if due(step):
            after, credit = self._log_probs(params, rollout), np.asarray(advantages)
            rows = _varied(scores.total[: self.group_size])
            found["tokens"] = [self._tokens(rollout, scores, row, after[row], credit) for row in rows]
        return found

    def _outcomes(self, rollout: Rollout, scores: Scores) -> dict[str, Any]:
        """Prompts, and for each of them the scores and lengths of its completions, and how many are right."""
        lengths, size = rollout.lengths(), self.group_size
        starts = range(0, min(len(lengths), max(_COMPLETIONS, size)), size)
        # Groups without a token fill the batch up.
        groups = [slice(start, start + size) for start in starts if lengths[start : start + size].any()]
        named = [_named(rollout.rows[group.start]["prompt"]) for group in groups]
        found: dict[str, Any] = {
            "completions": len(lengths),
            "prompts": [name for name, _ in named],
            "texts": {name: text for name, text in named if self._is_new(name, text)},
            "rewards": [[_rounded(x) for x in scores.total[group]] for group in groups],
            "lengths": [lengths[group].tolist() for group in groups],
        }
        taken = rollout.policy_steps()
        if taken is not None:
            found["policy_steps"] = [int(taken[group.start]) for group in groups]
        return found if self.solved is None else found | {"solved": [self._right(scores.first[x]) for x in groups]}

    def _is_new(self, name: str, text: str) -> bool:
        """Whether the text of a prompt has not been kept yet, and still can be."""
        new = name not in self._told and len(text) <= self._room
        if new:
            self._told.add(name)
            self._room -= len(text)
        return new

    def _right(self, firsts: np.ndarray) -> int:
        """How many of a group's completions are solved."""
        assert self.solved is not None
        return sum(self.solved(float(x)) for x in np.nan_to_num(firsts, nan=-math.inf))

    def _compiled(self, prompt_width: int, copies: int) -> Any:
        del copies
        layout = (self.group_size, prompt_width)
        sampler = (self.settings.temperature, False, self.settings.bias, self.settings.penalties)
        log_probs = group_log_probs(self.learner.config, layout, *sampler)

        def token_log_probs(params: Params, frozen: Params | None, completions: Completions) -> jax.Array:
            return log_probs(join_trees(params, frozen), completions)[0]

        return jax.jit(token_log_probs)

    def _log_probs(self, params: Params, rollout: Rollout) -> np.ndarray:
        """Of the first group's tokens ``[G, T]`` after the update."""
        width = rollout.prompt_width
        copies = devices_along(*ROWS)  # one group for each device
        columns = rollout.completions.tokens.shape[1]
        wide = max(columns, width + self.settings.max_new_tokens)

        def first(x: Any) -> np.ndarray:
            group = np.asarray(x)[: self.group_size]
            room = [(0, 0), (0, wide - columns)] + [(0, 0)] * (group.ndim - 2)
            group = group if group.ndim == 1 else np.pad(group, room)
            return np.concatenate([group] * copies)

        # Of one width, so that little is compiled.
        group: Completions = jax.tree.map(first, rollout.completions)
        found = self._program(width, copies)(params, self.learner.frozen, group)
        return np.asarray(fetch(found))[: self.group_size, :columns]

    def _tokens(
        self, rollout: Rollout, scores: Scores, row: int, after: np.ndarray, advantages: np.ndarray
    ) -> dict[str, Any]:
        """A completion token by token: its text, and what is known of each that the policy chose."""
        width, drawn = rollout.prompt_width, rollout.completions
        there = np.flatnonzero(np.asarray(drawn.valid)[row, width:]) + width
        kept = there[:_TOKENS]
        chosen = np.asarray(drawn.mask)[row, kept]
        before = np.asarray(drawn.log_probs)[row, kept]

        def numbers(values: np.ndarray) -> list[float | None]:
            return [_rounded(x) if own else None for x, own in zip(values, chosen, strict=True)]

        return {
            "prompt": rollout.rows[row]["prompt"],
            "reward": _rounded(scores.total[row]),
            "pieces": _pieces(self.learner.tokenizer, np.asarray(drawn.tokens)[row, kept].tolist()),
            "left_out": len(there) - len(kept),
            "log_probs": numbers(before),
            "ratios": numbers(np.exp(np.clip(after[kept] - before, -20, 20))),
            "advantages": numbers(advantages[row, kept]),
        }


def _varied(totals: np.ndarray) -> list[int]:
    """A few of a group's rows, from the lowest score to the highest."""
    order = np.argsort(np.nan_to_num(totals, nan=-math.inf), kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(_ROWS, len(order))).round().astype(int))
    return order[places].tolist()


def _named(prompt: str | Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A short name of a prompt, the same wherever it occurs, and the beginning of its text."""
    whole = json.dumps(prompt, ensure_ascii=False, default=str)
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
    return f"{zlib.crc32(whole.encode('utf-8', 'replace')):08x}", text[:_TEXT]


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; a special token's own."""
    decoder = tokenizer.stream_decoder()
    pieces = []
    for token in ids:
        text = decoder.push(token)
        pieces.append(text or (tokenizer.decode([token], skip_special=False) if token in tokenizer.eos_ids else ""))
    if pieces:
        pieces[-1] += decoder.flush()
    return pieces


def _rounded(value: float) -> float | None:
    """With 4 digits that count; None where it is not finite."""
    return float(f"{float(value):.4g}") if math.isfinite(value) else None
