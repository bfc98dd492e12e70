"""rlax_llm."""
