"""``rlax-llm eval``: what a model solves of held-out prompts, alone or against another; its settings and run."""
