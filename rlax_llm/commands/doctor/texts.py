"""Diagnoses of what completions look like: where they end, how long they are, what stands in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rlax_llm.commands.doctor.finding import DRAWN, Diagnosis, Finding, asked, halves, percent, quoted, rises
from rlax_llm.host.evidence import Evidence, mean

CUT = 0.5
"""Share of completions that were cut: more than half of what is scored is not a whole answer."""
NEVER = 0.999
FOREIGN = 0.1
"""Share of completions with a mark of a chat template: more than what a prompt that speaks of templates explains."""
MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"),
    *(
        "[INST]",
        "[/INST]",
        "<|user|>",
        "<|assistant|>",
        "<|endoftext|>",
        "</s>",
        "### Instruction",
        "\nUser:",
        "\nHuman:",
    ),
)
GROWN = 1.5
"""Length of the last completions over that of the first: the noise of a step's mean length is a few percent."""
PAID = 0.5
"""Correlation of score and length, above which length explains a quarter of the score."""
GAIN = 0.02
"""Accuracy that a run must have gained for its completions to be longer for a reason."""


def find_never_ends(evidence: Evidence) -> Finding | None:
    """The stop token is never drawn."""
    cut = evidence.values("completions/clipped_ratio")
    if not cut or min(cut) < NEVER:
        return None
    settings = evidence.settings
    longest = settings.get("max_new_tokens")
    if longest is not None and longest == settings.get("min_new_tokens"):
        return Finding(
            f"Every completion of all {len(cut)} steps was cut at {longest} tokens, as min_new_tokens is {longest} "
            "too.",
            "Give --max-new-tokens room beyond --min-new-tokens.",
        )
    last = f", as {quoted(evidence.completions[-1]['completion'])}" if evidence.completions else ""
    return Finding(f"Every completion of all {len(cut)} steps was cut at {longest} tokens: none ended by itself{last}.")


def find_cut(evidence: Evidence) -> Finding | None:
    """Most completions are cut."""
    cut = halves(evidence.values("completions/clipped_ratio"))[1]
    if not cut or mean(cut) < CUT or find_never_ends(evidence):
        return None
    settings = evidence.settings
    ended = evidence.late("completions/mean_terminated_length")
    filtered = ", and overlong_filter learns nothing from them" if settings.get("overlong_filter") else ""
    return Finding(
        f"{percent(mean(cut))} of the completions were cut at {settings.get('max_new_tokens')} tokens{filtered}; those "
        f"that ended have {ended:.0f} on average."
    )


def find_foreign_template(evidence: Evidence) -> Finding | None:
    """Marks of a chat template stand in the completions as text."""
    texts = [row["completion"] for row in evidence.completions]
    with_marks = [text for text in texts if any(mark in text for mark in MARKS)]
    if not texts or len(with_marks) / len(texts) < FOREIGN:
        return None
    mark = next(mark for mark in MARKS if mark in with_marks[-1])
    twice = any(mark in asked(row["prompt"]) for mark in MARKS for row in evidence.completions)
    prompts = "; the prompts hold such marks too, so they are templated twice" if twice else ""
    return Finding(
        f"{percent(len(with_marks) / len(texts))} of the completions hold marks of a chat template as text, such as "
        f"{quoted(mark)}{prompts}: {quoted(with_marks[-1])}.",
        "Give prompts as plain text or as messages: the tokenizer's template is laid around them." if twice else "",
    )


def find_length(evidence: Evidence) -> Finding | None:
    """Completions grow, and are not better for it."""
    before, after = (evidence.early(_LENGTH), evidence.late(_LENGTH))
    if not after >= GROWN * before:
        return None
    grown = f"Completions have grown from {before:.3g} to {after:.3g} tokens"
    solved = evidence.values("accuracy")
    if solved and evidence.late("accuracy") - evidence.early("accuracy") >= GAIN:
        return None
    paid = _paid(evidence.completions)
    if paid >= PAID:
        return Finding(
            f"{grown}, and within a step the score follows the length (correlation {paid:.2f}): length is what is "
            "paid.",
            "Take the length out of the reward: score a part of the answer, punish what is too long "
            "(--overlong-buffer), or read some long completions for what they are paid for.",
        )
    if solved:
        return Finding(
            f"{grown}, and accuracy has not ({evidence.early('accuracy'):.3f} → {evidence.late('accuracy'):.3f})."
        )
    return None if rises(evidence.values("reward")) else Finding(f"{grown}, and the reward has not.")


def find_uncalled(evidence: Evidence) -> Finding | None:
    """The tool is there, and nobody calls it."""
    calls = evidence.values("tools/call_frequency")
    if not calls or max(calls) > 0:
        return None
    return Finding(f"No completion of all {len(calls)} steps has called the {evidence.settings.get('tool')}.")


_LENGTH = "completions/mean_length"


def _paid(completions: Sequence[Any]) -> float:
    """Correlation of score and length, both taken from their means in a step; 0 where one does not vary."""
    steps: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in completions:
        if row.get("reward") is not None:
            steps[row["step"]].append((row["length"], row["reward"]))
    pairs = [(x - mean(xs), y - mean(ys)) for found in steps.values() for xs, ys in [_columns(found)] for x, y in found]
    products, lengths, scores = (
        sum(map(f, pairs)) for f in (lambda p: p[0] * p[1], lambda p: p[0] ** 2, lambda p: p[1] ** 2)
    )
    return products / (lengths * scores) ** 0.5 if lengths * scores > 0 else 0.0


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


DIAGNOSES = (
    Diagnosis(
        "the stop token is never drawn",
        DRAWN,
        "every completion of every step was cut (`completions/clipped_ratio` is 1)",
        "Give more --max-new-tokens; if that is not it, the model does not know how to end: a base model wants "
        "supervised steps first (rlax-llm sft), a chat model its own chat template. Look whether --logit-bias bans "
        "the stop token.",
        find_never_ends,
    ),
    Diagnosis(
        "most completions are cut",
        DRAWN,
        f"in the second half `completions/clipped_ratio` is at least {percent(CUT)}",
        "Give more --max-new-tokens, ask for short answers in the prompt, or punish what is too long "
        "(--overlong-buffer). A cut answer is scored as it stands, mostly as wrong.",
        find_cut,
    ),
    Diagnosis(
        "a template that does not fit",
        DRAWN,
        f"at least {percent(FOREIGN)} of the completions hold marks of a chat template as text (`<|im_end|>`, "
        "`[INST]`, `User:`, …)",
        "Template and model are not of one family, or the model is a base model that goes on with the conversation by "
        "itself: take the chat model that the tokenizer belongs to, or teach the turn's end first (rlax-llm sft).",
        find_foreign_template,
    ),
    Diagnosis(
        "length without gain",
        DRAWN,
        f"completions have grown by a factor of {GROWN} from the first quarter to the last, and accuracy by less than "
        f"{GAIN} (where there is none: score and length correlate by {PAID}, or the reward does not rise)",
        "A mean over the tokens of each completion makes long wrong answers cheap: take a recipe with another "
        "weighting (dapo, dr_grpo), or punish length (--overlong-buffer).",
        find_length,
    ),
    Diagnosis(
        "a tool that is never called",
        ("grpo",),
        "with --tool, `tools/call_frequency` is 0 at every step",
        "Nobody tells the model of the tool: say in the prompts how it is called, with an example (the help of --tool "
        "has one), or teach calls first (rlax-llm sft).",
        find_uncalled,
    ),
)
