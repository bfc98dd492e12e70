"""``rlax-llm control``: policies learn in an environment, over many seeds at once; its settings, phase and run."""
