"""Training tokens/s of SmolLM2-135M in float32: ours against transformers (torch), same weights and rows.

``rows`` is plain training: log-probabilities of all tokens with their gradient (ours gives the entropies too), and the
forward pass alone. ``groups`` is reinforcement learning's layout: G completions behind one prompt, which
``group_log_probs`` computes once; tokens/s count the flat rows for all. Needs torch and transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, parser, report, torch_model

from rlax_llm.core.types import Completions
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.scoring import group_log_probs, row_log_probs


def rows_of(tokens: np.ndarray, prompt: int) -> Completions:
    valid = np.ones(tokens.shape, bool)
    mask = valid & (np.arange(tokens.shape[1]) >= prompt)
    zeros = np.zeros(tokens.shape, np.float32)
    return jax.tree.map(jnp.asarray, Completions(tokens, valid, mask, zeros, np.ones(len(tokens), bool)))


def ours(model: LanguageModel, completions: Completions, log_probs, backward: bool):
    """A compiled step and its temporary megabytes."""

    def loss(params):
        chosen, entropy = log_probs(params, completions)
        return -chosen.sum() / completions.mask.sum(), jax.lax.stop_gradient(entropy.sum())

    step = jax.value_and_grad(loss, has_aux=True) if backward else loss
    program = jax.jit(step).lower(model.params).compile()
    return (lambda: program(model.params)), program.memory_analysis().temp_size_in_bytes / 1e6


def theirs(model, tokens: np.ndarray, prompt: int, backward: bool):
    import torch

    ids = torch.tensor(tokens, dtype=torch.long)
    labels = ids.clone()
    labels[:, :prompt] = -100

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.inference_mode(not backward):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            if backward:
                loss.backward()

    return run


def measure(name: str, model: LanguageModel, peer, tokens: np.ndarray, prompt: int, forms, repeats: int, **facts):
    """One line: tokens/s of every form of ours and of torch, forward and (where ``forms`` says so) backward."""
    completions, sides, memory = rows_of(tokens, prompt), {}, {}
    for form, (log_probs, backward) in forms.items():
        sides[form], memory[form] = ours(model, completions, log_probs, backward)
    sides["torch"] = theirs(peer, tokens, prompt, next(iter(forms.values()))[1])
    theirs(peer, tokens[:1, : prompt + 8], prompt, True)()
    times = interleaved(sides, repeats, warm=False)
    rates = {side: tokens.size / t for side, t in times.items()}
    report(
        "training",
        layout=name,
        rows=tokens.shape[0],
        columns=tokens.shape[1],
        **facts,
        tokens_per_second=rates,
        ratio={form: rates[form] / rates["torch"] for form in forms},
        temporary_megabytes=memory,
    )


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--rows", type=int, default=8, help="0 leaves plain training out")
    made.add_argument("--columns", type=int, default=256)
    made.add_argument("--groups", type=int, default=8, help="0 leaves the group layout out")
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--prompt", type=int, default=45)
    made.add_argument("--completion", type=int, default=16)
    args = made.parse_args()
    import torch

    model = load_model("smollm2")
    config, draw = model.config, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", config, model.params, model.tokenizer)
        peer = torch_model(Path(folder) / "model", torch.float32)
    if args.rows:
        tokens = draw.integers(0, config.vocab_size, (args.rows, args.columns)).astype(np.int32)
        plain, remat = row_log_probs(config), row_log_probs(config, remat=True)
        forms = {"ours": (plain, False)}
        measure("rows, forward", model, peer, tokens, 1, forms, args.repeats)
        forms = {"ours": (plain, True), "ours_remat": (remat, True)}
        measure("rows, forward and backward", model, peer, tokens, 1, forms, args.repeats)
    if args.groups:
        prompts = draw.integers(0, config.vocab_size, (args.groups, args.prompt))
        own = draw.integers(0, config.vocab_size, (args.groups * args.group_size, args.completion))
        tokens = np.concatenate([np.repeat(prompts, args.group_size, 0), own], 1).astype(np.int32)
        layout = (args.group_size, args.prompt)
        forms = {"ours_groups": (group_log_probs(config, layout), True), "ours_rows": (row_log_probs(config), True)}
        facts = {"prompt_tokens": args.prompt, "completion_tokens": args.completion, "group_size": args.group_size}
        repeats = max(1, args.repeats - 1)
        measure("groups, forward and backward", model, peer, tokens, args.prompt, forms, repeats, **facts)


if __name__ == "__main__":
    main()
