"""commands/preference."""
