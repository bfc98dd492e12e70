"""A rollout whose lengths differ: ours, with rows that leave, against a batch that waits for its longest, and peers.

Lengths are drawn once from a log-normal distribution with a cap, and every side ends each completion at its length, so
all draw the same number of tokens; the sampler is pure (temperature 1). ``static`` is our engine with all rows to the
end of the longest, ``leaving`` lets rows leave, ``slots`` gives a quarter of the rows at a time to them all, and
``transformers`` is ``generate``, which stops a row by a criterion and computes it on. ``vllm`` is vLLM in a process of
its own, once for each dtype. Prompts are prefilled by each.

    python rollout.py --rows 64 --mean 75 --cap 256            # a quarter of the issue's lengths, minutes
    python rollout.py --rows 64 256 --mean 300 --cap 1024 --no-torch
    python rollout.py --equal 64                               # all rows of one length: nothing may be lost

    python rollout.py --no-torch --vllm PYTHON --vllm-dtypes float32 bfloat16    # beside vLLM

Needs torch and transformers (the environment of `make parity`), but for ``--no-torch``; ``--vllm`` the python of an
environment with vLLM.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, parser, ready, report, torch_model

from rlax_llm.generation.ladders import ladder
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import Generation, generate
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.generation.state import Decoding
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.tokenizer import Tokenizer

TINY = DecoderConfig(256, 64, 192, 2, 4, 2, 16, max_positions=2048)


def lengths_of(args: Any, rows: int, sigma: float) -> np.ndarray:
    """Tokens of each completion."""
    if args.equal:
        return np.full(rows, args.equal)
    mean = math.log(args.mean) - sigma * sigma / 2
    drawn = np.random.default_rng(0).lognormal(mean, sigma, rows).astype(int)
    return drawn.clip(1, args.cap)


def prompts_of(model: LanguageModel, args: Any, rows: int) -> tuple[jax.Array, jax.Array]:
    """One prompt for each group."""
    shape = (rows // args.group_size, args.prompt)
    tokens = np.random.default_rng(1).integers(2, model.config.vocab_size, shape)
    return jnp.asarray(tokens, jnp.int32), jnp.ones(shape, bool)


class Ours:
    """Our engine on given lengths."""

    def __init__(self, model: LanguageModel, prompts: tuple[jax.Array, jax.Array], lengths: np.ndarray, args: Any):
        self.model, self.prompts, self.lengths = model, prompts, lengths
        self.request = Request(Categorical(), (), int(lengths.max()), args.group_size)

    @property
    def rows(self) -> tuple[jax.Array, jax.Array]:
        """Keys and lengths."""
        return row_keys(jax.random.key(0), len(self.lengths)), jnp.asarray(self.lengths, jnp.int32)

    def static(self) -> Any:
        """All rows to the end of the longest."""
        going = Generation(self.model.config, self.model.params, self.prompts, self.rows, self.request)
        going.ladder = going.ladder._replace(sizes=())
        while going.advance():
            pass
        return ready(going.completions())

    def leaving(self, slots: int | None, lengths: np.ndarray) -> Any:
        """Rows leave, and with slots others enter."""
        own = self.model.config, self.model.params, self.prompts, jax.random.key(0), self.request
        return ready(generate(*own, slots, limits=jnp.asarray(lengths)))

    def useful(self, slots: int | None, leaving: bool = True) -> dict[str, float]:
        """The share of computed rows that drew a token; the most that the caches of prompts and completions take, and
        the most that live tokens need of them. They are counted of a tiny model that is given the model's sizes.
        """
        small, (tokens, valid) = tiny(), self.prompts
        asked = (tokens % TINY.vocab_size, valid), self.rows, self.request, slots
        going = Generation(TINY, small.params, *asked, lambda config, *size: ladder(self.model.config, *size))
        if not leaving:
            going.ladder = going.ladder._replace(sizes=())
        computed, cache, live = 0, 0, 0
        before = of_rows(going.state)
        while going.advance():
            steps = int(going.state.step) - int(before.step)
            computed += steps * len(going.state.rows)
            cache = max(cache, sum(x.nbytes for x in jax.tree.leaves((going.prompt.cache, going.state.cache))))
            live = max(live, self.live_tokens(before, steps))
            before = of_rows(going.state)
        drawn = int(self.lengths.sum()) - len(self.lengths)
        token = token_bytes(self.model.config)
        cache = cache * token / token_bytes(TINY)
        return {
            "useful_row_steps": drawn / max(computed, 1),
            "cache_megabytes": cache / 1e6,
            "live_megabytes": live * token / 1e6,
            "cache_of_live": cache / max(live * token, 1),
        }

    def live_tokens(self, before: Decoding, steps: int) -> int:
        """Tokens whose keys are read, at the step of the next ``steps`` where they are most: those of rows that go on,
        and of each prompt with such a row, once for its group.
        """
        ahead = np.arange(steps + 1)[:, None]
        on = before.going & (before.lengths + ahead <= before.limits)
        own = (on * (before.lengths + ahead)).sum(1)
        groups = before.rows // self.request.group_size == np.arange(len(self.prompts[0]))[:, None]
        prompts = (on[:, None] & groups).any(2).sum(1) * self.prompts[0].shape[1]
        return int((own + prompts).max())


def token_bytes(config: DecoderConfig) -> int:
    """What the keys and values of a token take."""
    return 8 * config.num_layers * config.num_kv_heads * config.head_dim


def of_rows(state: Decoding) -> Decoding:
    """What a state tells of its rows, on the host."""
    return jax.device_get(state._replace(cache=(), keys=(), memory=()))


class Leaving:
    """Our engine whose rows leave, and enter as there are slots."""

    def __init__(self, ours: Ours, slots: int | None):
        self._ours, self._slots = ours, slots

    def __call__(self) -> Any:
        return self._ours.leaving(self._slots, self._ours.lengths)

    def warm(self) -> None:
        """Few tokens, that end one after another as they will: most of what is compiled is compiled."""
        self._ours.leaving(self._slots, 1 + self._ours.lengths // 32)


class Theirs:
    """The same by ``transformers.generate``."""

    def __init__(self, model: Any, prompts: tuple[jax.Array, jax.Array], lengths: np.ndarray, group_size: int):
        import torch

        self.model, self.longest = model, int(lengths.max())
        self.ids = torch.tensor(np.repeat(np.asarray(prompts[0]), group_size, 0), dtype=torch.long)
        self.limits = torch.tensor(lengths + self.ids.shape[1])

    def __call__(self) -> None:
        self.generate(self.longest)

    def warm(self) -> None:
        """A few tokens: nothing is compiled for a length."""
        self.generate(4)

    def generate(self, tokens: int) -> None:
        """``tokens`` of every row that is not at its length before."""
        import torch
        from transformers import StoppingCriteria

        limits = self.limits

        class AtLength(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                return input_ids.shape[1] >= limits

        with torch.inference_mode():
            self.model.generate(
                self.ids,
                attention_mask=torch.ones_like(self.ids),
                max_new_tokens=tokens,
                eos_token_id=None,
                pad_token_id=0,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                stopping_criteria=[AtLength()],
            )


class Vllm:
    """The same by vLLM, in a process of its own that waits between calls."""

    def __init__(self, args: Any, folder: Path, dtype: str, prompts: tuple[jax.Array, jax.Array], lengths: np.ndarray):
        repeated = np.repeat(np.asarray(prompts[0]), args.group_size, 0).tolist()
        settings = folder / f"settings-{dtype}.json"
        settings.write_text(json.dumps({"dtype": dtype, "lengths": lengths.tolist(), "prompts": repeated}))
        script = Path(__file__).resolve().parent / "peers" / "run_vllm.py"
        words = [str(args.vllm), str(script), str(folder / "model"), "--settings", str(settings)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (folder / f"vllm-{dtype}.log").open("w") as log:
            self._process = subprocess.Popen(
                words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )

    def __call__(self) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        print("go", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("vLLM's side ended; run peers/run_vllm.py by hand to see why.")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def measure(name: str, model: LanguageModel, full: Any, args: Any, rows: int, sigma: float) -> None:
    """One line."""
    lengths, prompts = lengths_of(args, rows, sigma), prompts_of(model, args, rows)
    ours = Ours(model, prompts, lengths, args)
    slots = max(rows // 4, args.group_size)
    sides = {
        "static": ours.static,
        "leaving": Leaving(ours, None),
        "slots": Leaving(ours, slots),
    }
    sides = {side: sides[side] for side in args.sides}
    with tempfile.TemporaryDirectory() as folder:
        others = vllms(model, Path(folder), args, prompts, lengths)
        cut = lengths.clip(max=args.their_tokens or lengths.max())
        theirs = {} if full is None else {"transformers": Theirs(full, prompts, cut, args.group_size)}
        times = interleaved({**sides, **theirs, **others}, args.repeats)
        for other in others.values():
            other.close()
    drawn = {side: int((cut if side == "transformers" else lengths).sum()) for side in times}
    speeds = {side: drawn[side] / t for side, t in times.items()}
    report(
        "rollout",
        model=name,
        rows=rows,
        group_size=args.group_size,
        prompt=args.prompt,
        lengths="equal" if args.equal else f"log-normal, mean {args.mean}, sigma {sigma}, cap {args.cap}",
        tokens=int(lengths.sum()),
        their_tokens=int(cut.sum()),
        tokens_per_second=speeds,
        ratio={side: speeds["leaving"] / speed for side, speed in speeds.items() if side != "leaving"},
        **{side: ours.useful(slots if side == "slots" else None, side != "static") for side in args.sides},
    )


def vllms(
    model: LanguageModel, folder: Path, args: Any, prompts: tuple[jax.Array, jax.Array], lengths: np.ndarray
) -> dict[str, Vllm]:
    """A side of vLLM for each dtype."""
    if args.vllm is None:
        return {}
    write_model(folder / "model", model.config, model.params, model.tokenizer)
    return {f"vllm {dtype}": Vllm(args, folder, dtype, prompts, lengths) for dtype in args.vllm_dtypes}


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--models", nargs="*", default=["tiny", "smollm2"])
    made.add_argument("--rows", type=int, nargs="*", default=[64])
    made.add_argument("--mean", type=int, default=300)
    made.add_argument("--sigmas", type=float, nargs="*", default=[1.0, 0.6])
    made.add_argument("--cap", type=int, default=1024)
    made.add_argument("--equal", type=int, default=0, help="tokens of every completion, in place of a distribution")
    made.add_argument("--prompt", type=int, default=64)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--sides", nargs="+", default=["static", "leaving", "slots"], help="of ours; leaving is needed")
    made.add_argument("--their-tokens", type=int, help="transformers ends there: its speed so far, which only falls")
    made.add_argument("--no-torch", action="store_true")
    made.add_argument("--vllm", type=Path, help="python of an environment with vLLM")
    made.add_argument("--vllm-dtypes", nargs="+", default=["float32"])
    args = made.parse_args()
    for name in args.models:
        model = tiny() if name == "tiny" else load_model(name)
        full = None if args.no_torch else in_torch(model)
        for rows in args.rows:
            for sigma in args.sigmas[:1] if args.equal else args.sigmas:
                measure(name, model, full, args, rows, sigma)


def tiny() -> LanguageModel:
    """Two layers of random weights."""
    letters = Tokenizer.characters("".join(chr(code) for code in range(0x4E00, 0x4E00 + TINY.vocab_size - 2)))
    return LanguageModel(TINY, init_decoder(TINY, jax.random.key(0)), letters)


def in_torch(model: LanguageModel) -> Any:
    """The same weights."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", model.config, model.params, model.tokenizer)
        return torch_model(Path(folder) / "model", torch.float32)


if __name__ == "__main__":
    main()
