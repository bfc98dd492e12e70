"""Reinforcement learning for language models as pure JAX functions.

``import rlax_llm as rl`` gives the flat public face: ``rl.grpo()``, ``rl.policy_loss``, ``rl.z_score``, ``rl.clip``,
``rl.k3``, ``rl.token_log_probs``, ``rl.generate``, ``rl.load_model``, ``rl.group_loop``. Each name is imported when
it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "checks": (),
    "generation.engine": ("Request", "generate", "stream"),
    "generation.prompts": ("pad_prompts",),
    "generation.sampling": ("Categorical", "Draw", "greedy"),
    "groups": ("centred", "kl_in_score", "leave_one_out", "per_group", "z_score"),
    "kl": ("k1", "k2", "k3", "kl_penalty"),
    "log_probs": ("token_log_probs",),
    "models.config": ("DecoderConfig", "LinearRope", "Llama3Rope"),
    "models.functional": ("functional",),
    "models.huggingface": ("write_model",),
    "models.loading": ("LanguageModel", "load_model"),
    "models.scoring": ("group_log_probs", "row_log_probs"),
    "models.tokenizer": ("Tokenizer",),
    "objectives": ("Objective", "policy_loss"),
    "ratios": ("token_ratio",),
    "recipes": ("dapo", "dr_grpo", "grpo", "rloo"),
    "train.policy": ("TrainState", "group_loop", "policy_loop", "supervised_loop"),
    "trust_regions": ("clip", "score_function", "unclipped"),
    "types": ("Completions", "PolicyBatch", "Scored"),
    "weightings": ("fixed_length", "sequence_mean", "sequence_sum", "token_mean"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'rlax_llm' has no attribute {name!r}")
    value = getattr(import_module(f"rlax_llm.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
