"""Who teaches: another model, adapters over the student's base, or a file of what a teacher said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.setup import computed_in
from rlax_llm.commands.shared_settings import TrainedModelSettings
from rlax_llm.core.buckets import TopTokens
from rlax_llm.core.processes import told_to_all
from rlax_llm.core.trees import join_trees
from rlax_llm.data.batches import demonstration_rows
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.data.messages import Text, asked_as
from rlax_llm.data.teacher_rows import Said, TeacherRow, fingerprint, write_teacher_rows
from rlax_llm.loops.distillation import Joined, by_itself
from rlax_llm.models.adapter_files import base_name, is_adapter, read_adapter
from rlax_llm.models.blocks import is_quantized
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.distilling import row_top_tokens
from rlax_llm.models.functional import Params
from rlax_llm.models.loading import LanguageModel, check_same_vocabulary, load_model
from rlax_llm.models.lora import under_adapter
from rlax_llm.models.sharding import check_divides, placed
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.policy.distillation import Attempt, Prompting


class Teacher(NamedTuple):
    """A teacher as a run asks it.

    Attributes:
        config: its shapes.
        params: a step's ``reference``; None where the student teaches itself, or a file does.
        joined: what makes all of it of them and of the student's frozen base.
    """

    config: DecoderConfig
    params: Params | None = None
    joined: Joined = by_itself


STORED_TOKENS = 64
"""Likeliest tokens that are written at each place where nobody says how many."""


def load_teacher(path: str, settings: TrainedModelSettings, learner: Learner) -> Teacher:
    """The teacher of a directory or a name.

    Args:
        path: as ``load_model`` takes it.
        settings: of the student's model.
        learner: the student.

    Raises:
        ValueError: for one of another vocabulary, or that cannot be read.
    """
    dtype = jnp.dtype(settings.dtype)
    if shares_base(path, settings, learner):
        teacher = told_to_all(lambda: adapters_over(path, learner))
        return teacher._replace(params=placed(teacher.params))
    loaded = told_to_all(lambda: load_model(path, dtype))
    check_same_vocabulary(learner.tokenizer, loaded.tokenizer, "teacher")
    check_divides(path, loaded.config)
    loaded = computed_in(settings.dtype, loaded, settings.attention)
    return Teacher(loaded.config, placed(loaded.params))


def shares_base(path: str, settings: TrainedModelSettings, learner: Learner) -> bool:
    """Whether a teacher is adapters over the student's frozen base, which is then held once.

    Adapters were trained over the wide base, so over one in blocks the teacher is loaded whole; and over one of which
    parts are trained.

    Args:
        path: as ``load_model`` takes it.
        settings: of the student's model.
        learner: the student.
    """
    frozen = learner.frozen is not None and not is_quantized(learner.frozen)
    return frozen and not settings.saved and _is_over(path, settings.model)


def adapters_over(path: str, learner: Learner) -> Teacher:
    """A teacher that is adapters over the student's frozen base.

    Args:
        path: of their directory.
        learner: the student.

    Raises:
        ValueError: for adapters that cannot be read.
    """
    config, adapter = read_adapter(path, learner.shape)
    return Teacher(config, adapter, partial(_over, config))


def _over(config: DecoderConfig, adapter: Params, base: Params) -> Params:
    """The teacher's adapters with what they leave of the base."""
    return join_trees(adapter, under_adapter(config, base, adapter))


def _is_over(adapter: str, model: str) -> bool:
    """Whether a directory holds adapters over this model."""
    if not Path(adapter).is_dir() or not is_adapter(adapter):
        return False
    base = base_name(adapter)
    return base == model or Path(base).resolve() == Path(model).resolve()


def write_teacher(path: str, k: int, model: LanguageModel, rows: Sequence[DemonstrationTokens], size: int) -> int:
    """Ask a teacher at every token of completions, write its likeliest tokens, and give back the number of rows.

    Args:
        path: of the file.
        k: tokens at each place.
        model: the teacher.
        rows: prompts and completions.
        size: rows at a time.

    Raises:
        ValueError: for a k beyond the vocabulary.
        OSError: the file cannot be written.
    """
    if k > model.config.vocab_size:
        raise ValueError(
            f"distill: teacher_top_k is {k}, and the teacher's vocabulary has {model.config.vocab_size} tokens; give "
            "at most those."
        )
    said = Said(fingerprint(model.tokenizer), k, 1.0)
    return write_teacher_rows(path, said, _asked(k, model, rows, size))


