"""Completions of a geometric mixture of two policies, ``π^(1 − m) · μ^m`` token by token, normalized at each.

Both models read every token, each with a cache of its own; their logits are added up before the sampler sees them, so
temperature, cuts, stop texts and patterns mean what they mean of one model.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.mesh import ROWS, spread
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import Cache, without_groups
from rlax_llm.generation.draws import first_memory
from rlax_llm.generation.engine import drawn, forward_token, shared_out, unrolled
from rlax_llm.generation.prompts import Prompts, check_prompts
from rlax_llm.generation.reading import read
from rlax_llm.generation.request import Request, check_request, refuse_routed
from rlax_llm.generation.sampling import row_keys
from rlax_llm.generation.state import Decoding, Prefilled, before_first, completions, kept_prompts
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import vocabulary_logits
from rlax_llm.models.functional import Params


class Two(NamedTuple):
    """Two models that complete the same rows.

    Attributes:
        policy: parameters.
        other: parameters of the same shapes, the reference's as a rule.
    """

    policy: Params
    other: Params


class _Mixing(NamedTuple):
    """What changes from token to token.

    Attributes:
        state: of the rows, with the policy's cache.
        cache: of the other model.
    """

    state: Decoding
    cache: Cache


@check_arguments
def generate_mixed(
    config: DecoderConfig,
    models: Two,
    prompts: Prompts,
    key: jax.Array,
    request: Request,
    share: float | jax.Array,
) -> Completions:
    """Completions drawn from ``softmax((1 − m) · logits of the policy + m · logits of the other)``.

    Limiting cases: m = 0 draws the policy's completions, m = 1 the other's, those of ``generate_at_once`` for the same
    key; two equal models draw their own for any m.

    Args:
        config: shapes of both.
        models: whose completions.
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        key: a typed PRNG key, or one for each of the ``P · G`` completions.
        request: sampler, stop tokens, longest completion, group size.
        share: m, from 0 to 1; may be traced.

    Returns:
        ``Completions`` of ``P · G`` rows and ``W + max_new_tokens`` columns, with the mixture's log-probabilities.

    Raises:
        ValueError: for a share out of its range; as ``generate_at_once``.
    """
    checks.not_negative("generate_mixed", share=share, **{"1 − share": 1 - share})
    check_prompts("generate_mixed", prompts)
    check_request(config, prompts[0].shape[1], request)
    refuse_routed("generate_mixed", request, "completions of two models")
    shared, request = shared_out(prompts, request)
    tokens, valid = map(jnp.asarray, shared)
    state = _decoded(config, models, (tokens, valid), key, request, jnp.asarray(share, jnp.float32))
    return completions(tokens, valid, state, request)


@partial(jax.jit, static_argnums=(0, 4))
def _decoded(
    config: DecoderConfig,
    models: Two,
    prompts: tuple[jax.Array, jax.Array],
    key: jax.Array,
    request: Request,
    share: jax.Array,
) -> Decoding:
    """The rows when none goes on."""
    hiddens, prefilled = zip(*(_read(config, params, prompts, request) for params in models), strict=True)
    models = Two(*(unrolled(config, params) for params in models))
    memory = first_memory(request, *prompts, config.vocab_size)
    keys = row_keys(key, prompts[0].shape[0] * request.group_size)
    state = before_first(config, request, (keys, None, memory), request.max_new_tokens, hiddens[0].dtype)
    state = state._replace(cache=without_groups(state.cache))

    def draw(state: Decoding, hiddens: tuple[jax.Array, ...]) -> Decoding:
        policy, other = (vocabulary_logits(config, *pair) for pair in zip(models, hiddens, strict=True))
        return drawn(spread((1 - share) * policy + share * other, ROWS), state, request)

    def body(mixing: _Mixing) -> _Mixing:
        caches = mixing.state.cache, mixing.cache
        found = [
            forward_token(config, params, prompt, mixing.state._replace(cache=cache))
            for params, prompt, cache in zip(models, prefilled, caches, strict=True)
        ]
        hiddens, (own, other) = zip(*found, strict=True)
        return _Mixing(draw(own, hiddens), other.cache)

    first = _Mixing(draw(state, tuple(jnp.repeat(x, request.group_size, axis=0) for x in hiddens)), state.cache)
    return jax.lax.while_loop(lambda mixing: mixing.state.going.any(), body, first).state


def _read(
    config: DecoderConfig, params: Params, prompts: tuple[jax.Array, jax.Array], request: Request
) -> tuple[jax.Array, Prefilled]:
    hidden, caches = read(config, params, *prompts)
    return hidden, kept_prompts(config, request, caches, prompts[1])
