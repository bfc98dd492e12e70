"""The command ``ppo``."""
