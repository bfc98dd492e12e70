"""Groups of a step on the host: of one rollout, or of several until all of them teach (DAPO's dynamic sampling); and
replayed ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.grpo.carrying import Carried, Left, Visits
from rlax_llm.commands.rollouts import Rollout
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.host import checkpoints
from rlax_llm.host.run_directory import writing
from rlax_llm.loops.group import informative_groups
from rlax_llm.models.functional import Params
from rlax_llm.rewards.calling import Scores


class Taken(NamedTuple):
    """Scored groups.

    Attributes:
        indices: of each group's prompt among the task's rows, ``[P]``.
        rollout: of ``P · G`` rows.
        scores: of each row.
    """

    indices: np.ndarray
    rollout: Rollout
    scores: Scores

    @property
    def group_size(self) -> int:
        """Completions of a prompt, G."""
        return len(self.rollout.rows) // len(self.indices)

    def by_group(self) -> np.ndarray:
        """Total scores ``[P, G]``."""
        return self.scores.total.reshape(len(self.indices), -1)


def selected(taken: Taken, groups: np.ndarray) -> Taken:
    """Some of the groups, by their places."""
    rows = (groups[:, None] * taken.group_size + np.arange(taken.group_size)).ravel()
    rollout = taken.rollout
    picked = rollout._replace(
        rows=[rollout.rows[i] for i in rows],
        completions=jax.tree.map(lambda x: np.asarray(x)[rows], rollout.completions),
        texts=[rollout.texts[i] for i in rows],
    )
    return Taken(taken.indices[groups], picked, taken.scores.rows(rows))


def widened(rollout: Rollout, prompt_width: int, new_tokens: int) -> Completions:
    """The completions with wider prompts, on the left, and wider completions, on the right.

    Args:
        rollout: narrower, or as wide.
        prompt_width: columns for prompts.
        new_tokens: columns for completions.
    """
    before, after = prompt_width - rollout.prompt_width, new_tokens - (_columns(rollout) - rollout.prompt_width)

    def wide(x: np.ndarray, filler: Any = 0) -> np.ndarray:
        if x.ndim == 1:
            return x
        widths = [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, widths, constant_values=filler)

    completions = jax.tree.map(np.asarray, rollout.completions)
    kept = None if completions.kept is None else wide(completions.kept, EVERY)
    return jax.tree.map(wide, completions._replace(kept=None))._replace(kept=kept)


def _columns(rollout: Rollout) -> int:
    return rollout.completions.tokens.shape[1]


def together(parts: Sequence[Taken]) -> Taken:
    """Several lots of groups as one, their prompts and completions padded to common widths."""
    if len(parts) == 1:
        return parts[0]
    rollouts = [part.rollout for part in parts]
    width = max(rollout.prompt_width for rollout in rollouts)
    longest = max(_columns(rollout) - rollout.prompt_width for rollout in rollouts)
    padded = [widened(rollout, width, longest) for rollout in rollouts]
    rollout = Rollout(
        rows=[row for rollout in rollouts for row in rollout.rows],
        completions=jax.tree.map(lambda *columns: np.concatenate(columns), *padded),
        texts=[text for rollout in rollouts for text in rollout.texts],
        prompt_width=width,
        seconds=sum(rollout.seconds for rollout in rollouts),
    )
    scores = Scores.together([_wider(part.scores, longest) for part in parts])
    return Taken(np.concatenate([part.indices for part in parts]), rollout, scores)


def _wider(scores: Scores, columns: int) -> Scores:
    """With as many columns for steps."""
    if scores.steps is None:
        return scores
    behind = columns - scores.steps.shape[1]
    return scores._replace(steps=np.pad(scores.steps, ((0, 0), (0, behind)), constant_values=math.nan))


def filled_up(taken: Taken, groups: int) -> Taken:
    """As many groups as asked for: those that are missing have no chosen token and no score, and teach nothing."""
    missing = groups - len(taken.indices)
    if not missing:
        return taken
    empty = selected(taken, np.zeros(missing, int))
    nothing = np.full_like(empty.scores.total, math.nan)
    steps = None if empty.scores.steps is None else np.full_like(empty.scores.steps, math.nan)
    completions = empty.rollout.completions
    completions = completions._replace(mask=jnp.zeros(completions.mask.shape, bool))
    scores = Scores(nothing, dict.fromkeys(empty.scores.by_name, nothing), np.zeros(len(nothing), bool), steps)
    return together([taken, Taken(empty.indices, empty.rollout._replace(completions=completions, seconds=0.0), scores)])


class Ahead(NamedTuple):
    """Groups that were gathered a step ahead.

    Attributes:
        taken: the groups.
        metrics: of what was thrown away for them.
    """

    taken: Taken
    metrics: dict[str, float]


class Kept(NamedTuple):
    """What is handed on from one step to the next.

    Attributes:
        drawn: rollouts so far.
        surplus: informative groups that dynamic sampling left over, or None.
        carried: what the last rollout left to the next, or None.
        ahead: the next step's groups, where they are there already.
        remembered: groups that may be replayed, the newest first, or None.
    """

    drawn: int = 0
    surplus: Taken | None = None
    carried: Left | None = None
    ahead: Ahead | None = None
    remembered: Taken | None = None


Draw = Callable[[Params, int, Left | None], tuple[Taken, Left | None]]
"""``(params, number of the rollout, what the one before left) → groups and what they leave``, a function of these."""
Replaying = Callable[[Taken, Taken | None, int], tuple[Taken, Taken | None, dict[str, float]]]
"""``(groups, remembered ones, step) → the step's groups, what is remembered after it, metrics``."""


