"""Checkpoints: restored bits, the last two kept, and what is said when one is damaged or does not fit."""

import errno
import os
import resource
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding

from rlax_llm.host import checkpoints
from rlax_llm.host.checksums import checksum


def _state(seed=0, width=3):
    params = {
        "layers": {"w": jax.random.normal(jax.random.key(seed), (2, width))},
        "b": jnp.ones((3,), jnp.bfloat16) / 3,
    }
    return {
        "params": params,
        "opt_state": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params),
        "key": jax.random.key(seed + 1),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 2),
        "position": 2**40 + seed,
        "rate": 0.1,
        "done": True,
        "nothing": None,
        "empty": jnp.zeros((0, 4)),
        "order": np.arange(5, dtype=np.int64)[::-1],
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "weak": jnp.full((2,), 1.5),
        "weak_scalar": jnp.asarray(2.0),
    }


def _bits(leaf):
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def _assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        assert type(a) is type(b), name
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None), name
        assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None), name
        assert getattr(a, "committed", None) == getattr(b, "committed", None), name
        assert _bits(a) == _bits(b), name


def test_restored_state_is_the_saved_one_bit_for_bit(tmp_path):
    checkpoints.save(tmp_path, 3, _state())
    _assert_same(checkpoints.restore(tmp_path, 3, like=_state(seed=9)), _state())


def test_shapes_are_enough_to_restore(tmp_path):
    state = {"w": jnp.arange(3.0), "key": jax.random.key(0)}
    checkpoints.save(tmp_path, 0, state)
    _assert_same(checkpoints.restore(tmp_path, 0, like=jax.eval_shape(lambda: state)), state)


def test_a_restored_array_is_where_the_given_one_is(tmp_path):
    placed = jax.device_put(jnp.arange(3.0), jax.devices()[0])
    checkpoints.save(tmp_path, 0, placed)
    _assert_same(checkpoints.restore(tmp_path, 0, like=placed), placed)


def test_the_last_two_are_kept(tmp_path):
    assert checkpoints.latest(tmp_path / "checkpoints") is None
    for step in (8, 9, 10):
        checkpoints.save(tmp_path / "checkpoints", step, {"w": jnp.full((2,), step)})
    assert checkpoints.latest(tmp_path / "checkpoints") == 10
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["10", "9"]


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is written is the state as it was, though its arrays are donated before the writing has ended."""
    write, go_on, there = checkpoints._write_manifest, threading.Event(), []

    def slowly(*arguments):
        assert go_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoints, "_write_manifest", slowly)
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"w": jnp.arange(3000.0), "n": jnp.zeros((), jnp.int32)}
    writer = checkpoints.Writer(tmp_path)
    writer.save(1, state, checkpoints.last(2))
    for _ in range(3):
        state = step(state)
        writer.check()
        there.append(checkpoints.latest(tmp_path))
    go_on.set()
    writer.save(4, state, checkpoints.last(1))
    writer.wait()
    assert there == [None] * 3 and checkpoints.steps(tmp_path) == [4]
    _assert_same(checkpoints.restore(tmp_path, 4, state), {"w": jnp.arange(3000.0) + 3, "n": jnp.int32(3)})


def test_an_error_of_the_writing_is_told_at_the_next_look(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    writer = checkpoints.Writer(tmp_path)
    writer.save(1, jnp.zeros(2), checkpoints.last(2))
    writer.wait()
    monkeypatch.setattr(checkpoints, "_write_manifest", full)
    writer.save(2, jnp.zeros(2), checkpoints.last(2))
    with pytest.raises(OSError, match=r"no space left on the disk while writing .*2; what was written before"):
        for _ in range(1000):
            writer.check()
            time.sleep(0.01)
    writer.wait()
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_a_checkpoint_of_an_earlier_version_is_not_called_damaged(tmp_path):
    (tmp_path / "7" / "manifest").mkdir(parents=True)
    said = r"7 is of an earlier version, .*; go on with the code that wrote it, or begin a new run"
    with pytest.raises(ValueError, match=said):
        checkpoints.restore(tmp_path, 7, _state())


@pytest.mark.parametrize("damaged", [False, True])
def test_parts_on_devices_are_written_from_them_and_read_to_them(tmp_path, monkeypatch, damaged):
    """As on accelerators: each device's part by itself, with the checksum that the whole has on the host."""
    placed = jax.device_put(jnp.arange(12.0).reshape(4, 3), SingleDeviceSharding(jax.devices()[0]))
    checkpoints.save(tmp_path, 1, {"w": placed})
    on_host = checkpoints.read_manifest(tmp_path / "1")
    monkeypatch.setattr(checkpoints, "platform", lambda: "gpu")
    checkpoints.save(tmp_path, 2, {"w": placed})
    assert checkpoints.read_manifest(tmp_path / "2") == on_host
    if damaged:
        manifest = tmp_path / "2" / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"checksum": ', '"checksum": 1'))
        with pytest.raises(ValueError, match="w is not what was written"):
            checkpoints.restore(tmp_path, 2, {"w": placed})
    else:
        _assert_same(checkpoints.restore(tmp_path, 2, {"w": placed}), {"w": placed})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_any_change_of_one_bit_changes_the_checksum(dtype):
    values = (np.arange(70_000).reshape(7, 10_000) % 2).astype(jnp.dtype(dtype))
    whole = checksum(values)
    assert int(checksum(jnp.array(values))) == whole
    for row, column in ((0, 0), (3, 77), (6, 9_999)):
        changed = values.copy()
        changed.view(np.uint8)[row, column * changed.dtype.itemsize] ^= 1
        assert checksum(changed) != whole


