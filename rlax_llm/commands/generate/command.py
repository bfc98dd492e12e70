"""What the command line says of ``generate``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.generate.settings import GenerateSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        GenerateSettings,
        "rlax_llm.commands.generate.run:run_generate",
        "print a model's answer to a prompt",
        """Print a model's answer to a prompt as it is generated; chat models get the prompt in their chat template.

Examples:
  rlax-llm generate "What is the capital of France?"
  rlax-llm generate --model runs/demo/model "12+34="
  rlax-llm generate --temperature 0.8 --samples 3 "Tell me a story.\"""",
    ),
)
