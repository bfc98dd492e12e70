"""The words of a command line as settings: ``--name value``, ``--name=value``, ``--name`` and ``--no-name``."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from rlax_llm.cli.values import converted, is_list, is_list_of_texts, is_truth
from rlax_llm.commands.settings import did_you_mean_setting, keys


def flag(name: str) -> str:
    """How the command line writes a setting.

    >>> flag("learning_rate")
    '--learning-rate'
    """
    return "--" + name.replace("_", "-")


def in_flags(kind: type[Any], said: str) -> str:
    """A sentence on the settings of a command, in the words of its command line.

    A name with an underscore is a setting wherever it is; one without is a word too, so only where it must be one. A
    function of the library that speaks is the command: nobody called it by its name.

    Args:
        kind: of settings.
        said: as the settings say it, with the command in front, or as the library does, with a name of its own or a
            server's address; what a file's name stands in front of is as it was.

    >>> from rlax_llm.commands.grpo.settings import GrpoSettings
    >>> in_flags(GrpoSettings, "grpo: steps is 0, wanted at least 1.")
    'grpo: --steps is 0, wanted at least 1.'
    >>> in_flags(GrpoSettings, "grpo: data is given without reward or reward_model, and a file has none of its own.")
    'grpo: --data is given without --reward or --reward-model, and a file has none of its own.'
    >>> in_flags(GrpoSettings, "grpo: ahead gives older tokens, and correction is none; leave correction out.")
    'grpo: --ahead gives older tokens, and --correction is none; leave --correction out.'
    >>> in_flags(GrpoSettings, "grpo: pattern is given with tool calculator; leave one out, or give steps.")
    'grpo: --pattern is given with --tool calculator; leave one out, or give --steps.'
    >>> in_flags(GrpoSettings, "grpo: reward 'mine.py:f': there is no file mine.py.")
    "grpo: --reward 'mine.py:f': there is no file mine.py."
    >>> in_flags(GrpoSettings, "grpo: mesh: fsdp 4 is 4 devices, and there are 1; give sizes whose product is that.")
    'grpo: --mesh: fsdp 4 is 4 devices, and there are 1; give sizes whose product is that.'
    >>> in_flags(GrpoSettings, "pad_prompts: prompt 3 has 60 tokens, max_prompt_tokens is 40; raise the limit.")
    'grpo: prompt 3 has 60 tokens, --max-prompt-tokens is 40; raise the limit.'
    >>> in_flags(GrpoSettings, "pattern: there is no stop token that could end a text of it; give stop_ids.")
    '--pattern: there is no stop token that could end a text of it; give --stop-ids.'
    >>> in_flags(GrpoSettings, "config.yaml: top_k is -1, wanted at least 0.")
    'config.yaml: top_k is -1, wanted at least 0.'
    """
    settings = {name: key for name, key in keys(kind).items() if not key.field.metadata.get("word")}
    speaker, rest = _speaker(settings, said)
    if speaker is None:
        return said
    for name in settings:
        rest = _with_flag(name, rest)
    return _named(kind.command, settings, speaker) + rest


_SPEAKER = re.compile(r"(https?://\S+|[A-Z]\w*(?:\.[a-z_]+)?|[a-z_]+): ")
_FUNCTION = re.compile(r"generate|[a-z]+(?:_[a-z]+)+")


def _speaker(settings: Iterable[str], said: str) -> tuple[str | None, str]:
    """Who speaks, and what is said; nobody where a file's name stands in front, and "" where nothing does."""
    found = _SPEAKER.match(said)
    if found is not None:
        return found[1], said[found.end() :]
    return ("" if said.partition(" ")[0] in settings else None), said


def _named(command: str, settings: Iterable[str], speaker: str) -> str:
    """The beginning of a sentence."""
    if speaker in settings and speaker != command:
        return f"{flag(speaker)}: "
    if not speaker or _FUNCTION.fullmatch(speaker):
        return f"{command}: "
    return f"{speaker}: "


