"""The command ``eval``."""
