"""``rlax-llm eval``: reward and accuracy of a model on held-out prompts; its settings and run."""
