"""What is asked of a generation, and whether a model can give it."""

from __future__ import annotations

from typing import NamedTuple

from rlax_llm.generation.sampling import Sampler
from rlax_llm.models.config import DecoderConfig


class Request(NamedTuple):
    """What is static in a generation; part of the compilation's key.

    Attributes:
        sampler: ``(keys [B], logits [B, V]) → Draw``; hashable (``greedy``, ``Categorical(...)`` or a function).
        stop_ids: tokens that end a completion; the one drawn belongs to it.
        max_new_tokens: the longest completion, tokens.
        group_size: samples of each prompt, G.
        min_new_tokens: the fewest tokens of a completion: no stop token can be drawn before, whatever the sampler.
    """

    sampler: Sampler
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    group_size: int = 1
    min_new_tokens: int = 0

    @property
    def filler(self) -> int:
        """What stands behind the end of a completion."""
        return self.stop_ids[0] if self.stop_ids else 0


def check_request(config: DecoderConfig, width: int, request: Request) -> None:
    """Raise where a model cannot do what is asked.

    Args:
        config: shapes.
        width: columns of the prompts.
        request: what is asked.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion.
    """
    limit = request.max_new_tokens
    least = request.min_new_tokens
    if width + limit > config.max_positions:
        raise ValueError(
            f"generate: a prompt of {width} tokens and max_new_tokens {limit} make {width + limit}, the model was "
            f"trained for max_positions {config.max_positions}; shorten the prompts or lower max_new_tokens."
        )
    if not 0 <= least <= limit:
        raise ValueError(
            f"generate: min_new_tokens is {least}, wanted a number from 0 to max_new_tokens, {limit}; change one of "
            "them."
        )
    if least and len(set(request.stop_ids)) >= config.vocab_size:
        raise ValueError(
            f"generate: min_new_tokens is {least} and all {config.vocab_size} tokens are stop tokens; leave it out."
        )
