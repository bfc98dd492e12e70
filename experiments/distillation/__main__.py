"""SFT on a teacher's answers, on-policy distillation and GRPO from one start, at equal tokens and at equal seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import (
    COLORS,
    arguments,
    band,
    each,
    interval,
    label,
    new_figure,
    percent,
    plain,
    said,
    table,
    verdict_of,
    write,
)
from experiments.distillation.arms import GRPO, OPD, SFT, WHOLE, Arm, Pair, window
from experiments.distillation.sums import Model, accuracy, additions, taught
from rlax_llm.core.types import Params
from rlax_llm.loops.language import Prompts
from rlax_llm.models import decoder

NEAR, FRACTION = 0.05, 0.5
"""Less accuracy than this is having reached; at most this share of the cost is a fraction of it."""
BUDGETS = (0.25, 0.5, 1.0)
TOKENS, SECONDS = "tokens", "seconds"


class Settings(NamedTuple):
    """Each step learns from ``completions`` answers; ``points`` of the steps are measured.

    Attributes:
        rates: that are tried for each arm, on ``tuning_seeds`` whose numbers are not reported.
        draws: of ``chain_sum``, for the questions to train on.
        held_out: the same of other questions.
    """

    seeds: int = 16
    tuning_seeds: int = 2
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 2e-3)
    steps: int = 160
    points: int = 8
    completions: int = 64
    arms: tuple[Arm, ...] = (Arm(SFT, 1), Arm(OPD, 4), Arm(WHOLE, 4), Arm(GRPO, 8))
    student: Model = Model(64, 2, 250, False)
    teacher: Model = Model(96, 2, 700, True)
    draws: int = 40_000
    held_out: int = 1024


class Curve(NamedTuple):
    """Of one run, the start included: ``accuracy`` and ``tokens`` so far, ``[points + 1]``; ``seconds [points]``."""

    accuracy: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray


class Bench(NamedTuple):
    """What all runs share: compiled programs, questions, the teacher."""

    settings: Settings
    windows: Mapping[str, tuple[Callable[[Params], Any], Callable[..., Any]]]
    accuracy: Callable[[Params], float]
    train: Prompts
    teacher: Params


def race(bench: Bench, rates: Mapping[str, float], start: Params, key: jax.Array) -> dict[str, Curve]:
    """Every arm from one start, a few steps of one after a few of another, so that all find the machine alike."""
    settings = bench.settings
    names, first = list(rates), bench.accuracy(start)
    states = {name: bench.windows[name][0](start) for name in names}
    found = {name: ([first], [0.0], []) for name in names}
    for point, of_point in enumerate(jax.random.split(key, settings.points)):
        keys = jax.random.split(of_point, settings.steps // settings.points)
        turn = point % len(names)
        for name in names[turn:] + names[:turn]:
            before = time.perf_counter()
            given = states[name], bench.train, bench.teacher, jnp.float32(rates[name]), keys
            states[name], tokens = jax.block_until_ready(bench.windows[name][1](*given))
            right, total, seconds = found[name]
            seconds.append(time.perf_counter() - before)
            total.append(total[-1] + float(tokens))
            right.append(bench.accuracy(states[name].params))
    return {name: Curve(*(np.array(x) for x in lists)) for name, lists in found.items()}


def ending(curve: np.ndarray) -> np.ndarray:
    """The mean of the last quarter of the points."""
    return curve[..., -max(curve.shape[-1] // 4, 1) :].mean(-1)


def tuned(bench: Bench, starts: Sequence[Params], key: jax.Array) -> dict[str, dict[str, float]]:
    """How accurate each arm ends at each rate, the mean over starts that are of no other use."""
    found: dict[str, dict[str, float]] = {arm.name: {} for arm in bench.settings.arms}
    keys = jax.random.split(key, len(starts))
    for rate in bench.settings.rates:
        curves = [race(bench, dict.fromkeys(found, rate), start, one) for start, one in zip(starts, keys)]
        for name, by in found.items():
            by[f"{rate:g}"] = round(float(np.mean([ending(curve[name].accuracy) for curve in curves])), 4)
    return found


def prepared(settings: Settings, key: jax.Array) -> tuple[Bench, float]:
    """The shared part, and how often the teacher is right."""
    train, held_out = additions(settings.draws, settings.held_out)
    pair = Pair(settings.student.shape, settings.teacher.shape)
    teacher = taught(settings.teacher)(train, key)
    student = jax.jit(lambda params: accuracy(pair.student, params, held_out))
    windows = {arm.name: window(pair, arm, settings.completions) for arm in settings.arms}
    bench = Bench(settings, windows, lambda params: float(student(params)), train, teacher)
    untaught = decoder.init_decoder(pair.student, key)
    for arm in settings.arms:
        compiled(bench, arm.name, untaught)
    return bench, float(accuracy(pair.teacher, teacher, held_out))


def compiled(bench: Bench, name: str, start: Params) -> None:
    """Run a window once, so that no clock sees its compilation."""
    init, steps = bench.windows[name]
    keys = jax.random.split(jax.random.key(0), bench.settings.steps // bench.settings.points)
    jax.block_until_ready(steps(init(start), bench.train, bench.teacher, jnp.float32(0.0), keys))


def measure(settings: Settings) -> tuple[dict[str, Curve], dict[str, Any]]:
    """Curves ``[seeds, points]`` by arm, and the numbers."""
    of_teacher, of_starts, of_tuning, of_races = jax.random.split(jax.random.key(0), 4)
    bench, best = prepared(settings, of_teacher)
    start = taught(settings.student)
    starts = [start(bench.train, key) for key in jax.random.split(of_starts, settings.seeds + settings.tuning_seeds)]
    sweep = tuned(bench, starts[settings.seeds :], of_tuning)
    rates = {name: float(max(by, key=lambda rate: by[rate])) for name, by in sweep.items()}
    keys = jax.random.split(of_races, settings.seeds)
    races = [race(bench, rates, one, key) for one, key in zip(starts, keys)]
    curves = {name: Curve(*(np.stack(x) for x in zip(*(found[name] for found in races)))) for name in rates}
    return curves, {"settings": plain(settings), "teacher": round(best, 4), "sweep": sweep, "rates": rates} | (
        compared(curves, best, settings.steps)
    )


def costs(curves: Mapping[str, Curve], steps: int) -> dict[str, dict[str, np.ndarray]]:
    """What an arm has cost up to each point, ``[seeds, points + 1]``: tokens, and seconds in steps of GRPO.

    An arm's step lasts what it does in its median window: whatever else the machine did at a time is left out.
    """
    median = {name: np.median(curve.seconds) for name, curve in curves.items()}
    taken = np.linspace(0, steps, next(iter(curves.values())).tokens.shape[1])
    return {
        TOKENS: {name: curve.tokens for name, curve in curves.items()},
        SECONDS: {
            name: np.broadcast_to(median[name] / median[GRPO] * taken, curve.tokens.shape)
            for name, curve in curves.items()
        },
    }


def at(cost: np.ndarray, right: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Accuracy of each seed when it had cost so much, by straight lines between points."""
    return np.array([np.interp(much, x, y) for much, x, y in zip(budget, cost, right)])


