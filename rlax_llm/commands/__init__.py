"""A folder for each command (``settings``, ``phase``, ``run``), and what commands share; imports all but ``cli``."""
