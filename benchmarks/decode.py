"""Decode tokens/s of SmolLM2-135M: ours against transformers (torch) and against the machine's ceilings.

Only decoding is timed, after the prompt, with pure sampling (temperature 1) or greedy, and no stop token. Both sides
start from a prefilled cache. ``ours`` gives every row a prompt of its own (nothing is shared), ``ours_groups`` has 8
rows share a prompt, as reinforcement learning does. Needs torch and transformers (the environment of `make parity`).
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, matmul_gigaflops, parser, read_gigabytes_per_second, ready, report, torch_model

from rlax_llm.generation.engine import decode, prefill, unstack
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import LanguageModel, load_model


def ours(model: LanguageModel, prompt: np.ndarray, layout: tuple[int, int], sampler, new_tokens: int):
    """Seconds of decoding ``P × G`` rows to ``new_tokens`` after the first, ``_unstack`` included."""
    groups, size = layout
    request = Request(sampler, (), new_tokens, groups * size)
    tokens, valid = jnp.asarray(prompt)[None], jnp.ones((1, prompt.size), bool)
    shared, state = prefill(model.config, model.params, tokens, valid, jax.random.key(0), request, new_tokens)
    shared = ready(jax.tree.map(lambda x: jnp.repeat(x, groups, 0), shared))
    cache = jax.tree.map(lambda x: x.reshape(groups, size, *x.shape[2:]), state.cache)
    state, split = state._replace(cache=cache), jax.jit(unstack)

    def run() -> float:
        fresh = ready(jax.tree.map(jnp.copy, state))
        start = time.perf_counter()
        final = ready(decode(model.config, split(model.params), shared, fresh, jnp.int32(new_tokens), request))
        assert int(final.step) == new_tokens
        return time.perf_counter() - start

    return run


def theirs(model, prompt: np.ndarray, batch: int, sampled: bool, new_tokens: int):
    """The same by ``transformers.generate``: from the first drawn token to the last."""
    import torch
    from transformers import DynamicCache, StoppingCriteria

    class Clock(StoppingCriteria):
        def __init__(self):
            self.times = []

        def __call__(self, input_ids, scores, **kwargs):
            self.times.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    ids = torch.tensor(prompt, dtype=torch.long)[None]
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(batch)
    rows = ids.repeat(batch, 1)
    settings = {"do_sample": sampled, "top_k": 0, "top_p": 1.0, "temperature": 1.0} if sampled else {"do_sample": False}

    def run() -> float:
        clock = Clock()
        with torch.inference_mode():
            out = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                past_key_values=copy.deepcopy(cache),
                max_new_tokens=new_tokens,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[clock],
                **settings,
            )
        assert out.shape[1] == prompt.size + new_tokens == prompt.size + len(clock.times)
        return clock.times[-1] - clock.times[0]

    return run


def against_transformers(model: LanguageModel, args) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", model.config, model.params, model.tokenizer)
        full = torch_model(Path(folder) / "model", torch.float32)
        half = torch_model(Path(folder) / "model", torch.bfloat16) if 1 in args.batches else None
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, args.prompt).astype(np.int32)
    weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
    flops = 2 * sum(x.size for x in jax.tree.leaves(model.params))
    speed = read_gigabytes_per_second()
    for batch in args.batches:
        head = matmul_gigaflops(batch, model.config.hidden_size, model.config.vocab_size)
        ceilings = {
            "memory_tokens_per_second": batch * speed["read"] * 1e9 / weights,
            "matmul_tokens_per_second": head * 1e9 / flops,
            "read_gb_per_second": speed["read"],
            "copy_gb_per_second": speed["copy"],
            "head_gflops": head,
        }
        tokens = max(2, min(args.tokens, args.rows // batch))
        for name, sampler in (("sampled", Categorical()), ("greedy", greedy)):
            if name == "greedy" and batch not in args.greedy:
                continue
            sides = {"ours": ours(model, prompt, (batch, 1), sampler, tokens)}
            if batch % 8 == 0:
                sides["ours_groups"] = ours(model, prompt, (batch // 8, 8), sampler, tokens)
            sides["transformers"] = theirs(full, prompt, batch, name == "sampled", tokens)
            if batch == 1 and half is not None:
                sides["transformers_bf16"] = theirs(half, prompt, batch, name == "sampled", tokens)
            times = interleaved(sides, args.repeats if batch < 32 else max(1, args.repeats // 2))
            rates = {side: batch * (tokens - 1) / t for side, t in times.items()}
            report(
                "decode",
                model="SmolLM2-135M float32",
                drawing=name,
                batch=batch,
                prompt=args.prompt,
                new_tokens=tokens,
                tokens_per_second=rates,
                ratio=rates["ours"] / rates["transformers"],
                **({"ratio_groups": rates["ours_groups"] / rates["transformers"]} if "ours_groups" in rates else {}),
                ceilings=ceilings,
                share_of_memory_ceiling=rates["ours"] / ceilings["memory_tokens_per_second"],
            )


def shared_prompt(model: LanguageModel, args) -> None:
    """8 × 8 rows after a long prompt: the prompt's cache shared by a group against one for each row."""
    prompt = np.random.default_rng(1).integers(0, model.config.vocab_size, args.long_prompt).astype(np.int32)
    tokens = max(2, args.tokens // 2)
    sides = {
        "shared": ours(model, prompt, (8, 8), Categorical(), tokens),
        "not_shared": ours(model, prompt, (64, 1), Categorical(), tokens),
    }
    times = interleaved(sides, max(1, args.repeats // 2))
    rates = {side: 64 * (tokens - 1) / t for side, t in times.items()}
    row = 2 * model.config.num_layers * model.config.num_kv_heads * model.config.head_dim * 4 / 1e6
    report(
        "decode_shared_prompt",
        groups=8,
        group_size=8,
        prompt=args.long_prompt,
        new_tokens=tokens,
        tokens_per_second=rates,
        ratio=rates["shared"] / rates["not_shared"],
        cache_megabytes={
            "shared": row * (8 * args.long_prompt + 64 * tokens),
            "not_shared": row * 64 * (args.long_prompt + tokens),
        },
    )


def main() -> None:
    made = parser(__doc__, repeats=4)
    made.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 128])
    made.add_argument("--greedy", type=int, nargs="*", default=[1], help="batches measured with greedy decoding too")
    made.add_argument("--prompt", type=int, default=128)
    made.add_argument("--tokens", type=int, default=64, help="new tokens per row")
    made.add_argument("--rows", type=int, default=4096, help="most new tokens of a run in all rows together")
    made.add_argument("--long-prompt", type=int, default=512, help="0 leaves the shared-prompt configuration out")
    args = made.parse_args()
    model = load_model("smollm2")
    if args.batches:
        against_transformers(model, args)
    if args.long_prompt:
        shared_prompt(model, args)


if __name__ == "__main__":
    main()