def first_at(cost: np.ndarray, right: np.ndarray, level: np.ndarray) -> np.ndarray:
    """What each seed had cost when it first was so accurate, by straight lines; NaN where it never was."""

    def one(x: np.ndarray, y: np.ndarray, wanted: float) -> float:
        above = np.flatnonzero(y >= wanted)
        if not len(above):
            return np.nan
        end = above[0]
        return x[0] if end == 0 else np.interp(wanted, y[end - 1 : end + 1], x[end - 1 : end + 1])

    return np.array([one(*given) for given in zip(cost, right, level)])


def compared(curves: Mapping[str, Curve], best: float, steps: int) -> dict[str, Any]:
    """Intervals over seeds: accuracy at budgets, its differences by pairs, and what accuracies cost."""
    right = {name: curve.accuracy for name, curve in curves.items()}
    spent = costs(curves, steps)
    seconds = {name: np.median(curve.seconds, 1) for name, curve in curves.items()}
    found: dict[str, Any] = {
        "start": interval(right[GRPO][:, 0]),
        "end": {name: interval(ending(y)) for name, y in right.items()},
        "to_teacher": {name: interval(best - ending(y)) for name, y in right.items()},
        "tokens_per_step": {name: interval(curve.tokens[:, -1]) for name, curve in curves.items()},
        "seconds_per_step": {name: interval(x / seconds[GRPO]) for name, x in seconds.items()},
    }
    half = (right[GRPO][:, 0] + best) / 2
    for kind, cost in spent.items():
        most = np.min([x[:, -1] for x in cost.values()], 0)
        by_budget = {str(share): {n: at(x, right[n], share * most) for n, x in cost.items()} for share in BUDGETS}
        to_half = {name: first_at(x, right[name], half) for name, x in cost.items()}
        level = ending(right[GRPO])
        to_grpo = {name: first_at(x, right[name], level) for name, x in cost.items()}
        found[kind] = {
            "at": {share: {name: interval(y) for name, y in by.items()} for share, by in by_budget.items()},
            "over_grpo": {
                share: {name: interval(y - by[GRPO]) for name, y in by.items() if name != GRPO}
                for share, by in by_budget.items()
            },
            "over_sft": {
                share: {name: interval(y - by[SFT]) for name, y in by.items() if name in (OPD, WHOLE)}
                for share, by in by_budget.items()
            },
            "to_half": {name: interval(x) for name, x in to_half.items()},
            "of_grpo": {name: interval(x / to_grpo[GRPO]) for name, x in to_grpo.items() if name != GRPO},
        }
    return found


