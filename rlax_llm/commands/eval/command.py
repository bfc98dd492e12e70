"""What the command line says of ``eval``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        EvalSettings,
        "rlax_llm.commands.eval.run:run_eval",
        "measure a model on held-out prompts",
        """Measure a model's reward and accuracy on held-out prompts.

Examples:
  rlax-llm eval --model runs/words/model --task arithmetic-words
  rlax-llm eval --model smollm2 --task reasoning-gym:chain_sum --size 100
  rlax-llm eval --model smollm2 --samples 4 --temperature 0.7 --out runs/eval""",
    ),
)
