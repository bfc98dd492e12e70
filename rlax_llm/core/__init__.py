"""What every folder stands on, and nothing of reinforcement learning; imports nothing of the package.

Records, checks, masked statistics, the one recurrence, KL divergences, distributions, log-probabilities of tokens.
"""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "buckets": ("TopTokens", "bucket_log_probs", "top_token_divergences", "top_tokens"),
        "distributions": (
            "Distribution",
            "categorical",
            "categorical_entropy",
            "categorical_fisher",
            "categorical_kl",
            "categorical_log_prob",
            "gaussian",
            "independent",
            "normal",
            "normal_entropy",
            "normal_fisher",
            "normal_kl",
            "normal_log_prob",
        ),
        "divergences": (
            "Compared",
            "Divergence",
            "Predictions",
            "comparison",
            "forward_kl",
            "jensen_shannon",
            "plain_token_divergences",
            "reverse_kl",
            "token_divergences",
        ),
        "kl": (
            "KlControl",
            "KlEstimator",
            "absolute",
            "doubling_coef",
            "fixed_coef",
            "k1",
            "k2",
            "k3",
            "kl_penalty",
            "proportional_coef",
            "straight_through",
            "top_k_kl",
        ),
        "log_probs": ("plain_token_log_probs", "token_collisions", "token_log_probs"),
        "mapping": ("map_in_cache",),
        "masked": ("divide_by_std", "masked_deviation", "masked_mean", "masked_variance", "unit_variance", "whiten"),
        "recurrence": ("reverse_affine_scan",),
        "shuffling": ("permutation",),
        "types": (
            "Completions",
            "CreditedCompletions",
            "Groups",
            "Known",
            "LabeledCompletions",
            "PairedCompletions",
            "PolicyBatch",
            "Scored",
            "ScoredCompletions",
            "SteppedCompletions",
            "Trajectory",
        ),
    },
)
