"""What the command line says of ``distill``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        DistillSettings,
        "rlax_llm.commands.distill.run:run_distill",
        "train a language model to predict as a teacher does",
        """Train a language model, the student, to predict as a teacher does: on completions of its own, on given ones,
or on both. The teacher is another model with the same tokenizer, what such a one said before (a file that
--write-teacher makes), or in self-distillation the student itself that reads an answer in its prompt.

Examples:
  rlax-llm distill --model runs/small/model --teacher runs/large/model
  rlax-llm distill --model my-student --teacher my-teacher --recipe gkd --beta 0.5 --data mine.jsonl
  rlax-llm distill --teacher my-teacher --write-teacher teacher.parquet --data mine.jsonl
  rlax-llm distill --model my-student --teacher teacher.parquet --recipe forward_kl
  rlax-llm distill --model my-student --recipe sdft     the teacher is the student that is shown the answer""",
    ),
)
