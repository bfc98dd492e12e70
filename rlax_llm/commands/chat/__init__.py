"""``rlax-llm chat``: talk with a model in the terminal, turn by turn; its settings and run."""