def _with_flag(name: str, said: str) -> str:
    """What is said, with the flag of a setting."""
    if "_" in name:
        return re.sub(rf"(?<![\w'\"/.-]){name}(?![\w'\"/(=:])", flag(name), said)
    said = re.sub(rf"^{name}(?= (is|holds|and|has|gives) | '[^']*'(:| is unknown)|: )", flag(name), said)
    said = re.sub(rf"(?<= and ){name}(?= is )", flag(name), said)
    said = re.sub(rf"(?<= without ){name}(?![\w-])", flag(name), said)
    said = re.sub(rf"(?<= given with ){name}(?![\w-])", flag(name), said)
    said = re.sub(rf"(?<= [Gg]ive ){name}(?=[,.;])", flag(name), said)
    said = re.sub(rf"(?<= has no ){name}(?=;)", flag(name), said)
    return re.sub(rf"(?<= leave ){name}(?= out\b)", flag(name), said)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether ``-h`` or ``--help`` is among the flags.

    >>> asks_for_help(["--steps", "3", "-h"]), asks_for_help(["--", "-h"])
    (True, False)
    """
    flags = words[: words.index("--")] if "--" in words else words
    return "-h" in flags or "--help" in flags


def read_flags(kind: type[Any], words: Sequence[str]) -> dict[str, Any]:
    """The settings of ``kind`` that the words of a command line give; of a flag that is there twice, the last.

    Args:
        kind: of settings.
        words: those after the command's name. All after ``--`` are without a flag.

    Raises:
        ValueError: naming the flag: unknown (and the nearest known), without a value, or with one of a wrong type.

    >>> from rlax_llm.commands.generate.settings import GenerateSettings
    >>> read_flags(GenerateSettings, ["--samples", "3", "--temperature=0.5", "hello"])
    {'samples': 3, 'temperature': 0.5, 'prompt': 'hello'}
    >>> read_flags(GenerateSettings, ["--sample", "3"])
    Traceback (most recent call last):
    ValueError: generate has no flag --sample; did you mean --samples?
    """
    words_alone = [name for name, key in keys(kind).items() if key.field.metadata.get("word")]
    several = [name for name in words_alone if is_list(keys(kind)[name].hint)]
    known = {name: key.hint for name, key in keys(kind).items() if name not in words_alone}
    found: dict[str, Any] = {}
    waiting, only_words = deque(words), False
    while waiting:
        word = waiting.popleft()
        if word == "--" and not only_words:
            only_words = True
        elif word.startswith("--") and not only_words:
            name, value = _setting(kind.command, known, word, waiting)
            if name in found and is_list(known[name]):
                _tell_of_two(kind.command, name)
            found[name] = value
        else:
            place = _place(kind.command, [name for name in words_alone if name not in several], several, found, word)
            found[place] = (*found.get(place, ()), word) if place in several else word
    return found


def _tell_of_two(command: str, name: str) -> None:
    """Whoever thinks that a flag of several values adds up would else train on less than they gave."""
    print(f"{command}: {flag(name)} is there twice; the last counts, alone.", file=sys.stderr)


def _setting(command: str, known: dict[str, Any], word: str, waiting: deque[str]) -> tuple[str, Any]:
    written, equals, text = word.partition("=")
    name = written[2:].replace("-", "_")
    negated = name.removeprefix("no_")
    if name not in known and negated in known and is_truth(known[negated]):
        if equals:
            raise ValueError(f"{command}: {written} takes no value, got {text!r}; leave it out.")
        return negated, False
    if name not in known:
        raise ValueError(f"{command} has no flag {written}{_hint(command, name, known)}")
    hint = known[name]
    if is_truth(hint) and not equals:
        return name, True
    if is_list(hint):
        return name, converted(written, _listed(text, hint) if equals else _values(waiting), hint)
    if not equals and (not waiting or waiting[0].startswith("--")):
        raise ValueError(f"{command}: {written} has no value; give one, as {written} VALUE.")
    return name, converted(written, text if equals else waiting.popleft(), hint)


def _listed(text: str, hint: Any) -> list[str]:
    """The values after an equals sign: numbers have blanks between them, a text may hold some."""
    return [text] if is_list_of_texts(hint) else text.split()


def _values(waiting: deque[str]) -> list[str]:
    """The words up to the next flag."""
    found = []
    while waiting and not waiting[0].startswith("--"):
        found.append(waiting.popleft())
    return found


def _hint(command: str, name: str, known: dict[str, Any]) -> str:
    names = [*known, *(f"no_{other}" for other in known if is_truth(known[other]))]
    return did_you_mean_setting(command, name, names, flag)


def _place(command: str, places: Sequence[str], several: Sequence[str], found: dict[str, Any], word: str) -> str:
    """The setting that a word without a flag belongs to; what takes several takes all that are left."""
    free = [name for name in places if name not in found] + list(several)
    if free:
        return free[0]
    taken = f"one {places[0]}, in quotes where it has blanks" if places else "flags, which begin with --"
    raise ValueError(f"{command}: the word {word!r} belongs to no flag, wanted {taken}.")
