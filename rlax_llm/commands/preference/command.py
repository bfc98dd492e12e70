"""What the command line says of ``reward``, ``dpo``, ``kto``; without JAX, which is imported once a command runs."""

from __future__ import annotations

from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        RewardSettings,
        "rlax_llm.commands.preference.run:run_reward",
        "train a reward model on preference pairs or labeled steps",
        """Train a reward model: a language model whose head is replaced by one number, read at a completion's last
token, which is to be larger for the chosen completion of a pair than for the rejected one (Bradley-Terry). With
--process it is read at the last token of each step, and says whether the step is right (a process reward model).

Examples:
  rlax-llm reward                                       a small character model learns to tell right sums from wrong
  rlax-llm reward --model smollm2 --data pairs.jsonl --lora-rank 16 --out runs/judge
  rlax-llm reward --process --model smollm2 --data steps.jsonl --out runs/steps""",
    ),
    Command(
        DpoSettings,
        "rlax_llm.commands.preference.run:run_dpo",
        "train a language model on preference pairs",
        """Train a language model on preference pairs, without a reward model: DPO and its relatives.

Examples:
  rlax-llm dpo --model runs/warm/model                  right sums preferred to wrong ones
  rlax-llm dpo --model smollm2 --data pairs.jsonl --lora-rank 16
  rlax-llm dpo --data pairs.parquet --recipe simpo --beta 2.5
  rlax-llm dpo --data pairs.jsonl --recipe dpo:0.8,bco:0.2 --nll-coef 1""",
    ),
    Command(
        KtoSettings,
        "rlax_llm.commands.preference.run:run_kto",
        "train a language model on labeled completions",
        """Train a language model on completions that are labeled desirable or not (KTO); no pairs are needed.

Examples:
  rlax-llm kto --model runs/warm/model                  right sums desirable, wrong ones not
  rlax-llm kto --model smollm2 --data labels.jsonl --desirable-weight 4 --lora-rank 16""",
    ),
)
