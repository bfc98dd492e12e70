"""A divergence of two models' predictions with gradient: chunked, through two arrays of logits, and TRL's loss of GKD.

Seconds and the compiler's temporary bytes of the value and gradient of GKD's loss, a line for each number of tokens and
β (0 is the forward KL, 1 the reverse one). TRL's side is timed where TRL is installed (`.venv-parity`); it is given the
logits of both models, whose products are timed with it as with the others.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from common import facts, interleaved, parser, report

from rlax_llm.core.divergences import Predictions, jensen_shannon, plain_token_divergences, token_divergences


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--tokens", type=int, nargs="*", default=[256, 1024])
    made.add_argument("--beta", type=float, nargs="*", default=[0.5])
    made.add_argument("--vocab", type=int, default=150_000)
    made.add_argument("--width", type=int, default=256)
    made.add_argument("--teacher-width", type=int, default=512)
    args = made.parse_args()
    for tokens in args.tokens:
        for beta in args.beta:
            measure(tokens, beta, args)


def drawn(tokens: int, args) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [
        (tokens, args.width),
        (args.vocab, args.width),
        (tokens, args.teacher_width),
        (args.vocab, args.teacher_width),
    ]
    return [random.normal(size=shape).astype(np.float32) * 0.2 for shape in shapes]


def compiled(divergences, beta, arrays):
    def loss(hidden, head, *teacher):
        return divergences(Predictions(hidden, head), Predictions(*teacher), jensen_shannon(beta)).mean()

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()


def of_trl(beta, arrays):
    """TRL's loss and its gradients, as a function."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    torch.set_num_threads(facts()["cores"])
    hidden, head, *teacher = (torch.tensor(x) for x in arrays)

    def run():
        given = [x.detach().requires_grad_() for x in (hidden, head)]
        with torch.no_grad():
            logits = teacher[0] @ teacher[1].T
        loss = GKDTrainer.generalized_jsd_loss((given[0] @ given[1].T)[None], logits[None], beta=beta) / len(hidden)
        loss.backward()
        return loss.item(), *(x.grad.numpy() for x in given)

    return run


def measure(tokens: int, beta: float, args) -> None:
    drawn_arrays = drawn(tokens, args)
    arrays = [jnp.asarray(x) for x in drawn_arrays]
    forms = {"chunked": token_divergences, "plain": plain_token_divergences}
    programs = {name: compiled(divergences, beta, arrays) for name, divergences in forms.items()}
    sides = {name: lambda program=program: program(*arrays) for name, program in programs.items()}
    if importlib.util.find_spec("trl") is not None:
        sides["trl"] = of_trl(beta, drawn_arrays)
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
        beta=beta,
        vocab=args.vocab,
        widths=[args.width, args.teacher_width],
        seconds=times,
        time_ratio={name: times["chunked"] / seconds for name, seconds in times.items() if name != "chunked"},
        temporary_bytes=memory,
        memory_ratio=memory["chunked"] / memory["plain"],
        largest_difference=apart,
    )


if __name__ == "__main__":
    main()
