"""commands/grpo."""
