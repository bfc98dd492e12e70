"""A foreign sampler of a run: the server that draws, and the hand-over of the policy's weights to it."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlax_llm.commands.server_settings import ServerSettings
from rlax_llm.core.processes import done_by_all, first_says, is_first
from rlax_llm.core.types import Completions
from rlax_llm.generation.served import Served, listed_model
from rlax_llm.generation.server import Server
from rlax_llm.host.progress import say
from rlax_llm.models.functional import Params

TOKEN_VARIABLE = "RLAX_LLM_SAMPLER_TOKEN"
"""Of the environment: what the server wants as ``Authorization: Bearer``."""

Write = Callable[[Params, Path], None]
Reload = Callable[[Path], None]


class HandOver:
    """Gives a server the weights of a policy, when they are due; called before completions are drawn.

    Args:
        served: draws, and remembers which policy it was given.
        write: ``(params, directory)``, a Hugging Face model.
        directory: of the model.
        reload: makes the server read it.
        every: steps after which it is due.
    """

    def __init__(self, served: Served, write: Write, directory: Path, reload: Reload, every: int):
        self.served, self.write, self.directory, self.reload, self.every = served, write, directory, reload, every

    def __call__(self, params: Params, version: int, latest: bool = False) -> Params:
        """Hand over where it is due; the parameters as they were.

        Args:
            params: of the policy, as trained.
            version: the number of steps that it has taken.
            latest: it is due where the server has any other.
        """
        last = self.served.version
        if last is None or version - last >= (1 if latest else self.every):
            self.write(params, self.directory)
            done_by_all(lambda: self.reload(self.directory) if is_first() else None, ValueError, OSError)
            self.served.version = version
        return params


@contextmanager
def served_by(settings: ServerSettings, write: Write) -> Iterator[HandOver | None]:
    """The hand-over to the server of the settings; None where there is none.

    Args:
        settings: of the server.
        write: ``(params, directory)``, a Hugging Face model.

    Raises:
        ValueError: the server does not list a model, or its way to read weights is not known.
        ConnectionError: it cannot be reached.
    """
    if settings.sampler_url is None:
        yield None
        return
    url = settings.sampler_url.rstrip("/").removesuffix("/v1")
    server = Server(url, settings.sampler_timeout, os.environ.get(TOKEN_VARIABLE))
    listed = done_by_all(lambda: listed_model(server) if is_first() else {}, ValueError, OSError)[0]
    maker, name = str(listed.get("owned_by")), str(listed["id"])
    reload = reloading(server, maker, settings.sampler_reload)
    say(f"Completions are drawn by {url} ({maker}), model {name}")
    with tempfile.TemporaryDirectory(prefix="rlax-llm-") as own:
        place = first_says(own) if settings.sampler_directory is None else settings.sampler_directory
        yield HandOver(Served(server, name), write, Path(place).absolute() / "model", reload, settings.sampler_every)


def reloading(server: Server, maker: str, command: str | None = None) -> Reload:
    """What makes a server read the weights of a directory.

    Args:
        server: that is told.
        maker: what it calls itself.
        command: run instead, with ``{path}`` for the directory.

    Raises:
        ValueError: a server of another make, without a command.
    """
    if command is not None:
        return lambda path: run_reload(command, path)
    if maker == "vllm":
        return lambda path: _reload_vllm(server, path)
    if maker == "sglang":
        return lambda path: _reload_sglang(server, path)
    raise ValueError(
        f"{server.url}: the server calls itself {maker!r}, wanted vllm or sglang, which are known to read "
        "weights; give a command that does it (sampler_reload)."
    )


def _reload_vllm(server: Server, path: Path) -> None:
    try:
        server.ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        answer = server.ask("/reset_prefix_cache", {})
    except ValueError as error:
        raise ValueError(
            f"vLLM was not given the weights ({error}); start it with VLLM_SERVER_DEV_MODE=1 in its environment, or "
            "give sampler_reload."
        ) from None
    _check_success(server, "/reset_prefix_cache", answer)


def _reload_sglang(server: Server, path: Path) -> None:
    answer = server.ask("/update_weights_from_disk", {"model_path": str(path)})
    _check_success(server, "/update_weights_from_disk", answer)


def _check_success(server: Server, path: str, answer: Any) -> None:
    """Raise where an answer says that it did not work; an older server says nothing."""
    if isinstance(answer, dict) and not answer.get("success", True):
        raise ValueError(f"{server.url}{path}: it failed ({answer.get('message', answer)}); look at the server.")


def run_reload(command: str, path: Path) -> None:
    """Run a command that makes a server read a directory.

    Args:
        command: of the shell, with ``{path}`` for the directory.
        path: the directory.

    Raises:
        ValueError: it fails.

    >>> run_reload("test -d {path}", Path("no such directory"))
    Traceback (most recent call last):
    ValueError: sampler_reload: the command ended with 1 (it says nothing); mend it: test -d 'no such directory'
    """
    line = command.replace("{path}", shlex.quote(str(path)))
    done = subprocess.run(line, shell=True, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise ValueError(f"sampler_reload: the command ended with {done.returncode} ({said}); mend it: {line}")


def staleness(completions: Completions, step: int) -> dict[str, float]:
    """Steps that the policy has taken since the one that drew each completion, on average, as a metric.

    Where that is known of each token, it is their average, beside the share of tokens that older policies drew and the
    age of the oldest.

    Args:
        completions: of a step.
        step: taken before it.
    """
    if completions.versions is None:
        return {}
    ages = step - np.asarray(completions.versions)
    if ages.ndim == 1:
        return {"sampler/staleness": float(ages.mean())}
    ages = ages[np.asarray(completions.mask)]
    older = {"sampler/older_tokens": float((ages > 0).mean()), "sampler/oldest": float(ages.max())}
    return {"sampler/staleness": float(ages.mean())} | older
