"""What each of two processes does, for ``test_processes.py``: runs of commands, and what goes wrong between them.

It writes what it has seen to ``DIRECTORY/INDEX.json``; the last run is one that process 1 does not survive.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

SFT = {"steps": 2, "batch_size": 8, "eval_size": 0, "learning_rate": 1e-2, "optimizer": "sgd", "mesh": "fsdp=8"}
SFT |= {"task": "arithmetic", "lora_rank": 2}
GRPO = {"steps": 3, "batch_size": 8, "eval_size": 0, "learning_rate": 1e-2, "optimizer": "sgd"}
GRPO |= {"max_new_tokens": 3, "max_prompt_tokens": 16, "warm_start_steps": 0, "group_size": 2}
GRPO |= {"mesh": "data=2,fsdp=2,tensor=2"}
INDEX = int(os.environ.get("PROCESS_INDEX", "0"))
called = 0


def different_characters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(len(set(completion))) for completion in completions]


def signalled(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """In its second step process 1 is asked to end."""
    global called
    called += 1
    if INDEX == 1 and called == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return different_characters(prompts, completions)


def unlucky(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
    return ["nothing"] * len(prompts) if INDEX == 1 else different_characters(prompts, completions)


def half(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Of process 1 no row has a score."""
    if INDEX == 1:
        raise KeyError("unit")
    return different_characters(prompts, completions)


def mortal(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    if INDEX == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return different_characters(prompts, completions)


def rewarded(name: str) -> dict[str, Any]:
    return GRPO | {"reward": f"{__file__}:{name}"}


def main(directory: Path, port: str) -> None:
    import jax

    from rlax_llm.commands.grpo.run import run_grpo
    from rlax_llm.commands.grpo.settings import GrpoSettings
    from rlax_llm.commands.sft.run import run_sft
    from rlax_llm.commands.sft.settings import SftSettings

    here = {"coordinator": f"127.0.0.1:{port}", "process_id": INDEX, "processes": 2}

    def grpo(reward: str, **other: Any) -> Any:
        given = rewarded(reward) | here | {"out": str(directory / reward)}
        return run_grpo(GrpoSettings.of(**given | other))

    def refused(reward: str, **other: Any) -> str:
        try:
            grpo(reward, **other)
        except ValueError as error:
            return str(error)
        return ""

    seen: dict[str, Any] = {"stopped_by": grpo("signalled").stopped_by}
    seen["devices"] = [len(jax.devices()), len(jax.local_devices())]
    model = str(directory / "signalled" / "model")
    run_sft(SftSettings.of(**SFT, **here, model=model, out=str(directory / "sft")))
    seen["disagreeing"] = refused("unlucky", seed=INDEX)
    seen["unlucky"] = refused("unlucky")
    seen["half"] = refused("half", steps=1)
    (directory / f"{INDEX}.json").write_text(json.dumps(seen))
    grpo("mortal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
