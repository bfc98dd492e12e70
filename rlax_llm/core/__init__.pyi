"""What every folder stands on, and nothing of reinforcement learning; imports nothing of the package.

Records, checks, masked statistics, the one recurrence, KL divergences, distributions, log-probabilities of tokens.
"""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.core import arguments as arguments
from rlax_llm.core import checks as checks
from rlax_llm.core import chips as chips
from rlax_llm.core import distributions as distributions
from rlax_llm.core import exponentials as exponentials
from rlax_llm.core import faces as faces
from rlax_llm.core import finite as finite
from rlax_llm.core import kl as kl
from rlax_llm.core import libtpu as libtpu
from rlax_llm.core import log_probs as log_probs
from rlax_llm.core import logit_bias as logit_bias
from rlax_llm.core import mapping as mapping
from rlax_llm.core import masked as masked
from rlax_llm.core import mesh as mesh
from rlax_llm.core import names as names
from rlax_llm.core import penalties as penalties
from rlax_llm.core import platform as platform
from rlax_llm.core import processes as processes
from rlax_llm.core import recurrence as recurrence
from rlax_llm.core import seen as seen
from rlax_llm.core import shuffling as shuffling
from rlax_llm.core import token_sets as token_sets
from rlax_llm.core import trees as trees
from rlax_llm.core import types as types
from rlax_llm.core import user_code as user_code
from rlax_llm.core import wording as wording
from rlax_llm.core.distributions import Distribution as Distribution
from rlax_llm.core.distributions import categorical as categorical
from rlax_llm.core.distributions import categorical_entropy as categorical_entropy
from rlax_llm.core.distributions import categorical_fisher as categorical_fisher
from rlax_llm.core.distributions import categorical_kl as categorical_kl
from rlax_llm.core.distributions import categorical_log_prob as categorical_log_prob
from rlax_llm.core.distributions import gaussian as gaussian
from rlax_llm.core.distributions import independent as independent
from rlax_llm.core.distributions import normal as normal
from rlax_llm.core.distributions import normal_entropy as normal_entropy
from rlax_llm.core.distributions import normal_fisher as normal_fisher
from rlax_llm.core.distributions import normal_kl as normal_kl
from rlax_llm.core.distributions import normal_log_prob as normal_log_prob
from rlax_llm.core.kl import KlControl as KlControl
from rlax_llm.core.kl import KlEstimator as KlEstimator
from rlax_llm.core.kl import absolute as absolute
from rlax_llm.core.kl import doubling_coef as doubling_coef
from rlax_llm.core.kl import fixed_coef as fixed_coef
from rlax_llm.core.kl import k1 as k1
from rlax_llm.core.kl import k2 as k2
from rlax_llm.core.kl import k3 as k3
from rlax_llm.core.kl import kl_penalty as kl_penalty
from rlax_llm.core.kl import proportional_coef as proportional_coef
from rlax_llm.core.kl import straight_through as straight_through
from rlax_llm.core.kl import top_k_kl as top_k_kl
from rlax_llm.core.log_probs import plain_token_log_probs as plain_token_log_probs
from rlax_llm.core.log_probs import token_log_probs as token_log_probs
from rlax_llm.core.mapping import map_in_cache as map_in_cache
from rlax_llm.core.masked import divide_by_std as divide_by_std
from rlax_llm.core.masked import masked_deviation as masked_deviation
from rlax_llm.core.masked import masked_mean as masked_mean
from rlax_llm.core.masked import masked_variance as masked_variance
from rlax_llm.core.masked import unit_variance as unit_variance
from rlax_llm.core.masked import whiten as whiten
from rlax_llm.core.recurrence import reverse_affine_scan as reverse_affine_scan
from rlax_llm.core.shuffling import permutation as permutation
from rlax_llm.core.types import Completions as Completions
from rlax_llm.core.types import CreditedCompletions as CreditedCompletions
from rlax_llm.core.types import Groups as Groups
from rlax_llm.core.types import LabeledCompletions as LabeledCompletions
from rlax_llm.core.types import PairedCompletions as PairedCompletions
from rlax_llm.core.types import PolicyBatch as PolicyBatch
from rlax_llm.core.types import Scored as Scored
from rlax_llm.core.types import ScoredCompletions as ScoredCompletions
from rlax_llm.core.types import Trajectory as Trajectory
