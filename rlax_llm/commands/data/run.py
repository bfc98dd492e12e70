"""The command ``data`` as a function of its settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from rlax_llm.commands.data.settings import DataSettings
from rlax_llm.commands.data.showing import LEGEND, PLAIN_LEGEND, colored, columns_grid, lengths_grid, longest
from rlax_llm.commands.data.uses import PROMPTED, USES, Encoded, PromptTokens, encode_prompts, use_of
from rlax_llm.commands.grids import near, on_screen
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.core.wording import counted
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.data.limits import Limits, keep_prompts_within, keep_within
from rlax_llm.data.sifting import Kept
from rlax_llm.data.tables import read_table
from rlax_llm.host.progress import say, show
from rlax_llm.models.loading import load_tokenizer
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.loading import load_reward, unread_answers

_FIRST = 1000  # rows whose columns and answers are looked at


def run_data(settings: DataSettings) -> list[Kept[Any]]:
    """Show each file as a training command reads it.

    Args:
        settings: of the command.

    Returns:
        The rows of each file that are used, as tokens.

    Raises:
        ValueError: for a file of which no row can be used.
    """
    name = settings.model.model
    tokenizer = Tokenizer.characters(ALPHABET) if name == "char" else load_tokenizer(name)
    found = []
    for path in settings.file.files:
        first = [row for _, row in itertools.islice(read_table(path, settings.file.split), _FIRST + 1)]
        show(on_screen(columns_grid(near(path), first[:_FIRST], len(first) <= _FIRST)))
        found.append(_shown(settings, path, tokenizer))
    _tell_of_shared(settings.file.files, found)
    return found


def _shown(settings: DataSettings, path: str, tokenizer: Tokenizer) -> Kept[Any]:
    """Show what becomes of a file's rows."""
    table = settings.file
    name = table.use or use_of(path, table.split)
    use = USES[name]
    command = use.words or name
    say(f"Read as {use.rows}, for rlax-llm {command}" + ("." if table.use else "; --use names another command."))
    kept = use.read(path, table.split, table.every_turn)
    encoded = kept.then(lambda records: use.encode(tokenizer, records, settings.steps.separator))
    show(on_screen(lengths_grid(encoded.rows)))
    limits = settings.changed(use=name).limits  # of that command, where none are given
    used = _within(kept, encoded, limits, tokenizer)
    _tell_of_limits(encoded, used, limits)
    if name in PROMPTED:
        _tell_of_answers(used.rows)
    in_color = Console().color_system is not None
    for row, place in itertools.islice(zip(used.rows, used.places, strict=True), table.rows):
        say(f"\n{place.removeprefix(f'{path}, ')}:")
        for text in colored(tokenizer, row, in_color):
            show(text)
    if table.rows and name not in PROMPTED:
        say(f"\n{LEGEND if in_color else PLAIN_LEGEND}")
    return used


def _within(kept: Kept[Any], encoded: Kept[Any], limits: LimitSettings, tokenizer: Tokenizer) -> Kept[Any]:
    """The rows that keep to the limits, as tokens."""
    bounds = Limits(limits.max_prompt_tokens, limits.max_new_tokens)
    if isinstance(encoded[0], PromptTokens):
        return kept.then(keep_prompts_within(tokenizer, bounds)).then(partial(encode_prompts, tokenizer))
    return encoded.then(keep_within(bounds))


def _tell_of_limits(encoded: Kept[Encoded], used: Kept[Encoded], limits: LimitSettings) -> None:
    """What was left out and why, and the limits that keep all."""
    total = len(used) + len(used.left_out)
    if report := used.report():
        say(report)
    prompt, completion = longest(encoded.rows)
    over = [
        f"--{name.replace('_', '-')} {most}"
        for name, most in (("max_prompt_tokens", prompt), ("max_new_tokens", completion))
        if most > getattr(limits, name)
    ]
    keeping = f"; {' '.join(over)} keeps all that can be read" if over else ""
    say(f"Used: {len(used):,} of {counted(total, 'row')}{keeping}.")


def _tell_of_answers(rows: Sequence[PromptTokens]) -> None:
    """Which of the built-in rewards can read the right answers."""
    if not rows or "answer" not in rows[0].columns:
        return
    answers = [row.columns["answer"] for row in rows[:_FIRST]]
    found = []
    for name in ("integer_answer", "math_answer"):
        try:
            read = len(answers) - len(unread_answers(load_reward(name), answers))
        except RewardError as error:
            found.append(f"{name} is not here ({error})")
        else:
            found.append(f"{name} {read:,}")
    say(f"Answers that a reward can read, of {len(answers):,}: {', '.join(found)}.")


def _tell_of_shared(paths: Sequence[str], found: Sequence[Kept[Any]]) -> None:
    """Prompts that are there twice: within a file, and in two of them, which would be trained on and measured on."""
    keys = [[tuple(row.prompt) for row in kept] for kept in found]
    for path, own in zip(paths, keys, strict=True):
        if repeated := len(own) - len(set(own)):
            say(f"{near(path)}: {repeated:,} of {len(own):,} rows repeat an earlier prompt.")
    for (first, ones), (second, others) in itertools.combinations(zip(paths, keys, strict=True), 2):
        if both := len(set(ones) & set(others)):
            say(f"{both:,} prompts of {near(first)} are in {near(second)} too: train on one side alone.")
