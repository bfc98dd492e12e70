"""What completions are drawn with: a model's shape and limits, and requests to train on and to measure with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.setup import build_greedy, build_request
from rlax_llm.commands.shared_settings import RolloutSettings, SamplingSettings
from rlax_llm.generation.prompts import Widths
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.turns import Generate
from rlax_llm.models.functional import Params

Weights = Callable[[Params, int, bool], Params]
"""``(trained, steps taken, latest) → what completions are drawn from``; ``latest`` where nothing older will do."""


class Drawing(NamedTuple):
    """How a run draws completions.

    Attributes:
        sampling: the policy's shape and limits.
        request: of completions to learn from.
        greedy: of completions to measure with.
        weights: what is drawn from, of the parameters that are trained.
    """

    sampling: Sampling
    request: Request
    greedy: Request
    weights: Weights


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
    """
    limit = settings.max_prompt_tokens
    sampling = Sampling(learner.sampled_shape, learner.tokenizer, limit, generate, rollout.slots, Widths(limit))
    sampling = sampling._replace(stops=settings.stops)
    vocabulary = learner.config.vocab_size
    request = build_request(settings, learner.tokenizer, vocabulary, settings.max_new_tokens, rollout.group_size)
    greedy = request._replace(sampler=build_greedy(settings, vocabulary), group_size=1)
    return Drawing(
        sampling,
        request,
        greedy,
        weights or (lambda params, *_: learner.sampled(params)),
    )
