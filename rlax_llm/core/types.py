"""The records that pass between the floors. One convention for tokens, everywhere.

``tokens [B, T]`` holds prompt and completion; ``mask [B, T]`` is True where the policy chose ``tokens[b, t]``: never a
prompt, a padding or a tool token, and the end-of-sequence token that it chose is included. ``log_probs[b, t]`` is
``log π(tokens[b, t] | tokens[b, :t])`` and is 0 where ``mask`` is False.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

Params = Any
"""What a model computes with, any pytree of arrays: what is trained, or what is frozen."""
Metrics = dict[str, jax.Array]
"""Scalars by name, as a step reports them."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Room:
    """Places for the tokens of completions, of all rows together; static.

    Attributes:
        tokens: a multiple of the devices that have rows.
    """

    tokens: int


class Completions(NamedTuple):
    """What a sampler gives back: prompts padded on the left, completions on the right, G rows per prompt in a row.

    Attributes:
        tokens: ``[B, T]`` int32, prompt then completion. Rows ``g·G … g·G + G − 1`` share one prompt.
        valid: ``[B, T]`` bool, True on prompt and completion tokens, False on padding.
        mask: ``[B, T]`` bool, True where the policy chose the token.
        log_probs: ``[B, T]`` float32, nats, of the distribution that was sampled from (bias, temperature and cuts
            included), captured while sampling.
        truncated: ``[B]`` bool, True where the completion hit the length limit without choosing a stop token.
        kept: ``[B, T, ceil(V/32)]`` uint32, the set of tokens that each was drawn from, as ``token_sets.to_bits`` packs
            it (V/8 bytes per token), of all tokens where ``mask`` is False; None where nothing was ever cut. Every
            model whose log-probabilities are taken is renormalized on it: learner, behavior policy and reference.
        versions: ``[B]`` int32, the number of steps that the policy had taken which each was drawn from, or of each
            token ``[B, T]``; None where a sampler does not say: it drew from the parameters that it was given.
        given: ``[B, T]`` bool, True on tokens that the policy did not choose and that a term of the loss reads all the
            same: demonstrations, a tool's answers. Their log-probabilities are taken too. None where there are none.
        teacher: what a teacher reads of the rows in place of their tokens, or what is known of it at them, any pytree
            ``[B, …]`` (see ``models.distilling``); None where there is no teacher, or it reads what stands there.
        dropout: ``[B]`` uint32, a number of each row that decides what adapters with a dropout leave out; None where
            they read everything, as all do but a gradient (see ``models.dropout``).
        routed: ``[B, T, L·k]`` unsigned integers, of each token the experts of each layer that the sampler sent it to,
            by their numbers plus 1, and 0 where nobody says. The policy sends its tokens there when its
            log-probabilities are taken; any other model (a reference, a teacher) goes by its own router. None where the
            policy does so too.
        room: set by ``by_tokens`` alone: the completions' tokens are computed in so many places, which they do not
            exceed. None where each column is computed.
    """

    tokens: jax.Array
    valid: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    truncated: jax.Array
    kept: jax.Array | None = None
    versions: jax.Array | None = None
    given: jax.Array | None = None
    teacher: Any = None
    dropout: jax.Array | None = None
    routed: jax.Array | None = None
    room: Room | None = None

    @property
    def read(self) -> jax.Array:
        """``[B, T]`` bool, the tokens whose log-probabilities are taken."""
        return self.mask if self.given is None else self.mask | self.given

    @property
    def drawn(self) -> jax.Array:
        """``[B, T]`` bool, the tokens of the mask that a sampler drew: a demonstration may be in the mask too."""
        return self.mask if self.given is None else self.mask & ~self.given


class CreditedCompletions(NamedTuple):
    """Completions with the advantages of their tokens: a batch of ``policy_loop``.

    Attributes:
        completions: of B rows.
        advantages: ``[B, T]``.
        ref_log_probs: ``[B, T]``, nats, the frozen reference's; None where nothing reads them, or where the step gets
            the reference's parameters.
        factors: ``[B, T]``, multiply the loss's weights, such as a correction for the sampler; None for factors of 1.
        scores: ``[B]``, of the completions, for terms that read them.
        staleness: ``[B, T]``, steps that the policy has taken since each token was drawn; None where nobody says.
    """

    completions: Completions
    advantages: jax.Array
    ref_log_probs: jax.Array | None = None
    factors: jax.Array | None = None
    scores: jax.Array | None = None
    staleness: jax.Array | None = None


