"""SmolLM2-135M-Instruct learns to write positive sentences: SFT, a reward model, PPO from it, DPO, IPO and KTO.

SFT teaches it to write short news, good or bad: the reference. All else learns from the reference's own sentences,
judged by the VADER lexicon; each method at several β. What they reach on topics that nothing was trained on is drawn
over its KL to the reference. Every training run is a command of ``rlax-llm``, kept under ``runs/positive_sentences``: a
finished one is read again, an interrupted one goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command_runs import run, told
from experiments.common import COLORS, arguments, interval, label, new_figure, plain, said, table, verdict_of, write
from experiments.positive_sentences.tasks import (
    HELD_OUT,
    LEAST,
    TOPICS,
    demonstration_rows,
    label_rows,
    news,
    positive,
    preference_rows,
    prompt,
    write_rows,
)
from rlax_llm.commands.rollouts import Rollout, Sampling
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.scoring import group_log_probs

METHODS = ("ppo", "dpo", "ipo", "kto")
BASE = "smollm2"


class Settings(NamedTuple):
    """Counts, and the β of each method; a run's other settings stand in ``commands``.

    Attributes:
        demonstrations: of each training topic, drawn; those that are a sentence about it are learned.
        samples: completions of each training topic.
        pairs: of each training topic at most.
        sft_steps: optimizer steps of the reference.
        reward_steps: of the reward model.
        steps: of every other run by preferences.
        ppo_steps: of PPO.
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

    demonstrations: int = 24
    samples: int = 24
    pairs: int = 12
    sft_steps: int = 48
    reward_steps: int = 48
    steps: int = 32
    ppo_steps: int = 32
    rank: int = 16
    new_tokens: int = 24
    measured: int = 16
    ppo: tuple[float, ...] = (0.03, 0.3)
    dpo: tuple[float, ...] = (0.03, 0.1, 0.3)
    ipo: tuple[float, ...] = (0.1, 1.0)
    kto: tuple[float, ...] = (0.03, 0.3)
    topics: int = len(TOPICS)
    held_out: int = len(HELD_OUT)


def completed(
    model: LanguageModel, prompts: Sequence[Any], each: int, settings: Settings, seed: int, temperature: float = 1.0
) -> Rollout:
    """The model's completions: a rollout of ``each`` a prompt."""
    sampling = Sampling(model.config, model.tokenizer, 64)
    request = sampling.request(Categorical(temperature), settings.new_tokens, each)
    return sampling.rollout(model.params, [{"prompt": x} for x in prompts], jax.random.key(seed), request)


def texts_of(
    name_or_path: str, prompts: Sequence[Any], each: int, settings: Settings, kept: Path, temperature: float = 1.0
) -> list[list[tuple[str, bool]]]:
    """``each`` completions of each prompt, and whether they ended by themselves; kept in a file."""
    if not kept.exists():
        model, texts = load_model(name_or_path), []
        for start in range(0, len(prompts), 16):
            some = prompts[start : start + 16]
            rollout = completed(model, some, each, settings, 1 + start, temperature)
            texts += [
                (text, not x) for text, x in zip(rollout.texts, rollout.completions.truncated.tolist(), strict=True)
            ]
            print(f"{kept.stem}: {len(texts)} of {len(prompts) * each}")
        kept.write_text(json.dumps(texts), encoding="utf-8")
    texts = json.loads(kept.read_text(encoding="utf-8"))
    return [texts[start : start + each] for start in range(0, len(texts), each)]


def write_demonstrations(settings: Settings, place: Path) -> None:
    """What the instruct model says when it is asked for news, its first sentences."""
    topics = TOPICS[: settings.topics]
    prompts = [news(x) for x in topics]
    texts = texts_of(BASE, prompts, settings.demonstrations, settings, place / "news.json", 0.8)
    every = [[text for text, _ in own] for own in texts]
    write_rows(place / "demonstrations.jsonl", demonstration_rows(every, topics))