def draw(curves: Mapping[str, Curve], best: float, steps: int) -> Any:
    """Accuracy over tokens, and over seconds."""
    figure, panels = new_figure(
        "Additions, from a teacher's answers, from its opinion of one's own, and from a reward", 2
    )
    units = {TOKENS: (1e-3, "thousands of tokens, drawn and learned from"), SECONDS: (1.0, "seconds, in steps of GRPO")}
    for panel, (kind, cost) in zip(panels, costs(curves, steps).items()):
        scale, unit = units[kind]
        for (name, curve), color in zip(curves.items(), COLORS):
            band(panel, scale * cost[name].mean(0), curve.accuracy, name, color)
        panel.axhline(best, color=COLORS[6], linestyle="--", linewidth=1.2, label="teacher")
        panel.set_ylim(0, 1)
        label(panel, f"At equal {kind}", unit, "accuracy", legend=panel is panels[0])
    return figure


def verdicts(numbers: Mapping[str, Any], name: str) -> dict[str, bool]:
    """The parts of the claim for one way of on-policy distillation."""

    def over(kind: str) -> bool:
        return numbers[kind]["over_grpo"]["1.0"][name]["low"] > 0

    def fraction(kind: str) -> bool:
        high = numbers[kind]["of_grpo"][name]["high"]
        return high is not None and high <= FRACTION and reached(numbers, kind, "of_grpo", name)

    return {
        "above GRPO at equal tokens": over(TOKENS),
        "at equal seconds": over(SECONDS),
        f"where GRPO ends after at most {FRACTION:g} of its tokens": fraction(TOKENS),
        "and of its seconds": fraction(SECONDS),
        f"ends at most {NEAR:g} below the teacher": numbers["to_teacher"][name]["high"] < NEAR,
    }


def reached(numbers: Mapping[str, Any], kind: str, what: str, name: str) -> bool:
    """Whether every seed did."""
    return numbers[kind][what][name]["samples"] == numbers["settings"]["seeds"]


