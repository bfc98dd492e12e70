"""Environments of control: one at a time, pure, never resetting themselves; imports ``core``."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "brax_env": ("brax",),
        "environment": ("Box", "Discrete", "Environment", "Step"),
        "gymnax_envs": ("gymnax",),
        "probes": ("PROBES", "Probe", "diagnosis"),
        "registry": ("make", "names"),
        "rock_paper_scissors": ("exploitability",),
    },
)
