"""From texts to scores: reward functions, how they are called, what an answer means; imports ``core``."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "calling": ("Batch", "Reward", "RewardError", "Scores", "score"),
        "functions": ("exact_answer", "format_match", "integer_answer", "repetition", "word_limit"),
        "loading": ("load_reward", "load_rewards"),
        "mathematics": ("math_answer",),
        "measures": (
            "best_of_k",
            "difference_interval",
            "majority",
            "mean_interval",
            "share_interval",
            "sign_flip_test",
        ),
        "pool": ("RewardPool",),
    },
)