class Gatherer:
    """The groups of each step.

    Args:
        draw: makes a rollout.
        groups: of a step.
        most_rounds: rollouts of a step at most, until all its groups differ in score; 0 takes each rollout as it is.
        telling: ``Taken → [P, N]`` or ``[K, P, N]``, what must differ within a group.
        hands_on: whether a step hands something on to the next, without several rounds too.
        replay: puts remembered groups in the place of some; None remembers none.

    Attributes:
        kept: of the last step that ended; the caller sets it when a step has.
    """

    def __init__(
        self,
        draw: Draw,
        groups: int,
        most_rounds: int,
        telling: Callable[[Taken], np.ndarray] = Taken.by_group,
        hands_on: bool = False,
        replay: Replaying | None = None,
    ):
        self.draw, self.groups, self.most_rounds, self.telling = draw, groups, most_rounds, telling
        self.hands_on = hands_on or most_rounds > 0 or replay is not None
        self.replay = replay
        self.kept = Kept()

    def __call__(self, params: Params, index: int) -> tuple[Taken, dict[str, float], Kept]:
        """The groups of step ``index`` (from 0), metrics of what was thrown away, and what the next step takes over.

        Raises:
            ValueError: no group differed in score in any round.
        """
        ahead = self.kept.ahead
        if ahead is None:
            return self._gathered(params, index, self.kept)
        spent = ahead.taken._replace(rollout=ahead.taken.rollout._replace(seconds=0.0))
        return spent, ahead.metrics, self.kept._replace(ahead=None)

    def ahead(self, params: Params, index: int, kept: Kept) -> Kept:
        """What step ``index`` takes over where its groups are gathered already.

        Args:
            params: of an earlier policy.
            index: from 0.
            kept: what the step before would hand on.

        Raises:
            ValueError: no group differed in score in any round.
        """
        taken, metrics, after = self._gathered(params, index, kept)
        return after._replace(ahead=Ahead(taken, metrics))

    def _gathered(self, params: Params, index: int, kept: Kept) -> tuple[Taken, dict[str, float], Kept]:
        fresh, metrics, after = self._fresh(params, index, kept)
        if self.replay is None:
            return fresh, metrics, after
        taken, remembered, told = self.replay(fresh, kept.remembered, index)
        told |= {"sampling/reward": _means([fresh])[0]} | metrics  # of all rounds, where there are several
        return taken, told, after._replace(remembered=remembered)

    def _fresh(self, params: Params, index: int, kept: Kept) -> tuple[Taken, dict[str, float], Kept]:
        if not self.most_rounds:
            taken, left = self.draw(params, index, kept.carried)
            metrics = {"reward_failures": float(taken.scores.failed.sum())} | _left(left)
            return taken, metrics, kept._replace(carried=left)
        carried = [] if kept.surplus is None else [kept.surplus]
        parts, rounds, left = self._rounds(params, carried, kept)
        if not parts:
            raise ValueError(self._nothing(rounds))
        found = together(parts)
        count = len(found.indices)
        taken, surplus = _divided(found, self.groups)
        seconds = sum(one.rollout.seconds for one in rounds)
        taken = taken._replace(rollout=taken.rollout._replace(seconds=seconds))
        fresh = count - sum(len(part.indices) for part in carried)
        metrics = self._metrics(rounds, count, fresh) | _left(left)
        return taken, metrics, Kept(kept.drawn + len(rounds), surplus, left)

    def _metrics(self, rounds: Sequence[Taken], count: int, fresh: int) -> dict[str, float]:
        """What was thrown away: of ``count`` informative groups ``fresh`` are those of these rounds."""
        sampled = len(rounds) * self.groups
        return {
            "sampling/rounds": float(len(rounds)),
            "sampling/kept": fresh / sampled if sampled else math.nan,
            "sampling/filled": min(count, self.groups) / self.groups,
            "sampling/surplus": float(max(count - self.groups, 0)),
            "sampling/reward": float(np.mean(_means(rounds))) if rounds else math.nan,
            "reward_failures": float(sum(one.scores.failed.sum() for one in rounds)),
        }

    def _rounds(self, params: Params, surplus: list[Taken], kept: Kept) -> tuple[list[Taken], list[Taken], Left | None]:
        """Informative groups, those of the surplus first; whole rollouts; and what they leave."""
        parts, rounds, left = list(surplus), [], kept.carried
        while sum(len(part.indices) for part in parts) < self.groups and len(rounds) < self.most_rounds:
            taken, left = self.draw(params, kept.drawn + len(rounds), left)
            rounds.append(taken)
            differ = np.flatnonzero(np.asarray(informative_groups(jnp.asarray(self.telling(rounds[-1])))))
            parts += [selected(rounds[-1], differ)] if len(differ) else []
        return parts, rounds, left

    def _nothing(self, rounds: Sequence[Taken]) -> str:
        mean = np.mean(_means(rounds))
        return (
            f"grpo: dynamic sampling: {len(rounds)} rounds of {self.groups} groups, and in none did the scores differ "
            f"(their mean is {mean:.3g}: all solved or all failed); take prompts of another difficulty, larger "
            "groups or a higher temperature, or leave dynamic_rounds out."
        )

    def keep(self, place: Path, position: int) -> None:
        """Write what the next step needs besides the parameters, one file for each checkpoint that is there.

        Args:
            place: the folder of the checkpoints.
            position: of the checkpoint that is written next.
        """
        if not self.hands_on:
            return
        place.mkdir(parents=True, exist_ok=True)
        _write(_surplus(place, position), self.kept)
        needed = {_surplus(place, step) for step in (*checkpoints.steps(place), position)}
        for old in set(place.glob("surplus-*.npz")) - needed:
            old.unlink()

    def load(self, place: Path, position: int, rows: Sequence[Any], texts: Callable[[Completions], list[str]]) -> None:
        """Read what ``keep`` wrote.

        Args:
            place: the folder of the checkpoints.
            position: the checkpoint's.
            rows: the task's, which ``indices`` count.
            texts: what completions say.

        Raises:
            ValueError: it is not there; without it the same prompts would be drawn again.
        """
        if not self.hands_on:
            return
        path = _surplus(place, position)
        if not path.exists():
            raise ValueError(f"grpo: {path} is missing, which belongs to its checkpoint; begin a new run.")
        self.kept = _read(path, rows, texts)


