"""What the command line says of ``sft``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        SftSettings,
        "rlax_llm.commands.sft.run:run_sft",
        "train a language model on prompts and their answers",
        """Train a language model on prompts and their answers (supervised fine-tuning); only the answers' tokens count.

Examples:
  rlax-llm sft --steps 300 --out runs/warm
  rlax-llm sft --model smollm2 --data answers.jsonl
  rlax-llm sft --resume runs/warm --steps 600           go on, and further than first asked""",
    ),
)
