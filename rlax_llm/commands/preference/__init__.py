"""``rlax-llm dpo``, ``kto`` and ``reward``: learning from pairs and labels; their settings, phase and runs."""
