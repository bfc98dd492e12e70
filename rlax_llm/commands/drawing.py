"""What completions are drawn with: a model's shape and limits, and requests to train on and to measure with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.rollout_metrics import Tally
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.sampling_settings import SamplingSettings
from rlax_llm.commands.setup import build_greedy, build_request
from rlax_llm.commands.shared_settings import RolloutSettings
from rlax_llm.generation.prompts import Widths
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import Telling, generate, listener
from rlax_llm.generation.turns import Generate
from rlax_llm.models.functional import Params

Weights = Callable[[Params, int, bool], Params]
"""``(trained, steps taken, exact) → what completions are drawn from``; ``exact`` where nothing older will do, or
narrower.
"""


class Drawing(NamedTuple):
    """How a run draws completions.

    Attributes:
        sampling: the policy's shape and limits.
        narrow: the same for completions to learn from, whose number formats may be narrower.
        request: of completions to learn from.
        greedy: of completions to measure with.
        weights: what is drawn from, of the parameters that are trained.
        tally: counts what is read and guessed for completions to learn from.
    """

    sampling: Sampling
    narrow: Sampling
    request: Request
    greedy: Request
    weights: Weights
    tally: Tally


def build_drawing(
    settings: SamplingSettings,
    rollout: RolloutSettings,
    learner: Learner,
    generate: Generate = generate,
    weights: Weights | None = None,
) -> Drawing:
    """The drawing of the settings.

    Args:
        settings: of sampler and lengths.
        rollout: the completions to learn from.
        learner: the policy.
        generate: the engine's, one that calls tools, or a server's.
        weights: of the server; None takes the learner's own.

    Raises:
        ValueError: the sampler's choice of experts is asked for, of a model without any.
    """
    if rollout.routed and learner.config.experts is None:
        raise ValueError(
            f"router_replay is given, and {learner.name} is no mixture of experts, whose choice a learner could take "
            "over; leave it out."
        )
    limit = settings.max_prompt_tokens
    sampling = Sampling(learner.sampled_shape, learner.tokenizer, limit, generate, rollout.slots, Widths(limit))
    sampling = sampling._replace(stops=settings.stops)
    vocabulary = learner.config.vocab_size
    request = build_request(settings, learner.tokenizer, vocabulary, settings.max_new_tokens, rollout.drawn_size)
    greedy = request._replace(sampler=build_greedy(settings, vocabulary), group_size=1)
    request = request._replace(routed=rollout.routed)
    shape = dataclasses.replace(learner.sampled_shape, **rollout.formats)

    def own(params: Params, _: int, exact: bool) -> Params:
        return learner.sampled(params, None if exact else shape)

    tally = Tally()
    narrow = sampling._replace(config=shape, generate=heard(generate, tally))
    return Drawing(sampling, narrow, request, greedy, weights or own, tally)


def heard(complete: Generate, tally: Tally) -> Generate:
    """The engine's own generation with somebody who counts; another one as it is."""
    return complete if listener(complete) is None else Telling(tally)