def test_saving_a_step_again_replaces_it(tmp_path):
    like = jnp.zeros(2)
    checkpoints.save(tmp_path, 1, like)
    checkpoints.save(tmp_path, 1, like + 1)
    np.testing.assert_array_equal(checkpoints.restore(tmp_path, 1, like), 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_a_crash_while_saving_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, _state())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "_write_manifest", killed)
        checkpoints.save(tmp_path, 2, _state(1))
    assert checkpoints.latest(tmp_path) == 1
    _assert_same(checkpoints.restore(tmp_path, 1, _state(2)), _state())
    checkpoints.save(tmp_path, 2, _state(1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((2, 4)), "n": 1}, r"w is float32\[2, 3\], wanted float32\[2, 4\]"),
        ({"w": jnp.zeros((2, 3), jnp.bfloat16), "n": 1}, r"w is float32\[2, 3\], wanted bfloat16\[2, 3\]"),
        ({"w": jnp.zeros((2, 3)), "n": jnp.int32(1)}, r"n is Python int, wanted int32\[\]"),
        ({"w": jnp.zeros((2, 3)), "n": 1, "more": {"b": jnp.zeros(1)}}, "holds no more/b"),
        ({"w": jnp.zeros((2, 3))}, "holds n, .* which is not wanted"),
    ],
)
def test_another_structure_is_refused_by_name(tmp_path, like, message):
    checkpoints.save(tmp_path, 1, {"w": jnp.zeros((2, 3)), "n": 1})
    with pytest.raises(ValueError, match=message):
        checkpoints.restore(tmp_path, 1, like)


def test_damage_is_seen(tmp_path):
    state = {"w": jnp.arange(1000.0)}
    checkpoints.save(tmp_path, 1, state)
    checkpoints.save(tmp_path, 2, state)
    largest = max((tmp_path / "2").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(ValueError, match=r"2 is damaged .*; remove it to go on from step 1"):
        checkpoints.restore(tmp_path, 2, state)
    largest.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.restore(tmp_path, 2, state)
    (tmp_path / "2" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.restore(tmp_path, 2, state)


def test_an_entry_that_lacks_something_is_damage(tmp_path):
    checkpoints.save(tmp_path, 1, {"w": jnp.zeros(2)})
    manifest = tmp_path / "1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"checksum"', '"sum"'))
    with pytest.raises(ValueError, match=r"1 is damaged \(an entry of its manifest has no 'checksum'\); there"):
        checkpoints.restore(tmp_path, 1, {"w": jnp.zeros(2)})


def test_half_of_the_arrays_is_one_sentence_and_no_traceback(tmp_path, capfd):
    state = {f"w{i}": jnp.arange(3000.0) + i for i in range(30)}
    checkpoints.save(tmp_path, 1, state)
    for file in (tmp_path / "1").rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"1 is damaged \("):
        checkpoints.restore(tmp_path, 1, state)
    time.sleep(0.2)
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_the_last_one(tmp_path, capfd):
    state = {f"w{i}": jnp.arange(3000.0) + i for i in range(30)}
    checkpoints.save(tmp_path, 1, state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"no space left on the disk while writing .*2; what was written before"):
            checkpoints.save(tmp_path, 2, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    time.sleep(0.2)
    assert "Traceback" not in capfd.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    _assert_same(checkpoints.restore(tmp_path, 1, state), state)


def test_a_missing_checkpoint_and_a_leaf_of_no_use(tmp_path):
    checkpoints.save(tmp_path, 4, jnp.zeros(1))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*5; the last one there is of step 4"):
        checkpoints.restore(tmp_path, 5, jnp.zeros(1))
    with pytest.raises(TypeError, match="name is a str"):
        checkpoints.save(tmp_path, 6, {"name": "x"})
