"""The commands ``reward``, ``dpo`` and ``kto``."""
