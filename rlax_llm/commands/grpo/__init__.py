"""The command ``grpo``."""
