"""``rlax-llm sft``: a language model learns from demonstrations; its settings, phase and run."""
