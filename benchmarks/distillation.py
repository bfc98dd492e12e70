"""A divergence of two models' predictions with gradient: chunked, through two arrays of logits, and TRL's loss of GKD.

Seconds and the compiler's temporary bytes of the value and gradient of GKD's loss at β = 0.5. TRL's side is timed where
TRL is installed (`.venv-parity`).
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, parser, report

from rlax_llm.core.divergences import Predictions, jensen_shannon, plain_token_divergences, token_divergences

BETA = 0.5


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--tokens", type=int, nargs="*", default=[2048])
    made.add_argument("--vocab", type=int, default=150_000)
    made.add_argument("--width", type=int, default=256)
    made.add_argument("--teacher-width", type=int, default=512)
    args = made.parse_args()
    for tokens in args.tokens:
        measure(tokens, args)


def drawn(tokens: int, args) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [
        (tokens, args.width),
        (args.vocab, args.width),
        (tokens, args.teacher_width),
        (args.vocab, args.teacher_width),
    ]
    return [random.normal(size=shape).astype(np.float32) * 0.2 for shape in shapes]


def compiled(divergences, arrays):
    def loss(hidden, head, *teacher):
        return divergences(Predictions(hidden, head), Predictions(*teacher), jensen_shannon(BETA)).mean()

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()


def of_trl(arrays):
    """TRL's loss and its gradients, as a function."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    hidden, head, *teacher = (torch.tensor(x) for x in arrays)

    def run():
        given = [x.detach().requires_grad_() for x in (hidden, head)]
        with torch.no_grad():
            logits = teacher[0] @ teacher[1].T
        loss = GKDTrainer.generalized_jsd_loss((given[0] @ given[1].T)[None], logits[None], beta=BETA) / len(hidden)
        loss.backward()
        return loss.item(), *(x.grad.numpy() for x in given)

    return run


def measure(tokens: int, args) -> None:
    drawn_arrays = drawn(tokens, args)
    arrays = [jnp.asarray(x) for x in drawn_arrays]
    programs = {"chunked": compiled(token_divergences, arrays), "plain": compiled(plain_token_divergences, arrays)}
    sides = {name: lambda program=program: program(*arrays) for name, program in programs.items()}
    if importlib.util.find_spec("trl") is not None:
        sides["trl"] = of_trl(drawn_arrays)
    value, slopes = sides["chunked"]()
    ours = [np.asarray(x) for x in (value, *slopes)]
    apart = {}
    for name, side in sides.items():
        found = jax.tree.leaves(side())
        apart[name] = max(float(np.abs(np.asarray(x) - y).max()) for x, y in zip(found, ours, strict=True))
    times = interleaved(sides, args.repeats, warm=False)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    report(
        "distillation",
        tokens=tokens,
        vocab=args.vocab,
        widths=[args.width, args.teacher_width],
        seconds=times,
        temporary_bytes=memory,
        memory_ratio=memory["chunked"] / memory["plain"],
        largest_difference=apart,
    )


if __name__ == "__main__":
    main()
