"""Sampling completions: samplers, the engine, a server in its place, turns; imports ``models`` and ``core``."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "engine": ("generate_at_once",),
        "further": ("begun_anew", "generate_further", "goes_on"),
        "mixture": ("Two", "generate_mixed"),
        "request": ("Request",),
        "rollout": ("generate", "stream"),
        "partial": ("generate_partly", "not_begun", "unfinished"),
        "prompts": ("pad_prompts",),
        "sampling": ("Categorical", "Draw", "Sampler", "greedy"),
        "served": ("Served",),
        "server": ("Server",),
        "turns": ("Tool", "calculator", "with_tools"),
    },
)
