"""States to resume from: any pytree of arrays, keys and numbers, written with Orbax, restored to the same bits.

Each checkpoint is a directory named by its step. Orbax writes the leaves; a manifest beside them holds each
leaf's name, shape, dtype and checksum, which is what the errors speak of.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
import time
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.host.run_directory import DISK_FULL, writing

_KEPT = 2
_UNFINISHED = "unfinished-"
_TRIES = 20
_PAUSE = 0.05  # seconds
_ENTRY = ("name", "shape", "dtype", "key_impl", "data_shape", "data_dtype", "crc32")


def save(path: str | os.PathLike[str], step: int, state: Any, kept: Collection[int] | None = None) -> None:
    """Write ``state`` as checkpoint ``step`` under ``path``, and remove those that are not kept.

    It is written beside and renamed when whole, so that a crash leaves the earlier ones as they were.

    Args:
        path: directory of the checkpoints; made if need be.
        step: the number it is found by.
        state: pytree of JAX and numpy arrays, typed PRNG keys, ints, floats and bools.
        kept: the steps to keep besides; the last two if None.

    Raises:
        TypeError: a leaf is none of these.
        OSError: the disk is full.
    """
    import orbax.checkpoint as ocp

    root = Path(path).absolute()
    manifest, arrays = _flattened(state)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        for left_by_a_crash in root.glob(_UNFINISHED + "*"):
            shutil.rmtree(left_by_a_crash)
    unfinished = root / f"{_UNFINISHED}{step}"
    items = ocp.args.Composite(leaves=ocp.args.PyTreeSave(arrays), manifest=ocp.args.JsonSave({"leaves": manifest}))
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(unfinished, args=items)
        _rename(unfinished, root / str(step))
    except Exception as error:
        _remove_unfinished(root)
        if _is_of_a_full_disk(error):
            with writing(root / str(step)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    there = steps(root)
    for old in set(there) - {step, *(there[-_KEPT:] if kept is None else kept)}:
        shutil.rmtree(root / str(old))


def _remove_unfinished(root: Path) -> None:
    """Remove what a failed save has left; threads of its writer may add files for a moment."""
    for _ in range(_TRIES):
        left = list(root.glob(_UNFINISHED + "*"))
        if not left:
            return
        for half in left:
            shutil.rmtree(half, ignore_errors=True)
        time.sleep(_PAUSE)


def _is_of_a_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    # TensorStore reports a full disk as a ValueError that only its text tells from others.
    return any(os.strerror(number) in str(error) for number in DISK_FULL)


def steps(path: str | os.PathLike[str]) -> list[int]:
    """The steps that there are checkpoints of, in order.

    >>> steps("no/such/directory")
    []
    """
    root = Path(path)
    return sorted(int(entry.name) for entry in root.iterdir() if entry.name.isdecimal()) if root.is_dir() else []


def latest(path: str | os.PathLike[str]) -> int | None:
    """The last step there is a checkpoint of, or ``None``.

    >>> latest("no/such/directory") is None
    True
    """
    return max(steps(path), default=None)


def restore(path: str | os.PathLike[str], step: int, like: Any) -> Any:
    """The state saved as checkpoint ``step``, in the structure of ``like``.

    Args:
        path: directory of the checkpoints.
        step: which one; see :func:`latest`.
        like: a state of the structure, shapes and dtypes wanted, or its ``jax.eval_shape``. Arrays go
            where its own are.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or a leaf has another name, shape or dtype than in ``like``.
    """
    directory = Path(path).absolute() / str(step)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {directory}; the last one there is of step {latest(path)}.")
    with _damage_explained(directory):
        manifest = _read(directory)["leaves"]
        _check_manifest(manifest)
    wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
    _check_same_leaves(directory, manifest, wanted)
    with _damage_explained(directory):
        arrays = _read_arrays(directory, manifest)
    leaves = [_as_before(array, leaf) for array, (_, leaf) in zip(arrays, wanted, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, leaves)


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Orbax's checkpointer, without the traceback that it logs; the error it raises becomes one sentence here.

    Uncompressed: weights hardly compress, and trying took two thirds of the time (800 MB: 6.1 s with, 2.2 s without).
    """
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(
        leaves=ocp.PyTreeCheckpointHandler(use_compression=False), manifest=ocp.JsonCheckpointHandler()
    )
    logger = logging.getLogger("absl")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with _without_late_reports(), ocp.Checkpointer(handler) as checkpointer:
            yield checkpointer
    finally:
        logger.disabled = was_disabled


