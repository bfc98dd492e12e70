"""SmolLM2-135M-Instruct learns to write positive sentences: a reward model, then PPO from it, DPO, IPO and KTO.

All learn from the same completions of the model itself, judged by the VADER lexicon; each method at several β. What
they reach on topics that nothing was trained on is drawn over its KL to the reference. Every training run is a command
of ``rlax-llm``, kept under ``runs/positive_sentences``: a finished one is read again, an interrupted one goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import COLOURS, arguments, interval, label, new_figure, plain, said, table, write
from experiments.positive_sentences.tasks import (
    HELD_OUT,
    TOPICS,
    label_rows,
    positive,
    preference_rows,
    prompt,
    write_rows,
)
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.train.rollouts import Rollout, Sampling

METHODS = ("ppo", "dpo", "ipo", "kto")
REFERENCE = "smollm2"


class Settings(NamedTuple):
    """Counts, and the β of each method; a run's other settings stand in ``commands``.

    Attributes:
        samples: completions of each training topic.
        pairs: of each training topic at most.
        steps: optimizer steps of every run.
        rank: of the adapters that are trained.
        new_tokens: longest completion.
        measured: completions of each held-out topic.
        ppo: β of the KL in the reward, scores of the reward model per nat.
        dpo: β.
        ipo: τ, of log-ratios per token.
        kto: β.
        topics: trained on.
        held_out: measured on.
    """

    samples: int = 8
    pairs: int = 6
    steps: int = 24
    rank: int = 8
    new_tokens: int = 24
    measured: int = 8
    ppo: tuple[float, ...] = (0.02, 0.1, 0.4)
    dpo: tuple[float, ...] = (0.03, 0.1, 0.3)
    ipo: tuple[float, ...] = (0.1, 0.3, 1.0)
    kto: tuple[float, ...] = (0.03, 0.1, 0.3)
    topics: int = len(TOPICS)
    held_out: int = len(HELD_OUT)


def completed(model: LanguageModel, topics: Sequence[str], each: int, settings: Settings, seed: int) -> Rollout:
    """The model's completions: a rollout of ``each`` a topic."""
    sampling = Sampling(model.config, model.tokenizer, 64)
    request = sampling.request(Categorical(), settings.new_tokens, each)
    return sampling.rollout(model.params, [{"prompt": prompt(x)} for x in topics], jax.random.key(seed), request)


def finished(rollout: Rollout) -> list[list[str]]:
    """The texts of each prompt that ended by themselves."""
    each = len(rollout.texts) // len(set(map(str, rollout.rows)))
    kept = [None if cut else text for text, cut in zip(rollout.texts, rollout.completions.truncated, strict=True)]
    return [[text for text in kept[start : start + each] if text] for start in range(0, len(kept), each)]


def write_data(settings: Settings, place: Path) -> None:
    """The reference's finished completions in ``texts.json``; from them ``pairs``, ``labels`` and ``prompts.jsonl``."""
    place.mkdir(parents=True, exist_ok=True)
    topics, kept = TOPICS[: settings.topics], place / "texts.json"
    if not kept.exists():
        model, texts = load_model(REFERENCE), []
        for start in range(0, len(topics), 8):
            texts += finished(completed(model, topics[start : start + 8], settings.samples, settings, 1 + start))
            print(f"completions of {len(texts)} of {len(topics)} topics")
        kept.write_text(json.dumps(texts), encoding="utf-8")
    texts = json.loads(kept.read_text(encoding="utf-8"))
    write_rows(place / "pairs.jsonl", preference_rows(texts, topics, settings.pairs))
    write_rows(place / "labels.jsonl", label_rows(texts, topics))
    write_rows(place / "prompts.jsonl", [{"prompt": prompt(topic)} for topic in topics])


