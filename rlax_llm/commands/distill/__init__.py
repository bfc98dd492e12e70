"""``rlax-llm distill``: a language model learns from a teacher; its settings, teachers, phase and run."""