@contextlib.contextmanager
def _without_late_reports() -> Iterator[None]:
    """Pass over what TensorStore's threads report to an event loop that an error has closed, a traceback a leaf.

    After an error that goes on, for some of them have not reported yet.
    """
    earlier = sys.unraisablehook

    def hook(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            earlier(found)

    sys.unraisablehook = hook
    yield
    if sys.unraisablehook is hook:
        sys.unraisablehook = earlier


def _rename(unfinished: Path, final: Path) -> None:
    if final.exists():
        replaced = final.with_name(f"{_UNFINISHED}replaced-{final.name}")
        final.rename(replaced)
        unfinished.rename(final)
        shutil.rmtree(replaced)
    else:
        unfinished.rename(final)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(the state)"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def _kind(name: str, leaf: Any) -> tuple[list[int], str]:
    """Shape and dtype of a leaf; Python's numbers have dtypes of their own, for no array may take their place."""
    if isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic):
        return [], f"Python {type(leaf).__name__}"
    if not hasattr(leaf, "dtype") or leaf.dtype == object:
        raise TypeError(f"checkpoints: {name} is a {type(leaf).__name__}; a state holds arrays, keys and numbers only.")
    return list(leaf.shape), str(leaf.dtype)


def _flattened(state: Any) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    manifest, arrays = [], {}
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        shape, dtype = _kind(_name(path), leaf)
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        manifest.append(
            {
                "name": _name(path),
                "shape": shape,
                "dtype": dtype,
                "key_impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
                "data_shape": list(array.shape),
                "data_dtype": str(array.dtype),
                "crc32": _checksum(array),
            }
        )
        # Orbax refuses arrays without elements; their shape, in the manifest, is all there is to them.
        if array.size:
            arrays[str(index)] = array
    return manifest, arrays


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def _damage_explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        others = [step for step in steps(directory.parent) if step != int(directory.name)]
        advice = f"remove it to go on from step {others[-1]}" if others else "there is no other to go on from"
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"checkpoint {directory} is damaged ({reason}); {advice}.") from error


def _read(directory: Path, **leaves: Any) -> Any:
    """The manifest, or with ``leaves`` (Orbax's arguments) the arrays."""
    import orbax.checkpoint as ocp

    wanted = leaves or {"manifest": ocp.args.JsonRestore()}
    with _checkpointer() as checkpointer:
        return checkpointer.restore(directory, args=ocp.args.Composite(**wanted))[next(iter(wanted))]


def _read_arrays(directory: Path, manifest: list[dict[str, Any]]) -> list[Any]:
    """One value a leaf: a numpy array, or a typed key."""
    import orbax.checkpoint as ocp

    stored = [str(index) for index, entry in enumerate(manifest) if 0 not in entry["data_shape"]]
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
    arrays = _read(directory, leaves=ocp.args.PyTreeRestore(restore_args=as_numpy)) if stored else {}
    values = []
    for index, entry in enumerate(manifest):
        array = arrays[str(index)] if str(index) in arrays else np.zeros(entry["data_shape"], entry["data_dtype"])
        if _checksum(array) != entry["crc32"]:
            raise ValueError(f"{entry['name']} is not what was written")
        impl = entry["key_impl"]
        values.append(jax.random.wrap_key_data(jnp.array(array), impl=impl) if impl else array)
    return values


def _check_manifest(manifest: Any) -> None:
    for entry in manifest:
        missing = [name for name in _ENTRY if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise ValueError(f"an entry of its manifest has no {missing[0]!r}")


def _check_same_leaves(directory: Path, manifest: list[dict[str, Any]], wanted: list[tuple[Any, Any]]) -> None:
    held = {entry["name"]: _described(entry["shape"], entry["dtype"]) for entry in manifest}
    want = {_name(path): _described(*_kind(_name(path), leaf)) for path, leaf in wanted}
    advice = "resume with the model and the optimizer of the run that wrote it."
    for name, kind in want.items():
        if name not in held:
            raise ValueError(f"checkpoint {directory} holds no {name}, wanted as {kind}; {advice}")
        if held[name] != kind:
            raise ValueError(f"checkpoint {directory}: {name} is {held[name]}, wanted {kind}; {advice}")
    for name, kind in held.items():
        if name not in want:
            raise ValueError(f"checkpoint {directory} holds {name}, {kind}, which is not wanted; {advice}")


def _described(shape: list[int], dtype: str) -> str:
    return dtype if dtype.startswith("Python") else f"{dtype}{shape}"


def _as_before(value: Any, like: Any) -> Any:
    """The value as what ``like`` is: a Python number, a numpy array or a JAX array at the same place."""
    if isinstance(like, (np.ndarray, np.generic)):
        return like.dtype.type(value) if isinstance(like, np.generic) else value
    if isinstance(like, (bool, int, float)):
        return type(like)(value)
    array = value if _is_key(value) else _strong_or_weak(value, getattr(like, "weak_type", False))
    # An uncommitted array put on its device would be committed, which is another input to jit: one more compilation.
    return jax.device_put(array, like.sharding) if getattr(like, "committed", False) else array


def _strong_or_weak(value: np.ndarray, weak: bool) -> jax.Array:
    if weak:
        return jnp.full(value.shape, value.dtype.type(0).item()).at[...].set(value)
    return jnp.array(value)
