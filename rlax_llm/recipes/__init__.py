"""Every named algorithm by its difference from its parent, and the peers' variants; imports the equations."""

from rlax_llm.core.faces import lazy_face
from rlax_llm.recipes.registry import homes

__getattr__, __dir__ = lazy_face(__name__, {"marks": ("alone", "reads"), **homes()})
