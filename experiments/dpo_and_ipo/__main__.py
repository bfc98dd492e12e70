"""DPO and IPO on preferences without noise: where the margin of the log-ratios goes, and the likelihoods with it.

A small decoder imitates right and wrong answers to sums of one digit in equal shares; that is the reference. Then every
pair prefers the right answer, always, and each method takes gradient steps on all pairs at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import COLORS, arguments, band, interval, label, new_figure, said, table, write
from rlax_llm.core.types import Completions, PairedCompletions
from rlax_llm.data.arithmetic import ALPHABET, Problems, digit_rows
from rlax_llm.data.batches import PairRows, pair_rows
from rlax_llm.data.encoding import encode_pairs
from rlax_llm.data.preferences import Pair
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.loops.preference import CHOSEN, REJECTED, preference_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.preference.implicit_rewards import mean_log_ratio
from rlax_llm.preference.pairs import Preference
from rlax_llm.recipes.preference import dpo, ipo

METHODS = ("DPO", "IPO")


class Settings(NamedTuple):
    """``imitation_steps`` make the reference; ``measured_every`` steps the margins are taken."""

    seeds: int = 16
    sums: int = 48
    hidden: int = 32
    layers: int = 2
    imitation_steps: int = 200
    steps: int = 1500
    measured_every: int = 25
    learning_rate: float = 1e-3
    beta: float = 0.1
    tau: float = 0.5


def preferences(settings: Settings) -> dict[str, Preference]:
    """The methods by name."""
    return dict(zip(METHODS, (dpo(settings.beta), ipo(settings.tau))))


def pairs(settings: Settings, tokenizer: Tokenizer) -> PairRows:
    """Sums with their right answer chosen and one beside it rejected."""
    rows = digit_rows(Problems(largest=9), held_out_size=1, seed=0)[0][: settings.sums]
    off = np.random.default_rng(0).integers(1, 4, len(rows))
    records = [
        Pair(row["prompt"], row["answer"], str(int(row["answer"]) + int(by))) for row, by in zip(rows, off, strict=True)
    ]
    return pair_rows(encode_pairs(tokenizer, records), tokenizer.pad_id)


def measurements(log_probs: jax.Array, reference: jax.Array, completions: Completions) -> dict[str, jax.Array]:
    """Margins of the log-ratios per token, and the log-likelihoods of whole answers: means over the pairs."""
    rewards = mean_log_ratio()(log_probs, reference, completions.mask)
    margins = rewards[CHOSEN] - rewards[REJECTED]
    totals = jnp.where(completions.mask, log_probs, 0.0).sum(-1)
    return {
        "margin": margins.mean(),
        "spread": margins.std(),
        "chosen": totals[CHOSEN].mean(),
        "rejected": totals[REJECTED].mean(),
    }


def training(settings: Settings, name: str, batch: PairRows, vocabulary: int) -> Callable[[jax.Array], Any]:
    """``key → measurements [1 + steps / measured_every]``."""
    heads = 4
    config = DecoderConfig(
        vocabulary, settings.hidden, 4 * settings.hidden, settings.layers, heads, heads, settings.hidden // heads
    )
    log_probs, completions = group_log_probs(config, (2, batch.prompt_width)), batch.completions
    optimizer = optax.adam(settings.learning_rate)
    imitate = supervised_loop(log_probs, optimizer)
    prefer = preference_loop(log_probs, preferences(settings)[name], optimizer)

    def run(key: jax.Array) -> dict[str, jax.Array]:
        def imitation(state: Any, _: None) -> tuple[Any, None]:
            return imitate[1](state, completions)[0], None

        start = imitate[0](decoder.init_decoder(config, key))
        model = jax.lax.scan(imitation, start, None, settings.imitation_steps)[0].params
        reference = log_probs(model, completions)[0]
        pairs = PairedCompletions(completions, ref_log_probs=reference)

        def one(state: Any, _: None) -> tuple[Any, None]:
            return prefer[1](state, pairs)[0], None

        def several(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
            found = measurements(log_probs(state.params, completions)[0], reference, completions)
            return jax.lax.scan(one, state, None, settings.measured_every)[0], found

        return jax.lax.scan(several, prefer[0](model), None, 1 + settings.steps // settings.measured_every)[1]

    return run


def measure(settings: Settings) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Curves ``[S, points]`` by method, and the numbers."""
    tokenizer = Tokenizer.characters(ALPHABET)
    batch, keys = pairs(settings, tokenizer), jax.random.split(jax.random.key(0), settings.seeds)
    curves = {}
    for name in METHODS:
        found = jax.jit(jax.vmap(training(settings, name, batch, tokenizer.vocab_size)))(keys)
        curves[name] = {quantity: np.asarray(values) for quantity, values in found.items()}
    last = curves["DPO"]["margin"].shape[1] - 1
    numbers = {
        name: {
            "margin at the middle": interval(curve["margin"][:, last // 2]),
            "margin at the end": interval(curve["margin"][:, last]),
            "growth over the second half": interval(curve["margin"][:, last] - curve["margin"][:, last // 2]),
            "spread over pairs": interval(curve["spread"][:, last]),
            "chosen, change": interval(curve["chosen"][:, last] - curve["chosen"][:, 0]),
            "rejected, change": interval(curve["rejected"][:, last] - curve["rejected"][:, 0]),
        }
        for name, curve in curves.items()
    }
    return curves, {"settings": settings._asdict(), "target": 1 / (2 * settings.tau), "methods": numbers}


def draw(settings: Settings, curves: Mapping[str, Mapping[str, np.ndarray]], numbers: Mapping[str, Any]) -> Any:
    """Margins, and log-likelihoods."""
    figure, panels = new_figure("DPO and IPO on preferences without noise", 2)
    for (name, curve), color in zip(curves.items(), COLORS):
        steps = np.arange(curve["margin"].shape[1]) * settings.measured_every
        band(panels[0], steps, curve["margin"], name, color)
        band(panels[1], steps, curve["chosen"], f"{name}, chosen", color)
        band(panels[1], steps, curve["rejected"], f"{name}, rejected", color, linestyle="--")
    panels[0].axhline(numbers["target"], color="black", linewidth=1, linestyle=":", label="1/(2τ)")
    label(panels[0], "Margin of the log-ratios", "optimizer steps", "nats a token")
    label(panels[1], "Log-likelihood of the answers", "optimizer steps", "nats")
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, target, methods = numbers["settings"], numbers["target"], numbers["methods"]
    grew, reached = methods["DPO"]["growth over the second half"], methods["IPO"]["margin at the end"]
    still = abs(reached["mean"] - target) <= 0.05 * target
    verdict = "held" if grew["low"] > 0 and still else "did not hold"
    names = list(methods["DPO"])
    rows = [[quantity, *(said(methods[name][quantity]) for name in METHODS)] for quantity in names]
    return f"""# DPO and IPO on preferences without noise

![Margins and log-likelihoods](figure.png)

**The claim {verdict}.** Where the right answer is always preferred, DPO's margin has no end: it still grew by
{said(grew)} nats a token over the second half of {s["steps"]:,} steps. IPO's went to 1/(2τ) = {target:g} and stayed
there: {said(reached)} at the end, with a spread over pairs of {said(methods["IPO"]["spread over pairs"], 3)}. DPO pays
with the likelihood of what is rejected ({said(methods["DPO"]["rejected, change"], 1)} nats an answer, IPO
{said(methods["IPO"]["rejected, change"], 1)}).

{table(["nats a token; changes in nats an answer", *METHODS], rows)}

Mean and 95 % interval over {s["seeds"]} seeds. A decoder of {s["layers"]} layers, {s["hidden"]} wide, imitates right
and wrong answers to {s["sums"]} sums ({s["imitation_steps"]} steps) and is then the reference; all pairs in each step,
Adam at {s["learning_rate"]:g}, β = {s["beta"]:g}, τ = {s["tau"]:g}. `python -m experiments.dpo_and_ipo`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    quick = Settings(2, sums=4, hidden=8, layers=1, imitation_steps=4, steps=8, measured_every=4)
    settings = quick if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