def _left(left: Left | None) -> dict[str, float]:
    """Metrics of what goes on in the next step."""
    return {} if left is None else left.metrics()


def _divided(found: Taken, groups: int) -> tuple[Taken, Taken | None]:
    """The first ``groups`` groups, filled up where there are fewer, and those beyond them."""
    count = len(found.indices)
    surplus = selected(found, np.arange(groups, count)) if count > groups else None
    return filled_up(selected(found, np.arange(min(count, groups))), groups), surplus


def _means(rounds: Sequence[Taken]) -> list[float]:
    """Mean score of each rollout."""
    return [float(np.nanmean(one.scores.total)) for one in rounds]


def _surplus(place: Path, position: int) -> Path:
    return place / f"surplus-{position}.npz"


def _write(path: Path, kept: Kept) -> None:
    """It is there when whole."""
    arrays: dict[str, Any] = {"drawn": np.asarray(kept.drawn)}
    if isinstance(kept.carried, Carried):
        arrays |= {"carried": kept.carried.groups} | _arrays("carried", kept.carried.completions)
    if isinstance(kept.carried, Visits):
        arrays["visits"] = kept.carried.rates
    if kept.remembered is not None:
        arrays |= _of_groups("replay.", kept.remembered)
    if kept.surplus is not None:
        arrays |= _of_groups("", kept.surplus)
    if kept.ahead is not None:
        arrays |= _of_groups("ahead.", kept.ahead.taken)
        arrays |= {f"metric:{name}": np.asarray(value) for name, value in kept.ahead.metrics.items()}
    unfinished = path.with_suffix(".unfinished")
    with writing(path), unfinished.open("wb") as file:
        np.savez(file, **arrays)
    unfinished.rename(path)


