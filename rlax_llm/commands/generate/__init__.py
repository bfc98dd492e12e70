"""``rlax-llm generate``: a model's answer to a prompt; its settings and run."""
