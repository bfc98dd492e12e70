"""Training as pure pairs ``(init, step)``, nothing of files or settings; imports ``generation`` and below."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "collect": ("Runner", "rollout", "start_runner"),
        "control": ("Collecting", "ControlState", "control_loop", "evaluate_greedily"),
        "distillation": ("DistillationState", "Views", "by_itself", "distillation_loop", "given_or_drawn"),
        "group": ("GroupLearning", "GroupState", "every_completion", "group_loop", "group_trpo_loop"),
        "labels": (
            "CarriedReference",
            "label_loop",
            "reference_point_of_mismatched",
            "running_mean_reward",
            "zero_reference",
        ),
        "language": (
            "Prompts",
            "dynamic_sampling",
            "fresh_sampling",
            "language_loop",
            "rounded_sampling",
            "stale_sampling",
        ),
        "minibatches": ("Passes", "epochs", "minibatch_rows"),
        "policy": ("TrainState", "policy_loop", "supervised_loop"),
        "preference": ("preference_loop", "reward_loop"),
        "rlhf": ("RlhfLearning", "RlhfState", "rlhf_loop"),
        "rlhf_credit": ("KlInReward", "Shaping"),
        "scaling": ("Moments", "Scaling", "no_scaling", "standardization", "unit_return"),
        "seeds": ("cores_as_devices", "on_devices", "over_seeds"),
        "telling": ("nothing_more", "whole_advantages"),
        "updates": ("Learning", "Penalty", "ControlBatch", "Update", "gradient_update", "natural_update"),
    },
)
