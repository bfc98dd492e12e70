"""Who deserves it: from rewards, scores and values to returns and advantages; imports ``core``.

One equation per function. ``returns`` has GAE and λ-returns, ``off_policy`` V-trace, ``streams`` the weights of a
policy gradient, ``groups`` the z-scores of a group, ``batches`` whitening over a batch, ``shaping`` rewards, and
``values`` the losses of value models.
"""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.credit import batches as batches
from rlax_llm.credit import groups as groups
from rlax_llm.credit import off_policy as off_policy
from rlax_llm.credit import returns as returns
from rlax_llm.credit import shaping as shaping
from rlax_llm.credit import streams as streams
from rlax_llm.credit import teachers as teachers
from rlax_llm.credit import token_returns as token_returns
from rlax_llm.credit import values as values
from rlax_llm.credit.batches import batch_std as batch_std
from rlax_llm.credit.batches import gdpo as gdpo
from rlax_llm.credit.batches import gpg as gpg
from rlax_llm.credit.batches import informative_share as informative_share
from rlax_llm.credit.batches import nonzero_share as nonzero_share
from rlax_llm.credit.batches import per_reward as per_reward
from rlax_llm.credit.batches import reinforce_plus_plus as reinforce_plus_plus
from rlax_llm.credit.batches import reinforce_plus_plus_baseline as reinforce_plus_plus_baseline
from rlax_llm.credit.batches import returns_to_go as returns_to_go
from rlax_llm.credit.batches import whiten_advantages as whiten_advantages
from rlax_llm.credit.groups import Advantage as Advantage
from rlax_llm.credit.groups import GroupEstimator as GroupEstimator
from rlax_llm.credit.groups import centered as centered
from rlax_llm.credit.groups import greedy_baseline as greedy_baseline
from rlax_llm.credit.groups import kl_in_score as kl_in_score
from rlax_llm.credit.groups import leave_one_out as leave_one_out
from rlax_llm.credit.groups import length_centered as length_centered
from rlax_llm.credit.groups import max_leave_one_out as max_leave_one_out
from rlax_llm.credit.groups import mean_relative as mean_relative
from rlax_llm.credit.groups import pass_at_k as pass_at_k
from rlax_llm.credit.groups import per_group as per_group
from rlax_llm.credit.groups import z_score as z_score
from rlax_llm.credit.off_policy import VTrace as VTrace
from rlax_llm.credit.off_policy import retrace as retrace
from rlax_llm.credit.off_policy import truncated_ratio as truncated_ratio
from rlax_llm.credit.off_policy import vtrace as vtrace
from rlax_llm.credit.returns import discounted_returns as discounted_returns
from rlax_llm.credit.returns import gae as gae
from rlax_llm.credit.returns import lambda_returns as lambda_returns
from rlax_llm.credit.returns import multistep_errors as multistep_errors
from rlax_llm.credit.returns import n_step_returns as n_step_returns
from rlax_llm.credit.returns import td_errors as td_errors
from rlax_llm.credit.returns import td_targets as td_targets
from rlax_llm.credit.returns import total_return as total_return
from rlax_llm.credit.shaping import clipped_scores as clipped_scores
from rlax_llm.credit.shaping import fixed_if_truncated as fixed_if_truncated
from rlax_llm.credit.shaping import informative as informative
from rlax_llm.credit.shaping import kl_in_reward as kl_in_reward
from rlax_llm.credit.shaping import missing_eos_penalty as missing_eos_penalty
from rlax_llm.credit.shaping import overlong_filter as overlong_filter
from rlax_llm.credit.shaping import scaled_if_truncated as scaled_if_truncated
from rlax_llm.credit.shaping import score_at_end as score_at_end
from rlax_llm.credit.shaping import soft_overlong_punishment as soft_overlong_punishment
from rlax_llm.credit.streams import Credit as Credit
from rlax_llm.credit.teachers import mean_return_after as mean_return_after
from rlax_llm.credit.teachers import no_credit as no_credit
from rlax_llm.credit.teachers import teacher_log_ratio as teacher_log_ratio
from rlax_llm.credit.teachers import with_teacher as with_teacher
from rlax_llm.credit.token_returns import TokenSteps as TokenSteps
from rlax_llm.credit.token_returns import decoupled_gae as decoupled_gae
from rlax_llm.credit.token_returns import length_adaptive_trace as length_adaptive_trace
from rlax_llm.credit.token_returns import token_steps as token_steps
from rlax_llm.credit.values import ClippedValueLoss as ClippedValueLoss
from rlax_llm.credit.values import ValueLoss as ValueLoss
from rlax_llm.credit.values import clipped_value_loss as clipped_value_loss
from rlax_llm.credit.values import explained_variance as explained_variance
from rlax_llm.credit.values import huber_value_loss as huber_value_loss
from rlax_llm.credit.values import squared_value_loss as squared_value_loss
from rlax_llm.credit.values import symexp as symexp
from rlax_llm.credit.values import symlog as symlog
from rlax_llm.credit.values import two_hot as two_hot
from rlax_llm.credit.values import two_hot_value as two_hot_value
from rlax_llm.credit.values import two_hot_value_loss as two_hot_value_loss
