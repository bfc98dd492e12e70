"""What is asked of a generation, and whether a model can give it."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from rlax_llm.core import checks
from rlax_llm.core.penalties import NONE, Penalties, check_penalties
from rlax_llm.core.speculation import Speculation
from rlax_llm.generation.automata import Automaton
from rlax_llm.generation.cache import Columns, windowed
from rlax_llm.generation.sampling import Sampler
from rlax_llm.models.config import DecoderConfig


class Request(NamedTuple):
    """What is static in a generation; part of the compilation's key.

    Attributes:
        sampler: ``(keys [B], logits [B, V]) → Draw``; hashable (``greedy``, ``Categorical(...)`` or a function).
        stop_ids: tokens that end a completion; the one drawn belongs to it. The first fills what stands behind.
        max_new_tokens: the longest completion, tokens.
        group_size: samples of each prompt, G.
        min_new_tokens: the fewest tokens of a completion: no stop token can be drawn before, whatever the sampler, and
            no automaton ends it.
        penalties: of tokens that were there before, between the sampler's bias and its temperature.
        automata: that read the completion: stop texts end it, patterns say what may be drawn.
        speculation: whether tokens are guessed, which changes no distribution; None is not.
        keeps: columns of keys that each layer keeps: ``windowed``, or ``whole``; they change no distribution either.
        routed: whether completions say which experts their tokens were sent to, for a learner to send them there too.
    """

    sampler: Sampler
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    group_size: int = 1
    min_new_tokens: int = 0
    penalties: Penalties = NONE
    automata: tuple[Automaton, ...] = ()
    speculation: Speculation | None = None
    keeps: Columns = windowed
    routed: bool = False

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
        ValueError: for a longest completion or a group below 1; where prompt and completion could exceed the model's
            ``max_positions``, or ``min_new_tokens`` the longest completion; for stop ids or automata of another
            vocabulary, penalties that the sampler does not take, and experts that the model does not have.
    """
    limit = request.max_new_tokens
    least = request.min_new_tokens
    checks.at_least_one("generate", max_new_tokens=limit, group_size=request.group_size)
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
    if request.speculation is not None and request.speculation.drafts < 1:
        raise ValueError(
            f"generate: speculation has drafts {request.speculation.drafts}, wanted at least 1; None guesses nothing."
        )
    if request.routed and config.experts is None:
        raise ValueError("generate: routed is asked for, and the model has no experts to tell of; leave it out.")
    _check_automata(config.vocab_size, request)
    _check_penalties(request)


def refuse_routed(where: str, request: Request, completions: str) -> None:
    """Raise where the experts of tokens are asked for and not kept.

    Args:
        where: who does not keep them.
        request: what is asked.
        completions: what they would be of, for the message.

    Raises:
        ValueError: they are asked for.

    >>> from rlax_llm.generation.sampling import greedy
    >>> refuse_routed("with_tools", Request(greedy, (0,), 5, routed=True), "completions of several turns")
    Traceback (most recent call last):
    ValueError: with_tools: routed is asked for, and completions of several turns do not say which experts their tokens
    were sent to; leave one out.
    """
    if request.routed:
        raise ValueError(
            f"{where}: routed is asked for, and {completions} do not say which experts their tokens were sent to; "
            "leave one out."
        )


def _check_automata(vocabulary: int, request: Request) -> None:
    beyond = [token for token in request.stop_ids if not 0 <= token < vocabulary]
    if beyond:
        raise ValueError(f"generate: stop_ids has {beyond[0]}, the vocabulary has {vocabulary}; give ids below that.")
    for automaton in request.automata:
        if len(automaton.classes) != vocabulary:
            raise ValueError(
                f"generate: an automaton reads {len(automaton.classes)} tokens, the vocabulary has {vocabulary}; make "
                "it of the bytes of all of them."
            )
    forbidding = [automaton for automaton in request.automata if automaton.forbids]
    if len(forbidding) > 1 or (forbidding and request.min_new_tokens):
        other = "another" if len(forbidding) > 1 else "min_new_tokens"
        raise ValueError(f"generate: a pattern and {other} may leave no token to draw; give one of them.")


def _check_penalties(request: Request) -> None:
    check_penalties("generate", request.penalties)
    if request.penalties == NONE:
        return
    try:
        inspect.signature(request.sampler).bind(None, None, penalize=None)
    except TypeError:
        raise ValueError(
            "generate: there are penalties, and the sampler takes none; give it a parameter penalize, a function of "
            "logits that it calls before its temperature."
        ) from None
