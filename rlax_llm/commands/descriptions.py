"""What the help of several commands says of models, tasks, data and rewards."""

from __future__ import annotations

from collections.abc import Container

BASE_MODEL_HELP = (
    "Language model: 'char' (small character model, made on the spot), 'smollm2' (SmolLM2-135M-Instruct), "
    "a Hugging Face directory (RUN_DIR/model of a run too), a directory of adapters (RUN_DIR/model_adapter), a .gguf "
    "file, or a Hugging Face hub id."
)
TRAINED_MODEL_HELP = (
    "Language model: 'smollm2' (SmolLM2-135M-Instruct), a Hugging Face directory (RUN_DIR/model of a run), "
    "a directory of adapters (RUN_DIR/model_adapter), a .gguf file, or a Hugging Face hub id."
)
TASK_HELP = (
    "Prompts and their rewards: arithmetic (12+34=), arithmetic-words (for chat models) or reasoning-gym:NAME, with "
    "settings if wanted: arithmetic,largest=50 or reasoning-gym:chain_sum,min_terms=2; or your "
    "own as MODULE:FUNCTION or FILE.py:FUNCTION."
)
DATA_HELP = (
    "File of your own, instead of a task, or several in order: .jsonl, .json or .parquet, gzipped if wanted, in each "
    "row a 'prompt' and columns for the reward. Rows that cannot be used are left out, counted and named."
)
TASKS = ("arithmetic", "arithmetic-words", "reasoning-gym:")
REWARDS = ("exact_answer", "integer_answer", "math_answer", "format=", "words=", "repetition=")
"""Beginnings of what a shell completes."""
SPLIT_HELP = (
    "Split of a data set that has several, as those of the Hugging Face hub; one that has several configurations is "
    "named OWNER/NAME:CONFIGURATION."
)
INTEGERS_HELP = (
    "Ask for the sum of the integers in each 'answer' of the data, as m + n for m/n: a rule can check it (DAPO). "
    "Rows whose answer has no such form are left out."
)
REWARD_HELP = (
    "Reward, needed with --data: MODULE:FUNCTION or FILE.py:FUNCTION of signature f(prompts, completions, **columns) "
    "-> floats; exact_answer, integer_answer or math_answer (column 'answer'); format=REGEX, words=LIMIT or "
    "repetition=N; or a sum of them as 'integer_answer + 0.2*format=.*[0-9]', whose first tells right from wrong."
)
NORM_HELP = "Largest global gradient norm; 0 or inf is off."
KEEP_HELP = "How many of the last checkpoints are kept."
TIME_HELP = (
    "Hours until the run ends with a checkpoint, before a step that would end later; counted anew with --resume. Leave "
    "some time for the writing."
)
PROFILE_HELP = "Step, from 1, whose trace is written to profile/, for TensorBoard and Perfetto; the first compiles."
TRACK_HELP = (
    "Trackers that see the run too, one or several: tensorboard, wandb, trackio, mlflow, each with its package "
    "(pip install 'rlax-llm[wandb]'). 'none' switches them off where a run goes on. All stay on this machine unless "
    "their environment variables say otherwise."
)
RUN_MAY_CHANGE = ("steps", "keep_checkpoints", "max_hours", "profile", "track")
MAY_CHANGE = (*RUN_MAY_CHANGE, "mesh")
"""Settings of a run that may be others when it is gone on with: they change nothing of what it computes."""
ADDRESSES = ("sampler_url",)
"""Settings that may be others where a run had one: the same server may be found elsewhere."""
PROCESSES = ("coordinator", "process_id", "processes")
"""Settings of where a run is computed, which it does not keep."""


def may_change(names: Container[str]) -> str:
    """The flags of ``MAY_CHANGE`` that a command with settings of these names has.

    >>> may_change(RUN_MAY_CHANGE)
    'only --steps, --keep-checkpoints, --max-hours, --profile and --track may change'
    """
    *first, last = (f"--{name.replace('_', '-')}" for name in MAY_CHANGE if name in names)
    return f"only {', '.join(first)} and {last} may change"
