"""The other processes of a program: that one has ended, or failed, is known to all within half a minute.

Collectives of devices wait for ever for a process that is gone, and JAX's own service ends a process with a dump of its
stack. So each process holds a connection to the first one. The kernel closes it when a process ends, however it ends,
and probes it where a machine is gone; neither waits for Python.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from rlax_llm.core.processes import first_says

ENDED = 1
"""The exit code of a process that ends because another one has."""

_SECONDS_TO_CONNECT = 10.0
_SECONDS_TO_FAIL = 20.0  # that a process waits for the others to fail alike
_SECONDS_TO_HEAR = 2.0  # that an abort of JAX waits for what the connections say
_PROBES = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Peers:
    """This process's connections: of the first one to all others, of each other to the first.

    Attributes:
        failures: what each process has said that it failed with, by its index.
        alone: this process failed and not all others did: it must not wait for them.
    """

    def __init__(self) -> None:
        self.failures: dict[int, str] = {}
        self.alone = False
        self._index = 0
        self._count = 1
        self._run = 0
        self._connections: dict[int, socket.socket] = {}
        self._leaving = False
        self._changed = threading.Condition()

    def connect(self) -> bool:
        """Connect all, once in a program; False where this one cannot reach the first.

        JAX's service ends a process whose first one is gone by an abort, in a thread of its own and out of Python's
        reach: that waits from now on for what the connections say.
        """
        self._index, self._count = jax.process_index(), jax.process_count()
        _libc().signal(int(signal.SIGABRT), _on_abort)
        atexit.register(self._leave)
        index, token = self._index, secrets.token_hex(16)
        listener = socket.create_server(("", 0), backlog=self._count) if index == 0 else None
        place = [token, listener.getsockname()[1] if listener else 0, _addresses() if listener else []]
        token, port, addresses = first_says(place)
        if listener is None:
            return self._join(addresses, port, f"{token} {index}\n")
        with listener:
            self._accept(listener, token)
        return len(self._connections) == self._count - 1

    def _accept(self, listener: socket.socket, token: str) -> None:
        listener.settimeout(_SECONDS_TO_CONNECT)
        with contextlib.suppress(TimeoutError):
            while len(self._connections) < self._count - 1:
                connection, _ = listener.accept()
                connection.settimeout(_SECONDS_TO_CONNECT)
                words = _line(connection).split()
                if len(words) == 2 and secrets.compare_digest(words[0], token):
                    connection.sendall(b"welcome\n")
                    self._watch(int(words[1]), connection)
                else:
                    connection.close()

    def _join(self, addresses: list[str], port: int, greeting: str) -> bool:
        for address in addresses:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((address, port), timeout=_SECONDS_TO_CONNECT)
                connection.sendall(greeting.encode())
                if _line(connection) == "welcome":
                    self._watch(0, connection)
                    return True
                connection.close()
        return False

    def _watch(self, index: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _PROBES:
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connections[index] = connection
        threading.Thread(target=self._listen, args=(index, connection), daemon=True).start()

    def _listen(self, index: int, connection: socket.socket) -> None:
        """Take what a process says, and end with it."""
        try:
            while line := _line(connection):
                self._hear(json.loads(line), index)
        except (OSError, ValueError):
            pass
        if not self._leaving:
            self._end(index)

    def _hear(self, message: dict[str, Any], sender: int) -> None:
        if message["kind"] == "left":
            self._leaving = True
        elif message["kind"] == "gone":
            self._end(message["index"])
        else:
            self._note(message["index"], message["text"])
            waiting = threading.Timer(_SECONDS_TO_FAIL, self._end_unless_all_failed, [message["index"], self._run])
            waiting.daemon = True
            waiting.start()
        if self._index == 0:
            self._tell(message, but=sender)

    def _note(self, index: int, text: str) -> None:
        with self._changed:
            self.failures[index] = text
            self._changed.notify_all()

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        for index, connection in self._connections.items():
            if index != but:
                with contextlib.suppress(OSError):
                    connection.sendall((json.dumps(message) + "\n").encode())

    def _end_unless_all_failed(self, index: int, run: int) -> None:
        if run == self._run and len(self.failures) < self._count and not self._leaving:
            self._end(index)

    def _end(self, index: int) -> NoReturn:
        """End this process, for another one has."""
        self._tell({"kind": "gone", "index": index})
        text = self.failures.get(index)
        what = "has ended without a word" if text is None else f"failed: {text.rstrip('.')}"
        _leave(f"error: process {index} {what}; process {self._index} ends too. Go on with --resume.\n")

    def all_fail(self, text: str) -> bool:
        """Say that this process has failed, and answer whether all others have within a short time."""
        if self.alone:
            return False
        if self._index not in self.failures:
            self._note(self._index, text)
            self._tell({"kind": "failed", "index": self._index, "text": text})
        with self._changed:
            alike = self._changed.wait_for(lambda: len(self.failures) == self._count, _SECONDS_TO_FAIL)
        self.alone = not alike
        return alike

    def forget(self) -> None:
        """Forget the failures of an earlier run, which all had."""
        self._run += 1
        self.failures = {}

    def _leave(self) -> None:
        """Say that this process leaves as it should; nobody ends for that."""
        if not self.alone:
            self._leaving = True
            self._tell({"kind": "left"})


def _line(connection: socket.socket) -> str:
    """The next line, without what ends it; empty where the connection has ended. A byte at a time: they are few."""
    found = bytearray()
    while (byte := connection.recv(1)) not in (b"", b"\n"):
        found += byte
    return found.decode()


def _addresses() -> list[str]:
    """What this machine may be reached by: its name, its addresses, and itself."""
    name = socket.gethostname()
    found = [name, "localhost"]
    with contextlib.suppress(OSError):
        found[1:1] = socket.gethostbyname_ex(name)[2]
    return found


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def leave_when_aborted(text: str) -> Callable[[], None]:
    """From now on end with a sentence where JAX's service aborts this process, out of Python's reach.

    Args:
        text: the sentence.

    Returns:
        A function after whose call an abort does what it did.
    """
    handler = _HANDLER(lambda number: _leave(f"error: {text}\n"))
    _ABORTED.append(handler)  # it must not be collected
    _libc().signal(int(signal.SIGABRT), handler)
    return lambda: _libc().signal(int(signal.SIGABRT), None)


_ABORTED: list[Any] = []


@_HANDLER
def _on_abort(number: int) -> None:
    """Let the thread that hears of the others' end be first; where nothing is heard the abort goes on."""
    time.sleep(_SECONDS_TO_HEAR)
    _libc().signal(number, None)


def _libc() -> Any:
    return ctypes.CDLL(None)


def _leave(text: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os._exit(ENDED)


PEERS = Peers()
"""Those of this process."""
