"""States to resume from: any pytree of arrays, keys and numbers, written with Orbax, restored to the same bits.

Each checkpoint is a directory named by its step. Orbax writes the leaves, each process its own parts of them, while the
program goes on; a manifest beside them holds each leaf's name, shape, dtype and checksum, which is what the errors
speak of.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.platform import platform
from rlax_llm.host.checksums import checksum
from rlax_llm.host.orbax import is_of_a_full_disk, quiet_checkpointer
from rlax_llm.host.run_directory import writing

_KEPT = 2
_UNFINISHED = "[0-9]*.orbax-checkpoint-tmp*"
_MANIFEST = "manifest.json"
_EARLIER_MANIFEST = "manifest"  # a directory, where checkpoints were not yet written while the run goes on
_TRIES = 20
_PAUSE = 0.05  # seconds
_ENTRY = ("name", "shape", "dtype", "key_impl", "data_shape", "data_dtype", "checksum")

Kept = Callable[[list[int]], Collection[int]]
"""``steps → steps``: those that are kept of the ones that are there, the one just written among them."""


def last(number: int) -> Kept:
    """Keep the last ones.

    >>> last(2)([3, 4, 5])
    [4, 5]
    """
    return lambda there: there[-number:]


class _Running(NamedTuple):
    """A checkpoint that is being written.

    Attributes:
        step: its number.
        kept: of those that will be there.
        checkpointer: Orbax's.
        closing: what is undone when it has been written.
    """

    step: int
    kept: Kept
    checkpointer: Any
    closing: contextlib.ExitStack


class Writer:
    """Writes checkpoints under one path, one at a time, while the program goes on.

    What is written is renamed when it is whole, so that a crash leaves the earlier ones as they were.

    Args:
        path: directory of the checkpoints; made if need be.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.root = Path(path).absolute()
        self._running: _Running | None = None

    def save(self, step: int, state: Any, kept: Kept) -> None:
        """Begin to write ``state`` as checkpoint ``step``, once the one before is whole.

        The state is copied before this returns, so that its arrays may be donated.

        Args:
            step: the number it is found by.
            state: pytree of JAX and numpy arrays, typed PRNG keys, ints, floats and bools.
            kept: the steps to keep; the others are removed once this one is whole.

        Raises:
            TypeError: a leaf is none of these.
            OSError: as ``wait``.
        """
        import orbax.checkpoint as ocp

        self.wait()
        manifest, arrays = _flattened(state)
        if jax.process_index() == 0:
            with writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                for left_by_a_crash in self.root.glob(_UNFINISHED):
                    shutil.rmtree(left_by_a_crash)
        closing = contextlib.ExitStack()
        finish = ocp.options.AsyncOptions(
            post_finalization_callback=lambda: _write_manifest(self.root, step, manifest, arrays)
        )
        made = functools.partial(ocp.AsyncCheckpointer, async_options=finish)
        checkpointer = closing.enter_context(quiet_checkpointer(made))
        self._running = _Running(step, kept, checkpointer, closing)
        stored = {name: array for name, array in arrays.items() if array.size}
        items = ocp.args.Composite(leaves=ocp.args.PyTreeSave(stored))
        with self._ended_by_an_error():
            checkpointer.save(self.root / str(step), args=items, force=True)

    def check(self) -> None:
        """Raise what has gone wrong with the writing so far; remove what is not kept where it has ended.

        Raises:
            OSError: as ``wait``.
        """
        if self._running is None:
            return
        with self._ended_by_an_error():
            self._running.checkpointer.check_for_errors()
        if (self.root / str(self._running.step)).is_dir():
            self.wait()

    def wait(self) -> None:
        """Wait until what was begun is whole.

        Raises:
            OSError: the disk is full.
        """
        if self._running is None:
            return
        with self._ended_by_an_error():
            self._running.checkpointer.wait_until_finished()
        running, self._running = self._running, None
        running.closing.close()
        if jax.process_index() == 0:
            _prune(self.root, running.kept)

    @contextlib.contextmanager
    def _ended_by_an_error(self) -> Iterator[None]:
        """What an error in the block leaves is removed, and a full disk told in a sentence."""
        try:
            yield
        except Exception as error:
            running, self._running = self._running, None
            assert running is not None
            with contextlib.suppress(Exception):
                running.closing.close()
            if jax.process_index() == 0:
                _remove_unfinished(self.root)
            if is_of_a_full_disk(error):
                with writing(self.root / str(running.step)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def save(path: str | os.PathLike[str], step: int, state: Any, kept: Kept | None = None) -> None:
    """Write ``state`` as checkpoint ``step`` under ``path``, and remove those that are not kept: a ``Writer`` that is
    waited for.

    Args:
        path: directory of the checkpoints; made if need be.
        step: the number it is found by.
        state: as of ``Writer.save``.
        kept: the steps to keep; the last two if None.

    Raises:
        TypeError: a leaf is none of these.
        OSError: the disk is full.
    """
    writer = Writer(path)
    writer.save(step, state, last(_KEPT) if kept is None else kept)
    writer.wait()


def _prune(root: Path, kept: Kept) -> None:
    there = steps(root)
    for old in set(there) - set(kept(there)):
        shutil.rmtree(root / str(old))


def _write_manifest(root: Path, step: int, manifest: list[dict[str, Any]], arrays: dict[str, Any]) -> None:
    """Write what is known of the leaves beside them, before Orbax gives the whole its name; in a thread of its own."""
    for index, entry in enumerate(manifest):
        held = arrays[str(index)]
        entry["checksum"] = checksum(held) if isinstance(held, np.ndarray) else int(entry["checksum"])
    (unfinished,) = root.glob(f"{step}.{_UNFINISHED.partition('.')[2]}")
    with open(unfinished / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"leaves": manifest}, file)
        file.flush()
        os.fsync(file.fileno())


