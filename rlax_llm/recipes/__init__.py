"""Every named algorithm by its difference from its parent, and the peers' variants; imports the equations."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "control": ("a2c", "ppo", "ppo_penalty", "q_actor_critic", "reinforce"),
        "group": (
            "cispo",
            "dapo",
            "dppo_kl",
            "dppo_tv",
            "dr_grpo",
            "gdpo",
            "gmpo",
            "gpg",
            "grpo",
            "gspo",
            "gspo_token",
            "lite_ppo",
            "luspo",
            "opo",
            "reinforce_plus_plus",
            "reinforce_plus_plus_baseline",
            "rloo",
            "sapo",
            "vespo",
        ),
        "preference": ("alpha_po", "aot", "cpo", "dpo", "ipo", "orpo", "simpo", "sppo"),
    },
)
