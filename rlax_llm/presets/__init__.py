"""The named algorithms as other trainers compute them: ``presets.trl``, ``presets.verl``, ``presets.openrlhf``.

``presets.papers`` holds them as the papers define them. Each preset is an ``Objective`` that states its difference from
the paper's, with that trainer's defaults; its parity with the trainer's own loss code or with a transcription of its
formulas is tested. ``docs/algorithms.md`` puts all of them in one table.
"""

from rlax_llm.presets import openrlhf, papers, trl, verl

__all__ = ["openrlhf", "papers", "trl", "verl"]
