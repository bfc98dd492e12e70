"""commands/sft."""