class Known(NamedTuple):
    """What is known of groups beside their scores, where an estimator reads it; None where it does not.

    Attributes:
        baselines: ``[P]``, a score of each prompt from elsewhere: of its greedy completion, for one. NaN for none.
        prompts: ``[P]`` int32, which prompt each group is of, a number that stays the same over a run.
        drift: ``[P]``, how far the policy has moved since it last had the prompt, nats; None counts steps.
        roles: ``[P, G]`` int32, who each completion plays.
        collisions: ``[P, G, T]``, ``Σ_v p_v²`` of what each token was drawn from: the probability of drawing it twice.
        turns: ``[P, G, T]`` int32, the turn that each token belongs to.
        anchors: ``[P, G, K]`` int32, the state that each turn begins in: equal numbers within a group are equal states.
        turn_returns: ``[P, G, K]``, the return from each turn on; NaN where there is no such turn.
        step_rewards: ``[P, G, T]``, what of the scores the steps of completions earned, each at its last token; NaN
            everywhere else.
    """

    baselines: jax.Array | None = None
    prompts: jax.Array | None = None
    drift: jax.Array | None = None
    roles: jax.Array | None = None
    collisions: jax.Array | None = None
    turns: jax.Array | None = None
    anchors: jax.Array | None = None
    turn_returns: jax.Array | None = None
    step_rewards: jax.Array | None = None


NOTHING_KNOWN = Known()


class Groups(NamedTuple):
    """Completions with their scores, in groups: a batch of ``group_loop`` and ``group_trpo_loop``.

    Attributes:
        completions: of ``P · G`` rows.
        scores: ``[P, G]``, or ``[K, P, G]`` of K rewards; NaN marks a completion without a score.
        ref_log_probs: ``[B, T]``, nats, the frozen reference's or a teacher's; None where nothing reads them, or where
            the step gets the reference's parameters.
        known: what else there is to know of the groups.
        staleness: ``[B, T]``, steps that the policy has taken since each token was drawn; None where nothing reads it.
    """

    completions: Completions
    scores: jax.Array
    ref_log_probs: jax.Array | None = None
    known: Known = NOTHING_KNOWN
    staleness: jax.Array | None = None


class ScoredCompletions(NamedTuple):
    """Completions with a score each: a batch of ``rlhf_loop``.

    Attributes:
        completions: of B rows.
        scores: ``[B]``; NaN marks a completion without a score.
        ref_log_probs: ``[B, T]``, nats, the frozen reference's; None where the step gets its parameters.
        step_rewards: ``[B, T]``, what of the scores the steps of completions earned, each at its last token, NaN
            everywhere else; None where all of a score is paid at the end.
    """

    completions: Completions
    scores: jax.Array
    ref_log_probs: jax.Array | None = None
    step_rewards: jax.Array | None = None


class PairedCompletions(NamedTuple):
    """Pairs of completions: a batch of ``preference_loop`` and ``reward_loop``.

    Attributes:
        completions: of 2B rows; row 2b is chosen, row 2b + 1 rejected, of one prompt. Where the loss reads gold
            responses there are 3B rows, and the third of each pair is one.
        margins: ``[B]``, what is demanded of each pair, in the rewards' units; None for no margin.
        ref_log_probs: ``[2B, T]``, nats, the frozen reference's; None where nothing reads them, or where the step gets
            the reference's parameters.
        explored: ``[B]`` bool, the pairs whose chosen response is the reference's own; None where nothing reads it.
        preferred: ``[B]`` bool, the pairs of which one is preferred; of the others the likelihood term alone is read.
            None where all are.
    """

    completions: Completions
    margins: jax.Array | None = None
    ref_log_probs: jax.Array | None = None
    explored: jax.Array | None = None
    preferred: jax.Array | None = None


