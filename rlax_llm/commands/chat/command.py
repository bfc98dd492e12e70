"""What the command line says of ``chat``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.chat.settings import ChatSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        ChatSettings,
        "rlax_llm.commands.chat.run:run_chat",
        "talk with a model, turn by turn",
        """Talk with a model in the terminal, turn by turn; it reads the whole conversation in its chat template. Lines
are read from a pipe too.

Examples:
  rlax-llm chat
  rlax-llm chat --model runs/words/model --temperature 0
  rlax-llm chat --system "You answer in one word.\"""",
    ),
)
