"""Environments: one at a time, pure, never resetting themselves."""
