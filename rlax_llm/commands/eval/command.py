"""What the command line says of ``eval``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        EvalSettings,
        "rlax_llm.commands.eval.run:run_eval",
        "measure a model on held-out prompts, or against another",
        """Measure what a model solves of held-out prompts, with intervals, alone or against another model.

Examples:
  rlax-llm eval --model runs/words/model --task arithmetic-words
  rlax-llm eval --model smollm2 --data gsm8k_test.jsonl math500.jsonl --by level --out runs/eval
  rlax-llm eval --model smollm2 --task reasoning-gym:algebra --size 50
  rlax-llm eval --model smollm2 --samples 8 --temperature 0.7
  rlax-llm eval --model runs/words/model --task arithmetic-words --against smollm2""",
    ),
)
