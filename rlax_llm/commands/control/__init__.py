"""commands/control."""
