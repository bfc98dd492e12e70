"""What the command line says of ``online``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        OnlineSettings,
        "rlax_llm.commands.online.run:run_online",
        "train a language model on preferences among its own completions",
        """Train a language model on preferences among completions that are drawn on the way: rewards or a reward model
order them. They are all the model's own, or stand against those of a rival, the reference or a mixture with it.

Examples:
  rlax-llm online                                       two answers to each sum, the right one preferred
  rlax-llm online --model smollm2 --data mine.jsonl --reward-model runs/judge/model
  rlax-llm online --recipe nash_md --mixture 0.5 --kl-coef 0.05 --model smollm2 --task arithmetic-words
  rlax-llm online --recipe raft --group-size 16         supervised steps on the best of 16""",
    ),
)