def _of_groups(part: str, taken: Taken) -> dict[str, np.ndarray]:
    """Arrays of scored groups, their names behind that of the part."""
    indices, rollout, scores = taken
    arrays = {"indices": indices, "prompt_width": np.asarray(rollout.prompt_width)}
    arrays |= {"total": scores.total, "failed": scores.failed}
    arrays |= {f"score:{name}": values for name, values in scores.by_name.items()}
    arrays |= {} if scores.steps is None else {"steps": scores.steps}
    return {f"{part}{name}": x for name, x in (arrays | _arrays("tokens", rollout.completions)).items()}


def _arrays(part: str, completions: Completions) -> dict[str, np.ndarray]:
    return {f"{part}:{name}": np.asarray(x) for name, x in completions._asdict().items() if x is not None}


def _completions(part: str, found: Any) -> Completions:
    return Completions(**{name: found[f"{part}:{name}"] for name in Completions._fields if f"{part}:{name}" in found})


def _named(part: str, found: Any) -> dict[str, np.ndarray]:
    """The arrays of a part by what stands behind its name."""
    return {name.removeprefix(part): found[name] for name in found if name.startswith(part)}


def _read(path: Path, rows: Sequence[Any], texts: Callable[[Completions], list[str]]) -> Kept:
    with np.load(path) as found:
        carried = Carried(found["carried"], _completions("carried", found)) if "carried" in found else None
        visits = Visits(found["visits"], {}) if "visits" in found else None
        surplus, ahead, remembered = (_groups(part, found, rows, texts) for part in ("", "ahead.", "replay."))
        metrics = {name: float(value) for name, value in _named("metric:", found).items()}
        there = None if ahead is None else Ahead(ahead, metrics)
        return Kept(int(found["drawn"]), surplus, carried or visits, there, remembered)


def _groups(part: str, found: Any, rows: Sequence[Any], texts: Callable[[Completions], list[str]]) -> Taken | None:
    """The scored groups of a part, if it is there."""
    if f"{part}indices" not in found:
        return None
    completions = _completions(f"{part}tokens", found)
    steps = found.get(f"{part}steps")
    scores = Scores(found[f"{part}total"], _named(f"{part}score:", found), found[f"{part}failed"], steps)
    indices = found[f"{part}indices"]
    repeated = [rows[i] for i in indices for _ in range(len(scores.total) // len(indices))]
    width = int(found[f"{part}prompt_width"])
    return Taken(indices, Rollout(repeated, completions, texts(completions), width, 0.0), scores)
