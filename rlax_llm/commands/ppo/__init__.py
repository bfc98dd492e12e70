"""commands/ppo."""
