"""What a policy pays: the policy loss and the choices that make it; imports ``core`` and ``credit``.

Ratios, trust regions, weightings, corrections for a sampler that differs, an entropy bonus that follows a target.
"""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "corrections": (
            "Correction",
            "correction_product",
            "masked_importance",
            "off_policy_mask",
            "rejection",
            "sampler_metrics",
            "second_moment_mask",
            "truncated_importance",
        ),
        "coupled": (
            "Coupled",
            "clip_cov",
            "dppo_kl",
            "dppo_tv",
            "gmpo",
            "kl_cov",
            "mask_off_policy",
            "token_covariance",
            "weigh_by_ratio",
        ),
        "distillation": (
            "Attempt",
            "Distillation",
            "Prompting",
            "after_example",
            "demonstration",
            "from_teacher",
            "solved_attempt",
        ),
        "entropy": ("stepped_coef",),
        "objectives": ("Objective", "policy_loss"),
        "ratios": (
            "Ratio",
            "sequence_ratio",
            "sequence_token_ratio",
            "summed_ratio",
            "summed_token_ratio",
            "token_ratio",
        ),
        "terms": (
            "Term",
            "chosen",
            "given",
            "likelihood",
            "negative_entropy",
            "rewarded",
            "shaped_advantage",
            "squared_ratio",
        ),
        "trust_regions": (
            "TrustRegion",
            "add_penalty",
            "cispo",
            "clip",
            "discovered_policy_optimization",
            "dual_clip",
            "sapo",
            "score_function",
            "slopes",
            "topr",
            "unclipped",
            "vespo",
        ),
        "weightings": ("Weighting", "fixed_length", "sequence_mean", "sequence_sum", "token_mean", "top_entropy"),
    },
)
