"""Defaults that follow from the model: a small character model learns in other steps than a pretrained one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHARACTER_WIDTH = 128
"""Of the character model."""
WARM_START_LEARNING_RATE = 2e-3
"""Of the character model's supervised training."""
SUPERVISED_BATCH_SIZE = {True: 128, False: 16}
"""Rows per supervised step, of a small model and of another."""

_SMALL: dict[str, Any] = {
    "batch_size": SUPERVISED_BATCH_SIZE[True],
    "group_size": 8,
    "max_prompt_tokens": 32,
    "max_new_tokens": 6,
    "steps": 280,
    "learning_rate": 1e-3,
    "eval_every": 20,
    "eval_size": 256,
    "remat": False,
}
_LARGE: dict[str, Any] = {
    "batch_size": SUPERVISED_BATCH_SIZE[False],
    "group_size": 8,
    "max_prompt_tokens": 512,
    "max_new_tokens": 64,
    "steps": 100,
    "learning_rate": 1e-5,
    "eval_every": 10,
    "eval_size": 128,
    "remat": True,  # no slower on a CPU (the memory of stored activations costs as much), and it fits elsewhere
}
_SMALL_BY_COMMAND: dict[str, dict[str, Any]] = {
    "sft": {"steps": 500, "learning_rate": WARM_START_LEARNING_RATE},
    "reward": {"steps": 300, "learning_rate": 1e-3},
    "dpo": {"steps": 200, "learning_rate": 1e-4},
    "kto": {"steps": 200, "learning_rate": 1e-4},
    "ppo": {"batch_size": 256, "group_size": 1, "learning_rate": 3e-4},
    "distill": {"group_size": 1},
    "online": {"learning_rate": 3e-4},
}
_LARGE_BY_COMMAND: dict[str, dict[str, Any]] = {
    "grpo": {"batch_size": 8},
    "sft": {"steps": 500, "learning_rate": 2e-5},
    "reward": {"max_new_tokens": 256, "learning_rate": 1e-5},
    "dpo": {"max_new_tokens": 256, "learning_rate": 1e-6},
    "kto": {"max_new_tokens": 256, "learning_rate": 1e-6},
    "ppo": {"batch_size": 32, "group_size": 1, "learning_rate": 3e-6},
    "distill": {"group_size": 1},
    "online": {"learning_rate": 1e-6},
}
_WARM_START_STEPS = 136  # of 'char'
_ADAPTERS_FASTER = 10.0  # few parameters that start at 0 want larger steps (arXiv 2106.09685, appendix D)


def model_defaults(command: str, given: Mapping[str, Any], model: str = "char") -> dict[str, Any]:
    """What a command's settings are for the model that is given, by name; more than the command may have.

    Args:
        command: its name.
        given: by name.
        model: where none is given.

    >>> model_defaults("grpo", {})["batch_size"], model_defaults("grpo", {"model": "smollm2"})["batch_size"]
    (128, 8)
    """
    model = given.get("model", model)
    small = is_small(model)
    chosen = dict(_SMALL if small else _LARGE)
    chosen |= (_SMALL_BY_COMMAND if small else _LARGE_BY_COMMAND).get(command, {})
    chosen["warm_start_steps"] = _WARM_START_STEPS if model == "char" else 0
    rank = given.get("lora_rank", 0)
    chosen["lora_alpha"] = 2.0 * rank
    chosen["base_dtype"] = given.get("dtype", "float32") if rank else "float32"
    if rank:
        chosen["learning_rate"] *= _ADAPTERS_FASTER
    if any(given.get(name) is not None for name in ("data", "eval_data", "eval_split")):
        chosen["eval_size"] = None  # as the data is read: a share of it, or all of that file or split
    return chosen


def is_small(model: str) -> bool:
    """Whether this is the character model, or a checkpoint of it, which a pretrained model's rates would not move.

    Args:
        model: a name or a directory.
    """
    if model == "char":
        return True
    try:
        if not Path(model).is_dir():
            return False
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False
    from rlax_llm.data.arithmetic import ALPHABET  # here: models need JAX
    from rlax_llm.models.loading import local_fields
    from rlax_llm.models.tokenizer import Tokenizer

    found = local_fields(model)
    shape = (Tokenizer.characters(ALPHABET).vocab_size, CHARACTER_WIDTH)
    return (found.get("vocab_size"), found.get("hidden_size")) == shape