class LabeledCompletions(NamedTuple):
    """Completions that are desirable or not: a batch of ``label_loop``.

    Attributes:
        completions: of 2B rows; row 2b is prompt b's own, row 2b + 1 has another prompt's completion. B own rows where
            nothing reads the others.
        desirable: ``[B]`` bool.
        ref_log_probs: of all rows, ``[2B, T]`` or ``[B, T]``, nats, the frozen reference's; None where the step gets
            its parameters.
    """

    completions: Completions
    desirable: jax.Array
    ref_log_probs: jax.Array | None = None


class SteppedCompletions(NamedTuple):
    """Completions whose steps are right or not: a batch of ``process_loop``.

    Attributes:
        completions: of B rows.
        ends: ``[B, T]`` bool, True at the last token of each labeled step.
        right: ``[B, T]`` bool, the labels; read at ``ends`` alone.
    """

    completions: Completions
    ends: jax.Array
    right: jax.Array


class Scored(NamedTuple):
    """Completions with their scores, in groups: what an advantage estimator sees.

    Attributes:
        scores: ``[P, G]`` float, one score per completion; NaN marks a completion that could not be scored.
        log_probs: ``[P, G, T]`` float, the sampler's, nats.
        mask: ``[P, G, T]`` bool, True where the policy chose the token.
        ref_log_probs: ``[P, G, T]`` float or None, the frozen reference's, nats.
        known: what else there is to know of the groups.
    """

    scores: jax.Array
    log_probs: jax.Array
    mask: jax.Array
    ref_log_probs: jax.Array | None = None
    known: Known = NOTHING_KNOWN


class PolicyBatch(NamedTuple):
    """Everything that a policy loss reads, over any layout (``[B, T]`` for tokens, ``[T, B]`` for control).

    Attributes:
        log_probs: the current policy's, nats; with ``entropy`` and ``divergence`` all that carries a gradient.
        old_log_probs: the behavior policy's, nats.
        advantages: same shape as ``log_probs``.
        mask: bool, True where the policy chose.
        weights: float, ``Σ weights · loss`` is the loss; taken once per optimizer step over the *whole* batch, which
            is what makes micro-batches, data parallelism and packing exact. None takes the objective's weighting of
            this batch's mask, which is right where the batch is whole.
        ref_log_probs: the frozen reference's, nats, or None where no term needs it.
        uniform: float, ``token_mean`` of the whole batch's mask: what metrics are summed with, so that they are means
            and fractions of tokens whatever the loss weighs. None takes that of this batch's mask.
        given: bool, True on tokens that the policy did not choose and that a term reads; None without any.
        scores: of the completion that each token is in, for terms that read them.
        entropy: the current policy's at each token, nats, for terms that read it; it carries a gradient too.
        divergence: of the current policy from a teacher at each token, nats, for terms that read it; it carries a
            gradient too.
        terms: the weights of each of the objective's terms, of the whole batch; None takes those of this batch.
        staleness: steps that the policy had taken, at the rollout, since each token was drawn; None where nobody says.
        reweighted: float, ``uniform`` times what a correction multiplies each token's loss by, normalized: what the KL
            to the reference is summed with, so that it is the current policy's whoever drew the tokens. None is
            ``uniform``.
    """

    log_probs: jax.Array
    old_log_probs: jax.Array
    advantages: jax.Array
    mask: jax.Array
    weights: jax.Array | None = None
    ref_log_probs: jax.Array | None = None
    uniform: jax.Array | None = None
    given: jax.Array | None = None
    scores: jax.Array | None = None
    entropy: jax.Array | None = None
    divergence: jax.Array | None = None
    terms: tuple[jax.Array, ...] | None = None
    staleness: jax.Array | None = None
    reweighted: jax.Array | None = None

    @property
    def drawn(self) -> jax.Array:
        """Bool, the tokens of the mask that a sampler drew: a demonstration may be in the mask too."""
        return self.mask if self.given is None else self.mask & ~self.given


class Trajectory(NamedTuple):
    """One stream of steps with what a critic says of them: what a control algorithm's credit sees.

    Nothing after an episode's end leaks into it: ``discounts`` is 0 where it terminated, ``traces`` where it was
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
