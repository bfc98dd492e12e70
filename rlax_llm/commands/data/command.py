"""What the command line says of ``data``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.data.settings import DataSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        DataSettings,
        "rlax_llm.commands.data.run:run_data",
        "show what a training command makes of a file",
        """Show what a training command makes of a file, before it trains: its columns, the text that the model reads,
which tokens it learns from, how long rows are, and which are left out and why.

Examples:
  rlax-llm data train.jsonl
  rlax-llm data train.jsonl test.jsonl --model runs/words/model --use sft --max-new-tokens 256
  rlax-llm data HuggingFaceH4/ultrachat_200k --split train_sft --rows 1""",
    ),
)