def commands(settings: Settings, place: Path) -> dict[str, list[str]]:
    """The training runs by name: the reward model, and each method at each β."""
    shared = ["--model", REFERENCE, "--lora-rank", str(settings.rank), "--steps", str(settings.steps)]
    shared += ["--learning-rate", "5e-4", "--max-prompt-tokens", "64", "--max-new-tokens", str(settings.new_tokens + 8)]
    shared += ["--eval-every", "0", "--save-every", "0"]
    pairs, labels = str(place / "pairs.jsonl"), str(place / "labels.jsonl")
    by_pairs = ["--data", pairs, "--batch-size", "16", "--eval-size", "8"]
    judge = ["reward", *by_pairs, *shared]
    runs = {"reward": judge}
    for beta in settings.ppo:
        scored = ["--data", str(place / "prompts.jsonl"), "--reward-model", str(place / "reward" / "model")]
        sizes = ["--batch-size", "32", "--epochs", "2", "--kl-coef", f"{beta:g}", "--eval-size", "8"]
        runs[f"ppo-{beta:g}"] = ["ppo", *scored, *sizes, *shared]
    for recipe, betas in (("dpo", settings.dpo), ("ipo", settings.ipo)):
        for beta in betas:
            runs[f"{recipe}-{beta:g}"] = ["dpo", "--recipe", recipe, "--beta", f"{beta:g}", *by_pairs, *shared]
    for beta in settings.kto:
        sizes = ["--batch-size", "32", "--eval-size", "8", "--beta", f"{beta:g}"]
        runs[f"kto-{beta:g}"] = ["kto", "--data", labels, *sizes, *shared]
    return runs


def run(command: Sequence[str], out: Path) -> dict[str, Any]:
    """The summary of a command's run: read, gone on with, or begun."""
    summary = out / "summary.json"
    if not (summary.exists() and json.loads(summary.read_text(encoding="utf-8"))["finished"]):
        program = Path(sys.executable).with_name("rlax-llm")
        begun = (out / "checkpoints").exists()
        told = [command[0], "--resume", str(out)] if begun else [*command, "--out", str(out)]
        subprocess.run([str(program), *told], check=True)
    return json.loads(summary.read_text(encoding="utf-8"))


