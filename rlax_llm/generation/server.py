"""A server that is asked over HTTP in JSON: once more where it was busy for a moment, and a sentence where it fails."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
_BUSY = (408, 425, 429)
_LONGEST = 300  # characters of what a server says
# Its own machine, or one beside it: never by the proxy that the environment names for the internet.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Failed(Exception):
    """A request that may be made again; what it says is the reason."""


@dataclass(frozen=True)
class Server:
    """Where a server is, and how long it is waited for.

    Attributes:
        url: as ``http://localhost:8000``, without what the API adds.
        timeout: seconds that an answer may take.
        token: sent as ``Authorization: Bearer``, or None.
        waits: seconds before a request is made again, where the server could not be reached or was busy.
        sleep: waits so many seconds.
    """

    url: str
    timeout: float = 600.0
    token: str | None = None
    waits: tuple[float, ...] = _WAITS
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        check_url(self.url)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer to a request: what its JSON holds, None where it is empty.

        Args:
            path: of the API, as ``/v1/models``.
            body: posted as JSON; None gets.

        Raises:
            ValueError: the server refuses the request, or its answer is no JSON.
            ConnectionError: it cannot be reached, has failed each time, or has not answered in time.
        """
        reason = ""
        for wait in (*self.waits, None):
            try:
                return self._once(path, body)
            except _Failed as failed:
                reason = str(failed)
            if wait is not None:
                self.sleep(wait)
        raise ConnectionError(
            f"{self.url}{path}: {reason}, tried {len(self.waits) + 1} times; start the server, or give its address "
            "(sampler_url)."
        )

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            with _OPENER.open(self._request(path, body), timeout=self.timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            said = f"it answers {error.code} ({_message(error)})"
            if error.code >= 500 or error.code in _BUSY:
                raise _Failed(said) from None
            raise ValueError(f"{self.url}{path}: {said}; change what it names, or the server.") from None
        except TimeoutError:
            raise self._late(path) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._late(path) from None
            raise _Failed(f"it cannot be reached ({_line(str(reason)) or type(reason).__name__})") from None
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            raise ValueError(
                f"{self.url}{path}: the answer is no JSON ({_line(text.decode(errors='replace'))!r}); give the address "
                "of a server with OpenAI's API."
            ) from None

    def _late(self, path: str) -> ConnectionError:
        return ConnectionError(
            f"{self.url}{path}: no answer in {self.timeout:g} seconds; give it more time (sampler_timeout), or give "
            "slots, which ask for less at a time."
        )

    def _request(self, path: str, body: Mapping[str, Any] | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        return urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), headers)


def check_url(url: str) -> None:
    """Raise for what is no address of a server.

    Args:
        url: as ``http://localhost:8000``.

    Raises:
        ValueError: for another form.

    >>> check_url("localhost:8000")
    Traceback (most recent call last):
    ValueError: the address 'localhost:8000' is no server's, wanted one as http://localhost:8000.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"the address {url!r} is no server's, wanted one as http://localhost:8000.")


def _message(error: urllib.error.HTTPError) -> str:
    """What the body of an error says, as OpenAI's API writes it, or else its beginning."""
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return _line(str(error.reason))
    try:
        found = json.loads(text)
    except ValueError:
        return _line(text) or _line(str(error.reason))
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return _line(found if isinstance(found, str) else json.dumps(found))


def _line(text: str) -> str:
    """A text on one line, and not without end."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
