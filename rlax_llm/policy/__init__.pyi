"""What a policy pays: the policy loss and the choices that make it; imports ``core`` and ``credit``.

Ratios, trust regions, weightings, corrections for a sampler that differs, an entropy bonus that follows a target.
"""

# Written by docs/write_stubs.py; a test compares.

from rlax_llm.policy import corrections as corrections
from rlax_llm.policy import coupled as coupled
from rlax_llm.policy import distillation as distillation
from rlax_llm.policy import entropy as entropy
from rlax_llm.policy import objectives as objectives
from rlax_llm.policy import ratios as ratios
from rlax_llm.policy import terms as terms
from rlax_llm.policy import trust_regions as trust_regions
from rlax_llm.policy import weightings as weightings
from rlax_llm.policy.corrections import Correction as Correction
from rlax_llm.policy.corrections import correction_product as correction_product
from rlax_llm.policy.corrections import masked_importance as masked_importance
from rlax_llm.policy.corrections import off_policy_mask as off_policy_mask
from rlax_llm.policy.corrections import rejection as rejection
from rlax_llm.policy.corrections import sampler_metrics as sampler_metrics
from rlax_llm.policy.corrections import second_moment_mask as second_moment_mask
from rlax_llm.policy.corrections import truncated_importance as truncated_importance
from rlax_llm.policy.coupled import Coupled as Coupled
from rlax_llm.policy.coupled import clip_cov as clip_cov
from rlax_llm.policy.coupled import dppo_kl as dppo_kl
from rlax_llm.policy.coupled import dppo_tv as dppo_tv
from rlax_llm.policy.coupled import gmpo as gmpo
from rlax_llm.policy.coupled import kl_cov as kl_cov
from rlax_llm.policy.coupled import mask_off_policy as mask_off_policy
from rlax_llm.policy.coupled import token_covariance as token_covariance
from rlax_llm.policy.coupled import weigh_by_ratio as weigh_by_ratio
from rlax_llm.policy.distillation import Attempt as Attempt
from rlax_llm.policy.distillation import Distillation as Distillation
from rlax_llm.policy.distillation import Prompting as Prompting
from rlax_llm.policy.distillation import after_example as after_example
from rlax_llm.policy.distillation import demonstration as demonstration
from rlax_llm.policy.distillation import from_teacher as from_teacher
from rlax_llm.policy.distillation import solved_attempt as solved_attempt
from rlax_llm.policy.entropy import stepped_coef as stepped_coef
from rlax_llm.policy.objectives import Objective as Objective
from rlax_llm.policy.objectives import policy_loss as policy_loss
from rlax_llm.policy.ratios import Ratio as Ratio
from rlax_llm.policy.ratios import sequence_ratio as sequence_ratio
from rlax_llm.policy.ratios import sequence_token_ratio as sequence_token_ratio
from rlax_llm.policy.ratios import summed_ratio as summed_ratio
from rlax_llm.policy.ratios import summed_token_ratio as summed_token_ratio
from rlax_llm.policy.ratios import token_ratio as token_ratio
from rlax_llm.policy.terms import Term as Term
from rlax_llm.policy.terms import chosen as chosen
from rlax_llm.policy.terms import given as given
from rlax_llm.policy.terms import likelihood as likelihood
from rlax_llm.policy.terms import negative_entropy as negative_entropy
from rlax_llm.policy.terms import rewarded as rewarded
from rlax_llm.policy.terms import shaped_advantage as shaped_advantage
from rlax_llm.policy.terms import squared_ratio as squared_ratio
from rlax_llm.policy.trust_regions import TrustRegion as TrustRegion
from rlax_llm.policy.trust_regions import add_penalty as add_penalty
from rlax_llm.policy.trust_regions import cispo as cispo
from rlax_llm.policy.trust_regions import clip as clip
from rlax_llm.policy.trust_regions import discovered_policy_optimization as discovered_policy_optimization
from rlax_llm.policy.trust_regions import dual_clip as dual_clip
from rlax_llm.policy.trust_regions import sapo as sapo
from rlax_llm.policy.trust_regions import score_function as score_function
from rlax_llm.policy.trust_regions import slopes as slopes
from rlax_llm.policy.trust_regions import topr as topr
from rlax_llm.policy.trust_regions import unclipped as unclipped
from rlax_llm.policy.trust_regions import vespo as vespo
from rlax_llm.policy.weightings import Weighting as Weighting
from rlax_llm.policy.weightings import fixed_length as fixed_length
from rlax_llm.policy.weightings import sequence_mean as sequence_mean
from rlax_llm.policy.weightings import sequence_sum as sequence_sum
from rlax_llm.policy.weightings import token_mean as token_mean
from rlax_llm.policy.weightings import top_entropy as top_entropy