def write_judged(settings: Settings, place: Path) -> None:
    """The reference's finished sentences as pairs and as labels, and the prompts."""
    topics = TOPICS[: settings.topics]
    prompts, reference = [prompt(x) for x in topics], str(place / "sft" / "model")
    texts = texts_of(reference, prompts, settings.samples, settings, place / "sentences.json")
    ended = [[text for text, ended in own if ended and text] for own in texts]
    write_rows(place / "pairs.jsonl", preference_rows(ended, topics, settings.pairs))
    write_rows(place / "labels.jsonl", label_rows(ended, topics))
    write_rows(place / "prompts.jsonl", [{"prompt": x} for x in prompts])


def commands(settings: Settings, place: Path) -> dict[str, list[str]]:
    """The training runs by name: the reference, the reward model, and each method at each β."""
    shared = ["--lora-rank", str(settings.rank), "--no-remat", "--schedule", "linear"]
    shared += ["--max-prompt-tokens", "64", "--eval-every", "0", "--save-every", "0"]
    shared += ["--max-new-tokens", str(settings.new_tokens + 8)]
    pairs, labels, reference = str(place / "pairs.jsonl"), str(place / "labels.jsonl"), str(place / "sft" / "model")
    demonstrations = ["--data", str(place / "demonstrations.jsonl"), "--batch-size", "16", "--eval-size", "16"]
    sft = ["sft", "--model", BASE, *demonstrations, *shared, "--learning-rate", "1e-3"]
    shared += ["--model", reference, "--learning-rate", "5e-4"]
    held_out = "64" if settings.pairs > 1 else "4"
    judge = ["reward", "--data", pairs, "--batch-size", "16", "--eval-size", held_out, *shared]
    runs = {
        "sft": [*sft, "--steps", str(settings.sft_steps)],
        "reward": [*judge, "--steps", str(settings.reward_steps)],
    }
    by_pairs = ["--data", pairs, "--batch-size", "8", "--eval-size", "8", *shared, "--steps", str(settings.steps)]
    by_labels = ["--data", labels, "--batch-size", "16", "--eval-size", "8", *shared, "--steps", str(settings.steps)]
    # Seven desirable sentences to twelve others: what is recommended lies between 1.7 and 2.3.
    by_labels += ["--desirable-weight", "2"]
    for recipe, betas in (("dpo", settings.dpo), ("ipo", settings.ipo)):
        for beta in betas:
            runs[f"{recipe}-{beta:g}"] = ["dpo", "--recipe", recipe, "--beta", f"{beta:g}", *by_pairs]
    for beta in settings.kto:
        runs[f"kto-{beta:g}"] = ["kto", "--beta", f"{beta:g}", *by_labels]
    scored = ["--data", str(place / "prompts.jsonl"), "--reward-model", str(place / "reward" / "model")]
    scored += ["--batch-size", "16", "--epochs", "1", "--eval-size", "8", *shared, "--steps", str(settings.ppo_steps)]
    for beta in settings.ppo:
        runs[f"ppo-{beta:g}"] = ["ppo", "--kl-coef", f"{beta:g}", *scored]
    return runs


def evaluated(name: str, reference: LanguageModel, settings: Settings, place: Path) -> dict[str, Any]:
    """A model's sentences on held-out topics: VADER's score, and the log-ratio to the reference, nats a completion."""
    kept = place / name / "evaluated.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    model = reference if name == "reference" else load_model(place / name / "model")
    topics = HELD_OUT[: settings.held_out]
    rollout = completed(model, [prompt(x) for x in topics], settings.measured, settings, 0)
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


