"""The records that pass between the floors. One convention for tokens, everywhere.

``tokens [B, T]`` holds prompt and completion; ``mask [B, T]`` is True where the policy chose ``tokens[b, t]``: never a
prompt, a padding or a tool token, and the end-of-sequence token that it chose is included. ``log_probs[b, t]`` is
``log π(tokens[b, t] | tokens[b, :t])`` and is 0 where ``mask`` is False.
"""

from __future__ import annotations

from typing import NamedTuple

import jax


class Completions(NamedTuple):
    """What a sampler gives back: prompts padded on the left, completions on the right, G rows to a prompt in a row.

    Attributes:
        tokens: ``[B, T]`` int32, prompt then completion. Rows ``g·G … g·G + G − 1`` share one prompt.
        valid: ``[B, T]`` bool, True on prompt and completion tokens, False on padding.
        mask: ``[B, T]`` bool, True where the policy chose the token.
        log_probs: ``[B, T]`` float32, nats, of the distribution that was sampled from (bias, temperature and cuts
            included), captured while sampling.
        truncated: ``[B]`` bool, True where the completion hit the length limit without choosing a stop token.
        kept: ``[B, T, ceil(V/32)]`` uint32, the set of tokens that each was drawn from, as ``token_sets.to_bits`` packs
            it (V/8 bytes a token), of all tokens where ``mask`` is False; None where nothing was ever cut. Every model
            whose log-probabilities are taken is renormalized on it: learner, behavior policy and reference.
    """

    tokens: jax.Array
    valid: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    truncated: jax.Array
    kept: jax.Array | None = None


class Scored(NamedTuple):
    """Completions with their scores, in groups: what an advantage estimator sees.

    Attributes:
        scores: ``[P, G]`` float, one score a completion; NaN marks a completion that could not be scored.
        log_probs: ``[P, G, T]`` float, the sampler's, nats.
        mask: ``[P, G, T]`` bool, True where the policy chose the token.
        ref_log_probs: ``[P, G, T]`` float or None, the frozen reference's, nats.
    """

    scores: jax.Array
    log_probs: jax.Array
    mask: jax.Array
    ref_log_probs: jax.Array | None = None


class PolicyBatch(NamedTuple):
    """Everything that a policy loss reads, over any layout (``[B, T]`` for tokens, ``[T, B]`` for control).

    Attributes:
        log_probs: the current policy's, nats; the only entry that carries a gradient.
        old_log_probs: the behavior policy's, nats.
        advantages: same shape as ``log_probs``.
        mask: bool, True where the policy chose.
        weights: float, ``Σ weights · loss`` is the loss; taken once per optimizer step over the *whole* batch, which
            is what makes micro-batches, data parallelism and packing exact. None takes the objective's weighting of
            this batch's mask, which is right where the batch is whole.
        ref_log_probs: the frozen reference's, nats, or None where no term needs it.
        uniform: float, ``token_mean`` of the whole batch's mask: what metrics are summed with, so that they are means
            and fractions of tokens whatever the loss weighs. None takes that of this batch's mask.
    """

    log_probs: jax.Array
    old_log_probs: jax.Array
    advantages: jax.Array
    mask: jax.Array
    weights: jax.Array | None = None
    ref_log_probs: jax.Array | None = None
    uniform: jax.Array | None = None


class Trajectory(NamedTuple):
    """One stream of steps with what a critic says of them: what a control algorithm's credit sees.

    Nothing behind an episode's end leaks into it: ``discounts`` is 0 where it terminated, ``traces`` where it was
    truncated, and ``next_values`` belongs to the state the step led to, not to the next episode's first.

    Attributes:
        rewards: ``[T]`` float.
        discounts: ``[T]``, γ, or 0 where the episode terminated.
        traces: ``[T]``, 1, or 0 where the episode was truncated, and at the stream's last step.
        values: ``[T]``, of the states in which the steps were taken, in the rewards' units.
        next_values: ``[T]``, of the states that the steps led to.
    """

    rewards: jax.Array
    discounts: jax.Array
    traces: jax.Array
    values: jax.Array
    next_values: jax.Array
