"""From the words of a command line to settings, and from an error to one sentence; imports ``commands``."""