def measured_run(found: Mapping[str, Any], before: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """A model's means over topics; ``gain`` is the difference to the reference topic by topic."""
    score, first = (by_topic(x["scores"], settings.measured) for x in (found, before))
    return {
        "score": interval(score),
        "gain": interval(score - first),
        "kl": interval(by_topic(found["log_ratios"], settings.measured)),
        "tokens": found["tokens"],
        "texts": found["texts"][:: settings.measured],
    }


def measure(settings: Settings, place: Path) -> dict[str, Any]:
    """Train what is not yet trained, and measure all."""
    place.mkdir(parents=True, exist_ok=True)
    runs, summaries = commands(settings, place), {}
    for name, command in runs.items():
        if name == "sft":
            write_demonstrations(settings, place)
        summaries[name] = run(command, place / name)
        if name == "sft":
            write_judged(settings, place)
    reference, measured = load_model(place / "sft" / "model"), []
    before = evaluated("reference", reference, settings, place)
    for name in ("reference", *(name for name in runs if name not in ("sft", "reward"))):
        found = evaluated(name, reference, settings, place)
        measured.append({"name": name} | measured_run(found, before, settings))
    judge = {name: summaries["reward"].get(name) for name in ("first_held_out_accuracy", "last_held_out_accuracy")}
    typed = [told(command, place) for command in runs.values()]
    return {"settings": plain(settings), "judge": judge, "runs": measured, "commands": typed}


def draw(numbers: Mapping[str, Any]) -> Any:
    """VADER's score over KL."""
    figure, (panel,) = new_figure("Positive sentences on held-out topics", 1)
    runs = numbers["runs"]
    for method, color in zip(METHODS, COLORS):
        lines = sorted((x for x in runs if x["name"].startswith(method)), key=lambda x: x["kl"]["mean"])
        kl, score = ([x[what]["mean"] for x in lines] for what in ("kl", "score"))
        panel.plot(kl, score, "o-", color=color, label=method.upper(), linewidth=1.6)
        for x in lines:
            panel.plot([x["kl"]["mean"]] * 2, [x["score"]["low"], x["score"]["high"]], color=color, alpha=0.3)
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
    rose = {method: one["gain"]["low"] > 0 for method, one in best.items()}
    verdict = verdict_of(rose.values())
    ways = ", ".join(f"{m.upper()} to {one['score']['mean']:.2f} at {one['kl']['mean']:.1f}" for m, one in best.items())
    rows = [[x["name"], *(said(x[what]) for what in ("score", "gain", "kl")), f"{x['tokens']:.1f}"] for x in runs]
    first, last = (f"{100 * judge[f'{x}_held_out_accuracy']:.0f} %" for x in ("first", "last"))
    return f"""# Positive sentences from SmolLM2-135M-Instruct

![VADER score over KL to the reference for PPO, DPO, IPO and KTO](figure.png)

**The claim {verdict}.** On topics that nothing was trained on, the mean VADER score of the model's sentences rose from
{said(before)}: {ways} nats a completion (each method's best β). The reward model ordered {last} of held-out pairs as
VADER does ({first} before training).

{table(["run", "VADER score", "gain", "KL, nats a completion", "tokens"], rows)}

Mean and 95 % interval over {s["held_out"]} held-out topics of {s["measured"]} sentences each; the gain is taken topic
by topic; the KL is the mean log-ratio of what the trained model wrote. The number behind a name is β (τ of IPO).

The reference is the instruct model after {s["sft_steps"]} steps of SFT on its own first sentences about
{s["topics"]} topics, asked for good or bad news. All else learns from {s["samples"]} sentences of the reference on each
of these topics, judged by VADER: {s["pairs"]} pairs a topic at most, whose scores differ by {LEAST:g} or more; or a
label each, desirable above 0 and undesirable below, the desirable ones with weight 2. Adapters of rank {s["rank"]};
{s["reward_steps"]} steps of the reward model, {s["ppo_steps"]} of PPO, {s["steps"]} of the others. One seed.
`python -m experiments.positive_sentences` (with the package vaderSentiment).

## Sentences on held-out topics

{samples(numbers)}

## Commands

DATA is `runs/positive_sentences`; the experiment writes the data files there between the commands.

{chr(10).join(numbers["commands"])}
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    small = Settings(2, 2, 1, 1, 1, 1, 1, 2, 20, 2, (0.1,), (0.1,), (0.1,), (0.1,), topics=32, held_out=2)
    settings = small if options.quick else Settings()
    place = options.out / "runs" if options.quick else Path("runs") / "positive_sentences"
    numbers = measure(settings, place)
    write(options.out, draw(numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