def _asked(k: int, model: LanguageModel, rows: Sequence[DemonstrationTokens], size: int) -> Iterator[list[TeacherRow]]:
    asked = jax.jit(row_top_tokens(model.config, k))
    for start in range(0, len(rows), size):
        taken = list(rows[start : start + size])
        filled = taken + [taken[-1]] * (size - len(taken))  # so that no further shape is compiled
        batch = demonstration_rows(filled, model.tokenizer.pad_id)
        found = jax.device_get(asked(model.params, batch.completions))
        width = batch.prompt_width
        yield [
            TeacherRow(
                row.prompt,
                row.completion,
                found.ids[place, width : width + len(row.completion)],
                found.log_probs[place, width : width + len(row.completion)],
            )
            for place, row in enumerate(taken)
        ]


def stored_tokens(rows: Sequence[TeacherRow], width: int, columns: int) -> TopTokens:
    """What a teacher said of rows, in the layout of their tokens: zeros where it said nothing.

    Args:
        rows: of a batch.
        width: the columns that hold prompts.
        columns: all.
    """
    k = rows[0].ids.shape[-1]
    ids = np.zeros((len(rows), columns, k), np.int32) + np.arange(k, dtype=np.int32)
    log_probs = np.zeros((len(rows), columns, k + 1), np.float32)
    for place, row in enumerate(rows):
        ids[place, width : width + len(row.ids)] = row.ids
        log_probs[place, width : width + len(row.ids)] = row.log_probs
    return TopTokens(jnp.asarray(ids), jnp.asarray(log_probs))


def check_positions(longest: int, config: DecoderConfig) -> None:
    """Raise where a teacher would have to read more than its positions reach.

    Args:
        longest: tokens of a row.
        config: the teacher's.

    Raises:
        ValueError: it would.
    """
    if longest > config.max_positions:
        raise ValueError(
            f"distill: the teacher reads rows of up to {longest} tokens, beyond its {config.max_positions} positions; "
            "lower max_prompt_tokens or max_new_tokens, or max_feedback_tokens where it is shown feedback."
        )


def teacher_prompts(prompting: Prompting, attempts: Sequence[Attempt]) -> list[Text | None]:
    """What a teacher is asked for each attempt; None where it would read no more than the student.

    Of a conversation the question says it.

    Args:
        prompting: what is shown, and how.
        attempts: of one prompt, which is their column of that name.

    >>> from rlax_llm.policy.distillation import after_example, solved_attempt
    >>> attempts = [Attempt({"prompt": "2+3="}, "5", True), Attempt({"prompt": "2+3="}, "6", False)]
    >>> teacher_prompts(Prompting(solved_attempt, after_example), attempts)
    [None, '2+3=5\\n2+3=']
    """
    pairs = zip(attempts, prompting.hints(attempts), strict=True)
    return [None if hint is None else _shown(prompting, attempt.columns["prompt"], hint) for attempt, hint in pairs]


def _shown(prompting: Prompting, prompt: Text, hint: str) -> Text:
    return asked_as(prompt, lambda question: prompting.write(question, hint))


def ending(tokenizer: Tokenizer, text: str, limit: int) -> str:
    """The end of a text, where it has more tokens than a limit.

    Args:
        tokenizer: of both models.
        text: feedback.
        limit: tokens.

    Raises:
        ValueError: the tokenizer has no tokens for it.

    >>> ending(Tokenizer.characters("ab"), "aab", 2)
    'ab'
    """
    try:
        tokens = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(
            f"distill: the model has no tokens for what a reward, or the column feedback, says: {error}"
        ) from error
    return text if len(tokens) <= limit else tokenizer.decode(np.asarray(tokens[-limit:]))


def written_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of what a teacher is asked.

    Args:
        tokenizer: of both models.
        texts: prompts.
    """
    return [tokenizer.encode_prompt(text) for text in texts]
