"""JAX's compilation cache on disk: the second run of a command begins where the first one had compiled to."""

from __future__ import annotations

import os
from pathlib import Path

_MIN_COMPILE_SECONDS = 0.0
"""Small programs are kept too: a run has few, and without any of them its second start would compile."""


def turn_on() -> Path | None:
    """Keep compiled programs in the user's cache directory, or in ``JAX_COMPILATION_CACHE_DIR`` where that is set.

    Returns:
        The directory; ``None`` if it cannot be written, and then nothing is kept.
    """
    import jax
    import platformdirs

    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    directory = Path(given) if given else Path(platformdirs.user_cache_dir("rlax-llm")) / "jax"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    return directory