def _remove_unfinished(root: Path) -> None:
    """Remove what a failed save has left; threads of its writer may add files for a moment."""
    for _ in range(_TRIES):
        left = list(root.glob(_UNFINISHED))
        if not left:
            return
        for half in left:
            shutil.rmtree(half, ignore_errors=True)
        time.sleep(_PAUSE)


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
        ValueError: it is damaged, of an earlier version, or a leaf has another name, shape or dtype than in ``like``.
    """
    directory = Path(path).absolute() / str(step)
    if not directory.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {directory}; the last one there is of step {latest(path)}.")
    if (directory / _EARLIER_MANIFEST).is_dir():
        raise ValueError(
            f"checkpoint {directory} is of an earlier version, which this one cannot go on from; go on with the code "
            "that wrote it, or begin a new run."
        )
    with _damage_explained(directory):
        manifest = read_manifest(directory)
    wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
    _check_same_leaves(directory, manifest, wanted)
    with _damage_explained(directory):
        arrays = _read_arrays(directory, manifest, [leaf for _, leaf in wanted])
    leaves = [_as_before(array, leaf) for array, (_, leaf) in zip(arrays, wanted, strict=True)]
    return jax.tree_util.tree_unflatten(treedef, leaves)


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


def _flattened(state: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the manifest says of each leaf, and the leaf: copied, or on its devices, where Orbax copies it."""
    manifest, arrays = [], {}
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        shape, dtype = _kind(_name(path), leaf)
        array = leaf if _stays_on_devices(leaf) else np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        arrays[str(index)] = array
        manifest.append(
            {
                "name": _name(path),
                "shape": shape,
                "dtype": dtype,
                "key_impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
                "data_shape": list(array.shape),
                "data_dtype": str(array.dtype),
                # Of what is copied the thread that writes it takes the sum, and of the rest the devices do.
                "checksum": None if isinstance(array, np.ndarray) else checksum(array),
            }
        )
    return manifest, arrays


def _stays_on_devices(leaf: Any) -> bool:
    """Whether an array is written from its devices and read to them, each process its own parts.

    On the CPU the host's copy is the cheaper way: an array that is looked at there cannot be donated.
    """
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) or _is_key(leaf) or not leaf.size:
        return False
    sharding = leaf.sharding
    if sharding is None or getattr(leaf, "weak_type", False) or not getattr(leaf, "committed", True):
        return False
    return not sharding.is_fully_addressable or platform() != "cpu"


@contextlib.contextmanager
def _damage_explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        others = [step for step in steps(directory.parent) if step != int(directory.name)]
        advice = f"remove it to go on from step {others[-1]}" if others else "there is no other to go on from"
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"checkpoint {directory} is damaged ({reason}); {advice}.") from error


def read_manifest(directory: Path) -> list[dict[str, Any]]:
    """What a checkpoint says of its leaves, an entry for each.

    Raises:
        ValueError: an entry lacks something, or the file is no JSON.
    """
    manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))["leaves"]
    _check_manifest(manifest)
    return manifest


def _read_arrays(directory: Path, manifest: list[dict[str, Any]], like: list[Any]) -> list[Any]:
    """One value a leaf: a numpy array, a typed key, or an array on its devices."""
    stored = {
        str(index): leaf
        for index, (entry, leaf) in enumerate(zip(manifest, like, strict=True))
        if 0 not in entry["data_shape"]
    }
    arrays = _read(directory, stored) if stored else {}
    values = []
    for index, entry in enumerate(manifest):
        # Orbax refuses arrays without elements; their shape, in the manifest, is all there is to them.
        array = arrays[str(index)] if str(index) in arrays else np.zeros(entry["data_shape"], entry["data_dtype"])
        if int(checksum(array)) != entry["checksum"]:
            raise ValueError(f"{entry['name']} is not what was written")
        impl = entry["key_impl"]
        values.append(jax.random.wrap_key_data(jnp.array(array), impl=impl) if impl else array)
    return values


def _read(directory: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The arrays by the names that Orbax has for them, on their devices or as numpy arrays."""
    import orbax.checkpoint as ocp

    arguments = {
        name: ocp.ArrayRestoreArgs(sharding=leaf.sharding)
        if _stays_on_devices(leaf)
        else ocp.RestoreArgs(restore_type=np.ndarray)
        for name, leaf in like.items()
    }
    leaves = ocp.args.PyTreeRestore(restore_args=arguments)
    with quiet_checkpointer(ocp.Checkpointer) as checkpointer:
        return checkpointer.restore(directory, args=ocp.args.Composite(leaves=leaves))["leaves"]


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
    if isinstance(value, jax.Array) and not _is_key(value):
        return value
    array = value if _is_key(value) else _strong_or_weak(value, getattr(like, "weak_type", False))
    # An uncommitted array put on its device would be committed, which is another input to jit: one more compilation.
    several = like.sharding is not None and len(like.sharding.device_set) > 1
    return jax.device_put(array, like.sharding) if several or getattr(like, "committed", False) else array


def _strong_or_weak(value: Any, weak: bool) -> jax.Array:
    if weak:
        return jnp.full(value.shape, value.dtype.type(0).item()).at[...].set(value)
    return jnp.array(value)
