"""What the benchmarks share: interleaved timing, facts of the machine, one JSON line per configuration."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """An argument parser with ``--repeats``."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help="interleaved repeats of every side; medians count")
    return made


def ready(value: Any) -> Any:
    """Wait for JAX arrays; anything else passes."""
    return jax.block_until_ready(value)


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    ready(function())
    return time.perf_counter() - start


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int, warm: bool = True) -> dict[str, float]:
    """Median seconds of each side: one call to warm up (unless ``warm`` is False), then A B C, C B A, A B C, ….

    The order turns, for a side that always follows another one finds the caches as that one leaves them.

    A side may return a ``float``: then that, its own measure in seconds, counts in place of its wall time. A side with
    a method ``warm`` is warmed up by that, where nothing of the whole is compiled and it takes minutes.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + warm):
        for name, side in sides.items() if repeat % 2 else reversed(sides.items()):
            start = time.perf_counter()
            value = ready(side() if repeat or not warm else getattr(side, "warm", side)())
            wall = time.perf_counter() - start
            if repeat or not warm:
                taken[name].append(value if isinstance(value, float) else wall)
    return {name: statistics.median(values) for name, values in taken.items()}


def facts() -> dict[str, Any]:
    """Cores, load and versions, as every line carries them."""
    versions = {"python": platform.python_version()}
    for package in ("jax", "torch", "transformers", "trl"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {"cores": cores, "load_before": load, "backend": jax.default_backend(), "versions": versions}


_FACTS = facts()


def report(benchmark: str, **figures: Any) -> None:
    """Print one JSON line; floats with four significant digits, in lists and mappings too."""

    def short(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: short(item) for name, item in value.items()}
        if isinstance(value, list):
            return [short(item) for item in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    print(json.dumps({"benchmark": benchmark} | short(figures) | {"machine": _FACTS}), flush=True)


def read_gigabytes_per_second(megabytes: int = 512) -> dict[str, float]:
    """Best speed of memory: reading (a sum, all cores) and copying (read + write, one core), GB/s."""
    x = jax.numpy.ones((64, megabytes * 1_000_000 // 4 // 64))
    total = jax.jit(lambda x: x.sum(-1))
    source = np.ones(megabytes * 1_000_000 // 8)
    target = np.empty_like(source)
    ready(total(x)), np.copyto(target, source)
    read = min(seconds(lambda: total(x)) for _ in range(5))
    copy = min(seconds(lambda: np.copyto(target, source)) for _ in range(5))
    return {"read": x.nbytes / read / 1e9, "copy": 2 * source.nbytes / copy / 1e9}


def matmul_gigaflops(rows: int, inner: int, columns: int) -> float:
    """Best float32 speed of ``[rows, inner] · [columns, inner]ᵀ``, GFLOP/s."""
    x, w = jax.numpy.ones((rows, inner)), jax.numpy.ones((columns, inner))
    product = jax.jit(lambda x, w: x @ w.T)
    ready(product(x, w))
    best = min(seconds(lambda: product(x, w)) for _ in range(5))
    return 2 * rows * inner * columns / best / 1e9


def torch_model(directory: Path, dtype: Any) -> Any:
    """transformers' model of a directory that ``write_model`` wrote, for inference, on all cores."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(_FACTS["cores"])
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
    return model.eval()