def with_count(numbers: Mapping[str, Any], measured: Mapping[str, Any], digits: int) -> str:
    """An interval over the seeds that got there, and how many did."""
    seeds = numbers["settings"]["seeds"]
    count = f"{measured['samples']} of {seeds} seeds"
    if measured["samples"] < 2:
        return count
    return said(measured, digits) + ("" if measured["samples"] == seeds else f", {count}")


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, names = numbers["settings"], list(numbers["rates"])
    rates, sweep = numbers["rates"], numbers["sweep"]
    parts = {name: verdicts(numbers, name) for name in (OPD, WHOLE)}
    groups = {arm["name"]: arm["group_size"] for arm in s["arms"]}

    def budgets(what: str, kind: str) -> list[list[str]]:
        by_share = numbers[kind][what]
        some = by_share["1.0"]
        return [[name, *(percent(by_share[str(share)][name]) for share in BUDGETS)] for name in some]

    head = ["", *(f"{share:.0%} of the budget" for share in BUDGETS)]
    ends = [[n, percent(numbers["end"][n]), percent(numbers["to_teacher"][n])] for n in names]
    prices = [
        [n, said(numbers["tokens_per_step"][n], 0, 1 / s["steps"]), said(numbers["seconds_per_step"][n])] for n in names
    ]
    half = [[n, *(with_count(numbers, numbers[kind]["to_half"][n], 0) for kind in (TOKENS, SECONDS))] for n in names]
    others = [name for name in names if name != GRPO]
    ratio = [[n, *(with_count(numbers, numbers[kind]["of_grpo"][n], 2) for kind in (TOKENS, SECONDS))] for n in others]
    edges = [n for n in names if rates[n] in (s["rates"][0], s["rates"][-1])]
    at_edge = f"\n\nAt the edge of what was tried is the rate of {' and of '.join(edges)}." if edges else ""
    tried = [[n, *(f"{100 * sweep[n][f'{rate:g}']:.1f} %" for rate in s["rates"]), f"{rates[n]:g}"] for n in names]
    return f"""# On-policy distillation, SFT on a teacher's answers, and GRPO

![Accuracy over tokens and over seconds for four ways from one start, and the teacher's](figure.png)

The claim is that on-policy distillation reaches the teacher at a fraction of the cost of reinforcement learning.

**For `opd`, the log-ratio of the tokens that were drawn, it {verdict_of(parts[OPD].values())}**: {each(parts[OPD])}.

**For `gkd(beta=1, on_policy=1)`, the reverse KL over the vocabulary on own completions, it
{verdict_of(parts[WHOLE].values())}**: {each(parts[WHOLE])}.

The task is `chain_sum` of reasoning-gym, the additions of two numbers of two digits, in characters; of
{s["draws"]:,} draws those are learned from, and accuracy is measured on others. It is the probability of the right
answer, exact: nothing is drawn for it. The start is a decoder of width {s["student"]["width"]} after
{s["student"]["steps"]} supervised steps, right in {percent(numbers["start"])}; the teacher is one of width
{s["teacher"]["width"]} after {s["teacher"]["steps"]}, right in {100 * numbers["teacher"]:.1f} %. Every arm takes
{s["steps"]} steps of {s["completions"]} completions: the teacher's for SFT, drawn anew in each step and counted, else
the student's own. Nobody is paid for the teacher's own training.

Accuracy at the end (the mean of the last quarter of the points), and what is missing to the teacher's:

{table(["", "end", "below the teacher"], ends)}

At equal tokens; the budget is all that was drawn:

{table(head, budgets("at", TOKENS))}

At equal seconds; the budget is what the fastest arm took for all its steps:

{table(head, budgets("at", SECONDS))}

Less GRPO's, by pairs of seeds, at equal tokens:

{table(head, budgets("over_grpo", TOKENS))}

and at equal seconds:

{table(head, budgets("over_grpo", SECONDS))}

Less that of SFT on the teacher's answers, at equal tokens:

{table(head, budgets("over_sft", TOKENS))}

and at equal seconds:

{table(head, budgets("over_sft", SECONDS))}

What it costs to come halfway from the start to the teacher, in tokens and in seconds (of which one is a step of GRPO):

{table(["", "tokens", "seconds, steps of GRPO"], half)}

What it costs to first be as accurate as GRPO is at its end, as a share of what that costs GRPO:

{table(["", "of the tokens", "of the seconds"], ratio)}

A step of each: tokens drawn, and seconds relative to GRPO's. The arms take turns every
{s["steps"] // s["points"]} steps in one process, and the median counts, so that other programs slow all alike; seconds
are given as ratios alone.

{table(["", "tokens per step", "seconds per step"], prices)}

Adam's learning rate of each arm is the best of {len(s["rates"])}, the same for all, by accuracy at the end on
{s["tuning_seeds"]} starts that are in no number above. Groups are of {groups[SFT]} for SFT, {groups[OPD]} for
distillation, {groups[GRPO]} for GRPO; prompts are computed once for each.

{table(["", *(f"{rate:g}" for rate in s["rates"]), "taken"], tried)}{at_edge}

Mean and 95 % interval over {s["seeds"]} seeds, each with a start of its own, the same for all arms; one teacher.
`python -m experiments.distillation` (with the extra `tasks`).
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    student, teacher = Model(16, 1, 2, False), Model(16, 1, 2, True)
    arms = tuple(arm._replace(group_size=1 if arm.name == SFT else 2) for arm in Settings().arms)
    few = Settings(2, 1, (1e-4,), 2, 2, 4, arms, student, teacher, draws=40, held_out=16)
    settings = few if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(curves, numbers["teacher"], settings.steps), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
