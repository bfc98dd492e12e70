"""TRL's settings by its own names, as objectives: ``trl.GRPOConfig(beta=0.04, epsilon_high=0.28).build()``.

Names and defaults are those of its releases from 1.16 on. What is no part of the loss has its place elsewhere:
``mask_truncated_completions`` is ``GroupLearning(teaching=overlong_filter)``, and several rewards are summed before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import KlEstimator, k3
from rlax_llm.core.masked import divide_by_std, masked_deviation
from rlax_llm.core.names import did_you_mean
from rlax_llm.core.types import Scored
from rlax_llm.credit.batches import batch_std
from rlax_llm.credit.groups import Advantage, centered, kl_in_score, leave_one_out, per_group, z_score
from rlax_llm.credit.shaping import clipped_scores
from rlax_llm.policy import trust_regions
from rlax_llm.policy.coupled import Coupled, weigh_by_ratio
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import (
    Ratio,
    sequence_ratio,
    sequence_token_ratio,
    summed_ratio,
    summed_token_ratio,
    token_ratio,
)
from rlax_llm.policy.trust_regions import TrustRegion, clip, dual_clip
from rlax_llm.policy.weightings import Weighting, token_mean
from rlax_llm.recipes.group import penalty_or_none

T = TypeVar("T")


@check_arguments
def over_all_rows(length: int | None = None) -> Weighting:
    """``1 / (B · len_i)``, or ``1 / (B · length)`` for a constant, B the number of all rows, the empty ones too.

    Limiting cases: ``sequence_mean`` and ``fixed_length(length)`` where every row has a chosen token.

    Args:
        length: tokens, or None for each row's own.

    Returns:
        A weighting ``mask [B, T] → weights [B, T]``.

    >>> over_all_rows()(jnp.array([[True, True], [False, False]])).tolist()
    [[0.25, 0.25], [0.0, 0.0]]
    """

    def weights(mask: jax.Array) -> jax.Array:
        lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1) if length is None else length
        return mask / (lengths * mask.shape[0] * jnp.ones((), jnp.float32))

    return weights


_ADVANTAGES = {"group": per_group(z_score), "batch": batch_std(), "none": per_group(centered)}
_RATIOS = {"token": token_ratio, "sequence": sequence_ratio}


class GRPOConfig(NamedTuple):
    """The settings of ``GRPOTrainer`` that change its loss.

    Attributes:
        beta: weight of k3 in the loss, per nat; 0 needs no reference.
        epsilon: half-width of the clip below 1, and above it where ``epsilon_high`` is None.
        epsilon_high: half-width above 1; for ``cispo`` the ceiling of the ratio itself.
        delta: a ceiling of the ratio where A < 0, above 1 + ``epsilon_high``, or None.
        loss_type: ``dapo``, ``bnpo`` (the same here), ``grpo``, ``dr_grpo``, ``luspo``, ``cispo``, ``sapo``, ``vespo``.
        scale_rewards: ``group``, ``batch`` or ``none``: what a centered score is divided by.
        importance_sampling_level: ``token`` or ``sequence``.
        use_bias_correction_kl: the KL term times the ratio, the default since 1.16.
        max_completion_length: the length that ``dr_grpo`` divides by, tokens.
        sapo_temperature_pos: τ of ``sapo`` where A > 0.
        sapo_temperature_neg: τ elsewhere.
    """

    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    loss_type: str = "dapo"
    scale_rewards: str | bool = "group"
    importance_sampling_level: str = "token"
    use_bias_correction_kl: bool = True
    max_completion_length: int = 256
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05

    def build(self) -> Objective:
        """The objective that ``GRPOTrainer`` takes steps on.

        Raises:
            ValueError: for a value that TRL does not have.

        >>> GRPOConfig(loss_type="dr_grpo", scale_rewards="none").build().kl is None
        True
        """
        scale = {"True": "group", "False": "none"}.get(str(self.scale_rewards), self.scale_rewards)
        weighting = _chosen("loss_type", self.loss_type, self._weightings())
        return Objective(
            _chosen("scale_rewards", scale, _ADVANTAGES), self._ratio(), self._trust_region(), weighting, self._kl()
        )

    def _weightings(self) -> dict[str, Weighting]:
        tokens = dict.fromkeys(("dapo", "bnpo", "cispo", "vespo"), token_mean)
        rows = dict.fromkeys(("grpo", "sapo"), over_all_rows())
        return tokens | rows | {"dr_grpo": over_all_rows(self.max_completion_length), "luspo": over_all_rows(1)}

    def _ratio(self) -> Ratio:
        ratio = _chosen("importance_sampling_level", self.importance_sampling_level, _RATIOS)
        if self.loss_type == "vespo":
            return summed_token_ratio
        # A detached weight leaves each token the gradient of its own log-probability.
        return sequence_token_ratio if self.loss_type == "cispo" and ratio is sequence_ratio else ratio

    def _trust_region(self) -> TrustRegion:
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        own: dict[str, Callable[[], TrustRegion]] = {
            "cispo": lambda: trust_regions.cispo(ceiling=high),
            "sapo": lambda: trust_regions.sapo(self.sapo_temperature_pos, self.sapo_temperature_neg),
            "vespo": trust_regions.vespo,
        }
        if self.loss_type in own:
            return own[self.loss_type]()
        return clip(self.epsilon, high) if self.delta is None else dual_clip(self.epsilon, high, self.delta)

    def _kl(self) -> KlEstimator | Coupled | None:
        penalty = penalty_or_none(k3, self.beta)
        return weigh_by_ratio(penalty) if penalty is not None and self.use_bias_correction_kl else penalty


class RLOOConfig(NamedTuple):
    """The settings of ``RLOOTrainer`` that change its loss.

    Attributes:
        beta: weight of the completion's k1 in its score, per nat; 0 needs no reference.
        epsilon: half-width of the clip below 1, and above it where ``epsilon_high`` is None.
        epsilon_high: half-width above 1.
        reward_clip_range: the least and the greatest score, clipped before the KL is taken off, or None.
        normalize_advantages: mean 0 and standard deviation 1 over the batch's completions.
    """

    beta: float = 0.05
    epsilon: float = 0.2
    epsilon_high: float | None = None
    reward_clip_range: tuple[float, float] | None = None
    normalize_advantages: bool = False

    def build(self) -> Objective:
        """The objective that ``RLOOTrainer`` takes steps on.

        >>> RLOOConfig().build().ratio is summed_ratio
        True
        """
        advantage = kl_in_score(per_group(leave_one_out), self.beta)
        advantage = advantage if self.reward_clip_range is None else _clipped_first(advantage, *self.reward_clip_range)
        advantage = _normalized(advantage) if self.normalize_advantages else advantage
        return Objective(advantage, summed_ratio, clip(self.epsilon, self.epsilon_high), over_all_rows())


def _clipped_first(advantage: Advantage, low: float, high: float) -> Advantage:
    return lambda scored: advantage(scored._replace(scores=clipped_scores(scored.scores, low, high)))


def _normalized(advantage: Advantage) -> Advantage:
    def over_batch(scored: Scored) -> jax.Array:
        credit = advantage(scored)
        known = ~jnp.isnan(scored.scores)
        return divide_by_std(masked_deviation(credit, known), credit, known)

    return over_batch


def _chosen(name: str, value: str | bool, known: dict[str, T]) -> T:
    if value not in known:
        raise ValueError(f"trl: {name} is {value!r}, wanted one of {', '.join(known)}{did_you_mean(str(value), known)}")
    return known[str(value)]
