"""A model as lm-evaluation-harness takes one; its package, ``lm-eval``, is imported where one is asked for."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlax_llm.commands.setup import build_model
from rlax_llm.commands.shared_settings import ModelSettings
from rlax_llm.core.mesh import fetch
from rlax_llm.core.types import Completions
from rlax_llm.data.batches import demonstration_rows
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import stream
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.models.functional import Params
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.scoring import group_logits, row_log_probs

Dtype = Literal["float32", "bfloat16"]

_LONGEST = 2048  # tokens of a row, where the model reads more
_NEW_TOKENS = 256  # of an answer, where the task says nothing


def harness_model(
    model: str, batch_size: int = 8, dtype: Literal["float32", "bfloat16"] = "float32", seed: int = 0
) -> Any:
    """A model for ``lm_eval.simple_evaluate(model=…)``, an instance of its class ``LM``.

    Args:
        model: a name, as ``--model`` takes it.
        batch_size: rows that are computed together.
        dtype: number format of the parameters and of the computation.
        seed: of the draws of tasks that sample.

    Raises:
        ValueError: ``lm-eval`` is not installed; as ``build_model``.
    """
    try:
        base = importlib.import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise ValueError(f"harness_model: lm-eval is not installed ({error}); pip install lm-eval.") from error
    scorer = Scorer(build_model("harness", ModelSettings(model=model, dtype=dtype), seed), batch_size, seed)

    class HarnessModel(base):
        """Requests as texts, and answers from the scorer."""

        tokenizer_name = model.replace("/", "__")

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return scorer.continuations([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [scorer.whole_text(request.args[0]) for request in requests]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [scorer.answer(*request.args) for request in requests]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return scorer.model.tokenizer.prompt_text(chat_history)

    return HarnessModel()


class Scorer:
    """Log-likelihoods and answers of texts as they are, without a chat template.

    Args:
        model: that scores.
        batch_size: rows that are computed together.
        seed: of draws.
    """

    def __init__(self, model: LanguageModel, batch_size: int = 8, seed: int = 0):
        self.model, self.batch_size = model, batch_size
        self._longest = min(model.config.max_positions, _LONGEST)
        self._keys = (jax.random.fold_in(jax.random.key(seed), count) for count in itertools.count())
        self._continued = lru_cache(lambda width: jax.jit(_continued(model, width)))
        self._log_probs = jax.jit(lambda params, rows: row_log_probs(model.config)(params, rows)[0].sum(-1))

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each continuation its log-likelihood after its context, nats, and whether it is the greedy one.

        Args:
            pairs: of context and continuation; a blank between them belongs to the continuation.
        """
        rows = [self._pair(*pair) for pair in pairs]
        # Rows of alike lengths together: few widths, little padding.
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index].completion), len(rows[index].prompt)))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            own = order[start : start + self.batch_size]
            filled = [rows[index] for index in own] + [rows[own[0]]] * (self.batch_size - len(own))
            batch = demonstration_rows(filled, self.model.tokenizer.pad_id)
            sums, same = fetch(self._continued(batch.prompt_width)(self.model.params, batch.completions))
            found |= {index: (float(sums[row]), bool(same[row])) for row, index in enumerate(own)}
        return [found[index] for index in range(len(rows))]

    def whole_text(self, text: str) -> float:
        """The log-likelihood of a whole text after the token that begins texts, nats.

        What is longer than the model reads is taken in windows; each token is predicted once, in a row's last window
        behind as much context as there is room for.

        Args:
            text: of any length.
        """
        ids = self.model.tokenizer.encode(text)
        size, total = self._longest - 1, 0.0
        for start in range(0, len(ids), size):
            end = min(start + size, len(ids))
            before = ids[max(end - size - 1, 0) : start] or self._first()
            rows = demonstration_rows([DemonstrationTokens(before, ids[start:end])], self.model.tokenizer.pad_id)
            total += float(self._log_probs(self.model.params, rows.completions)[0])
        return total

    def answer(self, context: str, settings: Mapping[str, Any]) -> str:
        """What the model writes after a text, up to the first of the texts that end it, which is left out.

        Args:
            context: that it reads.
            settings: of the task: ``until``, ``max_gen_toks``, ``do_sample``, ``temperature``, ``top_p``, ``top_k``.
        """
        until = settings.get("until") or []
        ends = [end for end in ([until] if isinstance(until, str) else until) if end]
        limit = min(int(settings.get("max_gen_toks", _NEW_TOKENS)), self._longest // 2)
        ids = self._begun(context)[limit - self._longest :]
        tokenizer, config = self.model.tokenizer, self.model.config
        prompts = pad_prompts([ids], tokenizer.pad_id, config.vocab_size)
        room = min(limit, config.max_positions - prompts[0].shape[1])
        request = Request(_sampler(settings), tokenizer.eos_ids, room)
        text = ""
        for state in stream(config, self.model.params, prompts, next(self._keys), request):
            tokens, lengths = fetch((state.tokens, state.lengths))
            text = tokenizer.decode(tokens[0, : lengths[0]])
            if any(end in text for end in ends):
                break
        return text[: min((text.index(end) for end in ends if end in text), default=len(text))]

    def _pair(self, context: str, continuation: str) -> DemonstrationTokens:
        blank = context[len(context.rstrip()) :]
        context, continuation = context.rstrip(), blank + continuation
        whole = self._begun(context + continuation)
        read = self._begun(context)
        if not context or whole[: len(read)] != read:
            # A token lies across the boundary, or nothing stands before it: each side is encoded alone.
            read = read or self._first()
            whole = read + self.model.tokenizer.encode_inside(continuation)
        completion = whole[len(read) :][-(self._longest - 1) :]
        return DemonstrationTokens(read[len(completion) - self._longest :], completion)

    def _begun(self, text: str) -> list[int]:
        return self.model.tokenizer.begun(self.model.tokenizer.encode(text)) if text else []

    def _first(self) -> list[int]:
        """What stands before a text that begins: the token for it, or, as in the harness, one that ends a text."""
        bos = self.model.tokenizer.bos_id
        return [self.model.tokenizer.eos_ids[0] if bos is None else bos]


def _continued(model: LanguageModel, prompt_width: int) -> Any:
    logits = group_logits(model.config, (1, prompt_width))

    def sums(params: Params, rows: Completions) -> tuple[jax.Array, jax.Array]:
        found = logits(params, rows)
        tokens, mask = (x[:, -found.shape[1] :] for x in (rows.tokens, rows.mask))
        own = jnp.take_along_axis(jax.nn.log_softmax(found, axis=-1), tokens[..., None], axis=-1)[..., 0]
        return jnp.where(mask, own, 0.0).sum(-1), ((found.argmax(-1) == tokens) | ~mask).all(-1)

    return sums


def _sampler(settings: Mapping[str, Any]) -> Any:
    temperature = float(settings.get("temperature", 0.0) or 0.0)
    if temperature == 0 or not settings.get("do_sample", True):
        return greedy
    return Categorical(temperature, settings.get("top_k") or None, settings.get("top_p"))
