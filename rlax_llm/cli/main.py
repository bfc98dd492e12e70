"""``rlax-llm`` and its commands.

JAX and all that builds on it is imported once a command runs, so that ``--help`` and a wrong flag answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlax_llm.cli.configuration import Settings, parse
from rlax_llm.cli.leaving import guarded, leaving_at_once
from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.sft.settings import EvalSettings, GenerateSettings, SftSettings
from rlax_llm.core.names import did_you_mean


class Command(NamedTuple):
    """A command: its settings, ``module:function`` of ``rlax_llm.commands`` that does it, and its help."""

    settings: type[Settings]
    run: str
    summary: str
    description: str


COMMANDS = {
    "grpo": Command(
        GrpoSettings,
        "grpo.run:run_grpo",
        "train a language model by reinforcement learning",
        """Train a language model by reinforcement learning: sample a group of completions for each prompt, reward them,
and make those better than their group's average likelier. Everything about the run goes to one directory; Ctrl-C ends
it cleanly.

Examples:
  rlax-llm grpo                                         a small character model learns to add, in minutes
  rlax-llm grpo --model smollm2 --task arithmetic-words --out runs/words
  rlax-llm grpo --data mine.jsonl --reward my_rewards:score --model ./my-model
  rlax-llm grpo --config mine.yaml --recipe dapo        settings of a file, one of them changed
  rlax-llm grpo --recipe dapo --dynamic-rounds 8 --overlong-buffer 2 --epochs 2 --minibatches 2
  rlax-llm grpo --resume runs/words                     go on with a run that was interrupted""",
    ),
    "sft": Command(
        SftSettings,
        "grpo.run:run_sft",
        "train a language model on prompts and their answers",
        """Train a language model on prompts and their answers (supervised fine-tuning); only the answers' tokens count.

Examples:
  rlax-llm sft --steps 300 --out runs/warm
  rlax-llm sft --model smollm2 --data answers.jsonl
  rlax-llm sft --resume runs/warm --steps 600           go on, and further than first asked""",
    ),
    "reward": Command(
        RewardSettings,
        "preference.run:run_reward",
        "train a reward model on preference pairs",
        """Train a reward model: a language model whose head is replaced by one number, read at a completion's last
token, which is to be larger for the chosen completion of a pair than for the rejected one (Bradley-Terry).

Examples:
  rlax-llm reward                                       a small character model learns to tell right sums from wrong
  rlax-llm reward --model smollm2 --data pairs.jsonl --lora-rank 16 --out runs/judge""",
    ),
    "ppo": Command(
        PpoSettings,
        "ppo.run:run_ppo",
        "train a language model by PPO against a reward model",
        """Train a language model by PPO with four models: the policy, a value model, a frozen reference that the policy
is kept close to, and a reward model (or reward functions, or both).

Examples:
  rlax-llm ppo                                          a small character model learns to add
  rlax-llm ppo --model runs/warm/model --reward-model runs/judge/model
  rlax-llm ppo --model smollm2 --data prompts.jsonl --reward my_rewards:score --lora-rank 16
  rlax-llm ppo --resume runs/mine                       go on with a run that was interrupted""",
    ),
    "dpo": Command(
        DpoSettings,
        "preference.run:run_dpo",
        "train a language model on preference pairs",
        """Train a language model on preference pairs, without a reward model: DPO and its relatives.

Examples:
  rlax-llm dpo --model runs/warm/model                  right sums preferred to wrong ones
  rlax-llm dpo --model smollm2 --data pairs.jsonl --lora-rank 16
  rlax-llm dpo --data pairs.parquet --recipe simpo --beta 2.5
  rlax-llm dpo --data pairs.jsonl --recipe dpo:0.8,bco:0.2 --nll-coef 1""",
    ),
    "kto": Command(
        KtoSettings,
        "preference.run:run_kto",
        "train a language model on labeled completions",
        """Train a language model on completions that are labeled desirable or not (KTO); no pairs are needed.

Examples:
  rlax-llm kto --model runs/warm/model                  right sums desirable, wrong ones not
  rlax-llm kto --model smollm2 --data labels.jsonl --desirable-weight 4 --lora-rank 16""",
    ),
    "eval": Command(
        EvalSettings,
        "grpo.run:run_eval",
        "measure a model on held-out prompts",
        """Measure a model's reward and accuracy on held-out prompts.

Examples:
  rlax-llm eval --model runs/words/model --task arithmetic-words
  rlax-llm eval --model smollm2 --task reasoning-gym:chain_sum --size 100
  rlax-llm eval --model smollm2 --samples 4 --temperature 0.7 --out runs/eval""",
    ),
    "generate": Command(
        GenerateSettings,
        "grpo.run:run_generate",
        "print a model's answer to a prompt",
        """Print a model's answer to a prompt as it is generated; chat models get the prompt in their chat template.

Examples:
  rlax-llm generate "What is the capital of France?"
  rlax-llm generate --model runs/demo/model "12+34="
  rlax-llm generate --temperature 0.8 --samples 3 "Tell me a story."
""".rstrip(),
    ),
    "control": Command(
        ControlSettings,
        "control.run:run_control",
        "train policies in an environment, over many seeds at once",
        """Train policies in an environment, over many seeds in one compiled program, and evaluate them greedily.
Settings left open are tuned for the recipe and the environment. Ctrl-C ends a run cleanly.

Examples:
  rlax-llm control                                      PPO learns CartPole with 8 seeds
  rlax-llm control --env Pendulum-v1 --recipe trpo --seeds 16 --render
  rlax-llm control --recipe reinforce --weight td_residual --total-steps 100000
  rlax-llm control --config mine.yaml --learning-rate 1e-3
  rlax-llm control --resume runs/mine                   go on with a run that was interrupted""",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    It is 0; 1 where the training failed (a number is not finite, no completion had a score), 2 for a mistake, both told
    in one line; 130, 143 or 129 for a run that Ctrl-C, SIGTERM or SIGHUP ended, cleanly or at once.

    Args:
        arguments: the words after ``rlax-llm``; those of the process if not given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _do(words))


def _do(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
    elif words[0] == "--version":
        from importlib.metadata import version

        print(f"rlax-llm {version('rlax-llm')}")
    elif words[0] in COMMANDS:
        return _run(COMMANDS[words[0]], words[1:])
    else:
        hint = did_you_mean(words[0], COMMANDS, f"; there are {', '.join(COMMANDS)}.")
        raise ValueError(f"there is no command {words[0]!r}{hint}")
    return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
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


def _run(command: Command, words: Sequence[str]) -> int:
    """Do a command, and give its exit code: that of the signal which has ended its run, if one has."""
    config = parse(command.settings, words, command.description)
    module, name = command.run.split(":")
    with leaving_at_once():
        from rlax_llm.cli import compilation_cache

        compilation_cache.turn_on()
        run: Callable[[Any], object] = getattr(importlib.import_module(f"rlax_llm.commands.{module}"), name)
    try:
        done = run(config)
    except SystemExit as leave:
        raise RuntimeError(f"{command.settings.command}: something called sys.exit({leave.code!r}).") from leave
    number = getattr(done, "stopped_by", None)
    return 0 if number is None else 128 + number
