"""What the command line says of ``control``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        ControlSettings,
        "rlax_llm.commands.control.run:run_control",
        "train policies in an environment, over many seeds at once",
        """Train policies in an environment, over many seeds in one compiled program, and evaluate them greedily.
Settings left open are tuned for the recipe and the environment. Ctrl-C ends a run cleanly.

Examples:
  rlax-llm control                                      PPO learns CartPole with 8 seeds
  rlax-llm control --env Pendulum-v1 --recipe trpo --seeds 16 --render
  rlax-llm control --recipe reinforce --weight td_residual --steps 100000
  rlax-llm control --config mine.yaml --learning-rate 1e-3
  rlax-llm control --resume runs/mine                   go on with a run that was interrupted""",
    ),
)
