"""The command ``control``."""
