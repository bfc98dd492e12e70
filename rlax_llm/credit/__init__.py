"""Who deserves it: from rewards, scores and values to returns and advantages; imports ``core``.

One equation per function. ``returns`` has GAE and λ-returns, ``off_policy`` V-trace, ``streams`` the weights of a
policy gradient, ``groups`` the z-scores of a group, ``batches`` whitening over a batch, ``shaping`` rewards, and
``values`` the losses of value models.
"""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "batches": (
            "batch_std",
            "gdpo",
            "gpg",
            "informative_share",
            "nonzero_share",
            "per_reward",
            "reinforce_plus_plus",
            "reinforce_plus_plus_baseline",
            "returns_to_go",
            "whiten_advantages",
        ),
        "groups": (
            "Advantage",
            "GroupEstimator",
            "centered",
            "greedy_baseline",
            "kl_in_score",
            "leave_one_out",
            "length_centered",
            "max_leave_one_out",
            "mean_relative",
            "pass_at_k",
            "per_group",
            "z_score",
        ),
        "off_policy": ("VTrace", "retrace", "truncated_ratio", "vtrace"),
        "returns": (
            "discounted_returns",
            "gae",
            "lambda_returns",
            "multistep_errors",
            "n_step_returns",
            "td_errors",
            "td_targets",
            "total_return",
        ),
        "shaping": (
            "clipped_scores",
            "fixed_if_truncated",
            "informative",
            "kl_in_reward",
            "missing_eos_penalty",
            "overlong_filter",
            "scaled_if_truncated",
            "score_at_end",
            "soft_overlong_punishment",
        ),
        "streams": ("Credit",),
        "teachers": ("mean_return_after", "no_credit", "teacher_log_ratio", "with_teacher"),
        "token_returns": ("TokenSteps", "decoupled_gae", "length_adaptive_trace", "token_steps"),
        "values": (
            "ClippedValueLoss",
            "ValueLoss",
            "clipped_value_loss",
            "explained_variance",
            "huber_value_loss",
            "squared_value_loss",
            "symexp",
            "symlog",
            "two_hot",
            "two_hot_value",
            "two_hot_value_loss",
        ),
    },
)
