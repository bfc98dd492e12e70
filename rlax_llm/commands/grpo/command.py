"""What the command line says of ``grpo``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        GrpoSettings,
        "rlax_llm.commands.grpo.run:run_grpo",
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
)
