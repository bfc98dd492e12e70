"""``rlax-llm`` and its commands.

JAX and all that builds on it is imported once a command runs, so that ``--help`` and a wrong flag answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlax_llm.cli.completion import SUMMARY as COMPLETION_SUMMARY
from rlax_llm.cli.completion import completion
from rlax_llm.cli.configuration import parse
from rlax_llm.cli.flags import in_flags
from rlax_llm.cli.leaving import guarded, leaving_at_once
from rlax_llm.commands.inputs import check_inputs
from rlax_llm.commands.outputs import check_outputs
from rlax_llm.commands.plan.command import PLANS, SUMMARY
from rlax_llm.commands.table import Command, commands
from rlax_llm.core.libtpu import only_compile
from rlax_llm.core.names import did_you_mean
from rlax_llm.host.interrupts import TERMINATION

COMMANDS = commands()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    It is 0; 1 where the training failed (a number is not finite, no completion had a score) or there is a finding;
    2 for a mistake, in one line; 130, 143 or 129 for a run that Ctrl-C, SIGTERM or SIGHUP ended, cleanly or at once.

    Args:
        arguments: the words after ``rlax-llm``; those of the process if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    only_compile()
    code = guarded(lambda: _do(words))
    _leave_alone(code)
    return code


def _leave_alone(code: int) -> None:
    """End at once where this is one of several processes and the others did not fail: JAX would wait for them."""
    peers = sys.modules.get("rlax_llm.host.peers")
    if peers is not None and peers.PEERS.alone:
        sys.stdout.flush()
        os._exit(code)


def _do(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
    elif words[0] == "--version":
        from importlib.metadata import version

        print(f"rlax-llm {version('rlax-llm')}")
    elif words[0] in COMMANDS:
        return _run(COMMANDS[words[0]], words[1:], _check)
    elif words[0] == "plan":
        return _plan(words[1:])
    elif words[0] == "completion":
        print(completion(words[1:], COMMANDS, PLANS, SUMMARY))
    else:
        known = [*COMMANDS, "plan", "completion"]
        hint = did_you_mean(words[0], known, f"; there are {', '.join(known)}.")
        raise ValueError(f"there is no command {words[0]!r}{hint}")
    return 0


def _check(settings: Any) -> None:
    """Raise for what could be neither written nor read, before a model is loaded."""
    check_outputs(settings)
    check_inputs(settings)


def _plan(words: Sequence[str]) -> int:
    """Plan the command that the words name."""
    if not words or words[0] in ("-h", "--help"):
        print(_plan_usage())
        return 0
    if words[0] not in PLANS:
        hint = did_you_mean(words[0], PLANS, f"; there are {', '.join(PLANS)}, as in rlax-llm plan grpo.")
        raise ValueError(f"plan: {words[0]!r} is no command to plan{hint}")
    return _run(PLANS[words[0]], words[1:])


def _listed(summaries: Mapping[str, str]) -> list[str]:
    width = max(map(len, summaries))
    return [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]


def _plan_usage() -> str:
    return "\n".join(
        [
            "usage: rlax-llm plan COMMAND [--on CHIP:TOPOLOGY] [flags of the command]",
            "",
            "What a command will take of a machine, from its compiler and from shapes: memory, traffic, seconds.",
            "",
            "Commands:",
            *_listed({name: command.summary for name, command in PLANS.items()}),
        ]
    )


def _usage() -> str:
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    lines = _listed(summaries | {"plan": SUMMARY, "completion": COMPLETION_SUMMARY})
    return "\n".join(
        [
            "usage: rlax-llm COMMAND [flags]",
            "",
            "Reinforcement learning in JAX, of language models and in control.",
            "",
            "Commands:",
            *lines,
            "",
            "rlax-llm COMMAND --help lists a command's flags; rlax-llm grpo alone trains a small model in minutes.",
        ]
    )


def _run(command: Command, words: Sequence[str], check: Callable[[Any], None] = lambda settings: None) -> int:
    """Do a command, and give its exit code: that of the signal which has ended its run, if one has.

    Args:
        command: that is done.
        words: behind its name.
        check: of its settings, before anything else is done.
    """
    try:
        config = parse(command.settings, words, command.description)
        check(config)
    except ValueError as error:
        raise ValueError(in_flags(command.settings, str(error))) from error
    module, name = command.run.split(":")
    with leaving_at_once():
        from rlax_llm.cli import compilation_cache

        compilation_cache.turn_on()
        run: Callable[[Any], object] = getattr(importlib.import_module(module), name)
    try:
        with leaving_at_once(*TERMINATION):
            done = run(config)
    except (ValueError, ConnectionError) as error:
        if len(error.args) == 1:
            error.args = (in_flags(command.settings, str(error)),)
        raise
    except SystemExit as leave:
        raise RuntimeError(f"{command.settings.command}: something called sys.exit({leave.code!r}).") from leave
    number = getattr(done, "stopped_by", None)
    return getattr(done, "exit_code", 0) if number is None else 128 + number