def evaluated(name: str, reference: LanguageModel, settings: Settings, place: Path) -> dict[str, Any]:
    """A model's sentences on held-out topics: VADER's score, and the log-ratio to the reference, nats a completion."""
    kept = place / name / "evaluated.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    model = reference if name == "reference" else load_model(place / name / "model")
    topics = HELD_OUT[: settings.held_out]
    rollout = completed(model, topics, settings.measured, settings, 0)
    completions = jax.tree.map(jnp.asarray, rollout.completions)
    log_probs = jax.jit(group_log_probs(model.config, (settings.measured, rollout.prompt_width)))
    now, before = (log_probs(x.params, completions)[0].sum(-1) for x in (model, reference))
    found = {
        "scores": positive([], rollout.texts),
        "log_ratios": np.asarray(now - before, float).tolist(),
        "texts": rollout.texts,
        "tokens": float(rollout.lengths().mean()),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def by_topic(values: Sequence[float], each: int) -> np.ndarray:
    """Means of each topic, which are independent of each other."""
    return np.asarray(values, float).reshape(-1, each).mean(-1)


def measure(settings: Settings, place: Path) -> dict[str, Any]:
    """Train what is not yet trained, and measure all."""
    write_data(settings, place)
    runs = commands(settings, place)
    summaries = {name: run(command, place / name) for name, command in runs.items()}
    reference, measured = load_model(REFERENCE), []
    for name in ("reference", *(name for name in runs if name != "reward")):
        found = evaluated(name, reference, settings, place)
        measured.append(
            {
                "name": name,
                "score": interval(by_topic(found["scores"], settings.measured)),
                "kl": interval(by_topic(found["log_ratios"], settings.measured)),
                "tokens": found["tokens"],
                "texts": found["texts"][:: settings.measured],
                "seconds": summaries[name]["wall_seconds"] if name in summaries else 0.0,
            }
        )
    judge = {name: summaries["reward"].get(name) for name in ("first_held_out_accuracy", "last_held_out_accuracy")}
    told = {name: ["rlax-llm", *(x.replace(str(place), "DATA") for x in command)] for name, command in runs.items()}
    return {"settings": plain(settings), "judge": judge, "runs": measured, "commands": told}


def draw(numbers: Mapping[str, Any]) -> Any:
    """VADER's score over KL."""
    figure, (panel,) = new_figure("SmolLM2-135M-Instruct: positive sentences on held-out topics", 1)
    runs = numbers["runs"]
    for method, colour in zip(METHODS, COLOURS):
        lines = sorted((x for x in runs if x["name"].startswith(method)), key=lambda x: x["kl"]["mean"])
        kl, score = ([x[what]["mean"] for x in lines] for what in ("kl", "score"))
        panel.plot(kl, score, "o-", color=colour, label=method.upper(), linewidth=1.6)
        for x in lines:
            panel.plot([x["kl"]["mean"]] * 2, [x["score"]["low"], x["score"]["high"]], color=colour, alpha=0.3)
    panel.axhline(runs[0]["score"]["mean"], color="black", linewidth=1, linestyle=":", label="before")
    label(panel, "Each point a β; bars over topics", "KL to the reference, nats a completion", "VADER score")
    return figure


def best_of(numbers: Mapping[str, Any], method: str) -> Mapping[str, Any]:
    """A method's run with the highest score."""
    return max((x for x in numbers["runs"] if x["name"].startswith(method)), key=lambda x: x["score"]["mean"])


def samples(numbers: Mapping[str, Any]) -> str:
    """The first sentence on some held-out topics, before and after."""
    chosen = [numbers["runs"][0], *(best_of(numbers, method) for method in METHODS)]
    head = ["topic", "before", *(x["name"] for x in chosen[1:])]
    rows = [
        [topic, *(x["texts"][place].strip().replace("\n", " ⏎ ").replace("|", "\\|") for x in chosen)]
        for place, topic in enumerate(HELD_OUT[: len(chosen[0]["texts"])])
    ]
    return table(head, rows)


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, runs, judge = numbers["settings"], numbers["runs"], numbers["judge"]
    before = runs[0]["score"]
    best = {method: best_of(numbers, method) for method in METHODS}
    rose = {method: one["score"]["low"] > before["high"] for method, one in best.items()}
    verdict = "held" if all(rose.values()) else "held in part" if any(rose.values()) else "did not hold"
    ways = ", ".join(f"{m.upper()} to {one['score']['mean']:.2f} at {one['kl']['mean']:.1f}" for m, one in best.items())
    rows = [[x["name"], said(x["score"]), said(x["kl"]), f"{x['tokens']:.1f}", f"{x['seconds']:,.0f}"] for x in runs]
    first, last = (f"{100 * judge[f'{x}_held_out_accuracy']:.0f} %" for x in ("first", "last"))
    told = "\n".join("    " + " ".join(command) for command in numbers["commands"].values())
    return f"""# Positive sentences from SmolLM2-135M-Instruct

![VADER score over KL to the reference for PPO, DPO, IPO and KTO](figure.png)

**The claim {verdict}.** On topics that nothing was trained on, the mean VADER score of the model's sentences rose from
{said(before)}: {ways} nats a completion (each method's best β). The reward model ordered {last} of held-out pairs as
VADER does ({first} before training).

{table(["run", "VADER score", "KL, nats a completion", "tokens", "seconds of training"], rows)}

Mean and 95 % interval over {s["held_out"]} held-out topics of {s["measured"]} sentences each; the KL is the mean
log-ratio of what the trained model wrote. The number behind a name is β (τ of IPO). All learn from
{s["samples"]} completions of each of {s["topics"]} topics, judged by VADER: {s["pairs"]} pairs a topic at most, or a
label each, desirable above the median; adapters of rank {s["rank"]}, {s["steps"]} steps. One seed.
`python -m experiments.positive_sentences` (with the package vaderSentiment).

## Sentences on held-out topics

{samples(numbers)}

## Commands

{told}
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    small = Settings(2, 1, 1, 2, 4, 2, (0.1,), (0.1,), (0.1,), (0.1,), topics=32, held_out=2)
    settings = small if options.quick else Settings()
    place = options.out / "runs" if options.quick else Path("runs") / "positive_sentences"
    numbers = measure(settings, place)
    write(options.out, draw(numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
