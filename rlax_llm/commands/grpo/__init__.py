"""``rlax-llm grpo``: a language model learns from groups of scored completions; its settings, phase and run."""
