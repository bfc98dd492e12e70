"""What the command line says of ``ppo``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        PpoSettings,
        "rlax_llm.commands.ppo.run:run_ppo",
        "train a language model by PPO against a reward model",
        """Train a language model by PPO with four models: the policy, a value model, a frozen reference that the policy
is kept close to, and a reward model (or reward functions, or both).

Examples:
  rlax-llm ppo                                          a small character model learns to add
  rlax-llm ppo --model runs/warm/model --reward-model runs/judge/model
  rlax-llm ppo --model smollm2 --data prompts.jsonl --reward my_rewards:score --lora-rank 16
  rlax-llm ppo --recipe vapo                            groups, a length-adaptive λ, the likelihood of good completions
  rlax-llm ppo --resume runs/mine                       go on with a run that was interrupted""",
    ),
)
