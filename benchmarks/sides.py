"""What benchmarks share whose sides work in processes of their own: the processes, their clocks and their memory.

Imports neither JAX nor torch: each process is to hold its own side's libraries and no others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PAD, EOS = 0, 1


class Worker:
    """A side in a process of its own: a block of steps when it is called, and between calls it waits.

    The side is a function of a connection and picklable arguments; it answers each message with seconds, and sends what
    else it has to say after its last block.
    """

    def __init__(self, side: Callable[..., None], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._line, end = context.Pipe()
        self._process = context.Process(target=side, args=(end, *arguments), daemon=True)
        self._process.start()
        end.close()

    def _received(self) -> Any:
        try:
            return self._line.recv()
        except EOFError:
            raise SystemExit("A side ended before its last step; its error stands above.") from None

    def __call__(self) -> float:
        """The median seconds of a block's steps."""
        self._line.send("go")
        return self._received()

    def close(self) -> dict[str, Any]:
        """What the side says of itself."""
        found = self._received()
        self._process.join()
        return found


def blocks(args: argparse.Namespace) -> int:
    """Of each side: one to warm up, and those that count."""
    return args.repeats + 1


def total_steps(args: argparse.Namespace) -> int:
    return args.block * blocks(args)


def serve(line: Connection, args: argparse.Namespace, step: Callable[[], float]) -> None:
    """Blocks of steps on demand, each answered with its median."""
    for _ in range(blocks(args)):
        line.recv()
        line.send(statistics.median([step() for _ in range(args.block)]))


def step_clock(line: Connection, args: argparse.Namespace, taken: list[float]) -> Any:
    """A callback for TRL's trainers that answers as ``serve`` does; ``taken`` receives every step's seconds."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        start = 0.0

        def _wait(self):
            line.recv()
            self.start = time.perf_counter()

        def on_train_begin(self, *_, **__):
            self._wait()

        def on_step_end(self, *_, **__):
            taken.append(time.perf_counter() - self.start)
            self.start = time.perf_counter()  # what is between two steps, the next batch, belongs to the next
            if len(taken) % args.block == 0:
                line.send(statistics.median(taken[-args.block :]))
                if len(taken) < total_steps(args):
                    self._wait()

    return Clock()


def megabytes(field: str) -> float | None:
    """Memory of this process: ``VmRSS`` now, ``VmHWM`` at most; None where there is no such file.

    ``ru_maxrss`` would be the parent's where that one is larger.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024 / 1e6


def program_megabytes(program: Any) -> dict[str, float]:
    """What XLA says of a compiled program."""
    found = program.memory_analysis()
    return {"temporary": found.temp_size_in_bytes / 1e6, "arguments": found.argument_size_in_bytes / 1e6}


def settle_torch() -> None:
    """All cores, no network, and nothing on standard output or about things that are deprecated."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def torch_model(folder: Path, kind: str) -> Any:
    """transformers' model of a directory, of a class such as ``AutoModelForCausalLM``, float32 weights, sdpa."""
    import torch
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def trainer_settings(args: argparse.Namespace, folder: Path, rows: int) -> dict[str, Any]:
    """Settings of transformers' ``Trainer``: AdamW at a constant rate, nothing written, a GPU where there is one."""
    import torch

    return {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": rows,
        "optim": "adamw_torch",
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 10_000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "bf16": getattr(args, "dtype", "float32") == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
    }


def word_tokenizer(vocab: int) -> Any:
    """A word for each id, its decimal number: TRL tokenizes by itself, and so arrives at the ids it was given."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel({"<pad>": PAD, "</s>": EOS} | {str(i): i for i in range(2, vocab)}, unk_token="<pad>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<pad>", padding_side="left"
    )


def tiny_shape(args: argparse.Namespace) -> Any:
    """A Llama of ``--width``, ``--layers`` and ``--vocab``, with heads of 16."""
    from rlax_llm.models.config import DecoderConfig

    heads = max(1, args.width // 16)
    return DecoderConfig(args.vocab, args.width, 4 * args.width, args.layers, heads, heads, 16, tie_embeddings=False)


def shape_options(made: argparse.ArgumentParser, block: int) -> None:
    """The options that ``tiny_shape``, ``trainer_settings`` and ``serve`` read."""
    made.add_argument("--width", type=int, default=64, help="of the tiny model")
    made.add_argument("--layers", type=int, default=2, help="of the tiny model")
    made.add_argument("--vocab", type=int, default=512, help="of the tiny model")
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--block", type=int, default=block, help="steps of one side before the other's turn")


def checked(made: argparse.ArgumentParser, **least: int) -> argparse.Namespace:
    """The arguments, none of those named below its least value."""
    args = made.parse_args()
    for name, minimum in ({"block": 1, "repeats": 1, "width": 1, "layers": 1, "vocab": 3} | least).items():
        if getattr(args, name) < minimum:
            made.error(f"--{name.replace('_', '-')} is {getattr(args, name)}, wanted at least {minimum}")
    return args


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, with its commands in lines, and every default."""
