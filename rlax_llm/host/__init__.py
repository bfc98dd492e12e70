"""A run on disk: its session, loop, checkpoints, progress and curves; knows no algorithm; imports ``core``."""
