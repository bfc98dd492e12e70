"""``rlax-llm online``: preferences of completions that are drawn on the way; its settings, update, phase and run."""
