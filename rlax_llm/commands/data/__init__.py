"""``rlax-llm data``: what a training command makes of a file: columns, tokens, lengths, and what is left out."""
