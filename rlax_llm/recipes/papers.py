"""The named algorithms as the papers define them: the recipes themselves."""

from __future__ import annotations

from rlax_llm.recipes.group import (
    cispo,
    dapo,
    dppo_kl,
    dppo_tv,
    dr_grpo,
    gmpo,
    gpg,
    grpo,
    gspo,
    gspo_token,
    lite_ppo,
    luspo,
    opo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
    sapo,
    vespo,
)

__all__ = [
    "cispo",
    "dapo",
    "dppo_kl",
    "dppo_tv",
    "dr_grpo",
    "gmpo",
    "gpg",
    "grpo",
    "gspo",
    "gspo_token",
    "lite_ppo",
    "luspo",
    "opo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "rloo",
    "sapo",
    "vespo",
]
