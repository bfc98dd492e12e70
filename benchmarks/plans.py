"""Plans of runs on slices of TPUs, by the TPU compiler, without a TPU: the table of docs/scaling.md.

python benchmarks/plans.py [NAME …]    compile the named plans, or all (minutes each), and write them down
python benchmarks/plans.py --table     write the table of what is written down into docs/scaling.md

Each plan is that of a command of ``rlax-llm plan``. Needs the extra ``plan`` (libtpu).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rlax_llm.commands.plan.report import Plan
from rlax_llm.commands.plan.run import make_plan
from rlax_llm.commands.plan.settings import PlannedGrpo

FILE = Path(__file__).parent / "results" / "plans.json"
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
GIB = 2.0**30

BF16 = {"dtype": "bfloat16", "max_prompt_tokens": 512}
SMALL = BF16 | {"model": "qwen3-0.6b", "group_size": 8, "micro_batch_size": 8}
MIDDLE = BF16 | {"model": "qwen3-8b", "batch_size": 64, "group_size": 8, "max_new_tokens": 8_192}
LARGE = BF16 | {"model": "llama-3-70b", "batch_size": 64, "group_size": 8, "max_new_tokens": 4_096}
LORA = {"lora_rank": 32}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.6b": (
        "Qwen3-0.6B, 8 × 8 of 16,384",
        SMALL | {"on": "v5e:2x4", "mesh": "fsdp=8", "batch_size": 8, "max_new_tokens": 16_384, "slots": 32},
    ),
    "0.6b-half": (
        "half the length",
        SMALL | {"on": "v5e:2x4", "mesh": "fsdp=8", "batch_size": 8, "max_new_tokens": 8_192},
    ),
    "0.6b-batch": (
        "half the length, twice the prompts",
        SMALL | {"on": "v5e:2x4", "mesh": "fsdp=8", "batch_size": 16, "max_new_tokens": 8_192, "slots": 64},
    ),
    "0.6b-devices": (
        "twice the devices",
        SMALL | {"on": "v5e:4x4", "mesh": "fsdp=16", "batch_size": 8, "max_new_tokens": 16_384, "micro_batch_size": 16},
    ),
    "1.7b-lora": (
        "Qwen3-1.7B with LoRA, 4 × 8 of 1,024",
        BF16
        | {"model": "qwen3-1.7b", "lora_rank": 16, "on": "v5e:1x1", "batch_size": 4, "max_new_tokens": 1_024}
        | {"micro_batch_size": 8},
    ),
    "8b": (
        "Qwen3-8B, 64 × 8 of 8,192",
        MIDDLE | {"on": "v5p:4x4x2", "mesh": "fsdp=32", "micro_batch_size": 32},
    ),
    "8b-v5e": (
        "the same on v5e",
        MIDDLE | {"on": "v5e:8x8", "mesh": "fsdp=16,tensor=4", "micro_batch_size": 32, "slots": 128},
    ),
    "70b-lora": (
        "Llama-3-70B's shape with LoRA, 64 × 8 of 4,096",
        LARGE | LORA | {"on": "v5p:4x4x4", "mesh": "fsdp=8,tensor=8", "micro_batch_size": 32},
    ),
    "70b": (
        "Llama-3-70B's shape, all weights, 64 × 8 of 4,096",
        LARGE | {"on": "v5p:4x4x4", "mesh": "fsdp=8,tensor=8", "micro_batch_size": 32},
    ),
}


def described(plan: Plan) -> dict[str, Any]:
    """What is written down of a plan."""
    programs = {
        program.name: {
            "gib": {name: round(size / GIB, 2) for name, size in program.held.items()},
            "temporaries_gib": None if program.taken is None else round(program.taken / GIB, 2),
            "total_gib": round(program.total / GIB, 2),
            "fits": program.fits,
            "tflop": None if program.work is None else round(program.work.flops / 1e12, 2),
            "sent_gb": round(sum(sent.bytes for sent in program.sends.values()) / 1e9, 2),
            "seconds": [] if plan.machine.chip is None else program.seconds(plan.machine.chip),
        }
        for program in plan.programs
    }
    return {
        "devices": plan.machine.mesh.size,
        "room_gib": round(plan.machine.room / GIB, 2),
        "fits": plan.fits,
        "seconds": plan.seconds,
        "tokens": plan.tokens,
        "programs": programs,
    }


def run(names: list[str]) -> None:
    """Compile plans, and write each down when it is done."""
    for name in names or CASES:
        settings = PlannedGrpo.of(**CASES[name][1])
        start = time.perf_counter()
        plan = described(make_plan(settings, search=False))
        found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
        found[name] = plan
        ordered = {known: found[known] for known in CASES if known in found}
        FILE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: fits {plan['fits']}, {time.perf_counter() - start:.0f} s", flush=True)


def table() -> str:
    """The rows of docs/scaling.md."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    rows = [
        "| GRPO | on | sample | learn | of | step at least, s | drawing + learning | tokens/s per device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*rows, *(_row(name, found[name]) for name in CASES if name in found)])


def _row(name: str, plan: dict[str, Any]) -> str:
    title, given = CASES[name]
    programs = plan["programs"]
    learned = programs["update"]
    sampled = [program for key, program in programs.items() if key != "update"]
    seconds = {key: max(program["seconds"]) for key, program in programs.items()}
    drawing = sum(value for key, value in seconds.items() if key != "update")
    total = drawing + seconds["update"]
    mesh = given.get("mesh", "one device")
    rate = plan["tokens"] / total / plan["devices"]
    most = max(program["total_gib"] for program in sampled)
    cells = [title, f"{given['on']}, {mesh}", f"{most:.1f}", f"{learned['total_gib']:.1f}", f"{plan['room_gib']:.1f}"]
    cells += [f"{total:,.0f}", f"{drawing:,.0f} + {seconds['update']:,.0f}", f"{rate:,.0f}"]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """docs/scaling.md with the table in its place."""
    before, rest = PAGE.read_text(encoding="utf-8").split("<!-- plans -->\n")
    behind = rest.split("<!-- end of plans -->")[1]
    return f"{before}<!-- plans -->\n{table()}\n<!-- end of plans -->{behind}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        run(sys.argv[1:])
