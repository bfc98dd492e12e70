"""Token log-probabilities and entropies with gradient: chunked with a custom derivative against one array of logits.

Seconds and the compiler's temporary bytes of the value and gradient of a loss that reads both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from common import interleaved, parser, report

from rlax_llm.core.log_probs import plain_token_log_probs, token_log_probs


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--tokens", type=int, nargs="*", default=[1024, 4096])
    made.add_argument("--vocab", type=int, default=49_152)
    made.add_argument("--width", type=int, default=576)
    args = made.parse_args()
    for tokens in args.tokens:
        measure(tokens, args)


def measure(tokens: int, args) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (tokens, args.width))
    head = jax.random.normal(keys[1], (args.vocab, args.width)) * 0.05
    targets = jax.random.randint(keys[2], (tokens,), 0, args.vocab)

    def compiled(log_probs):
        def loss(hidden, head):
            log_prob, entropy = log_probs(hidden, head, targets)
            return -(log_prob + 0.01 * entropy).mean()

        return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, head).compile()

    programs = {"chunked": compiled(token_log_probs), "plain": compiled(plain_token_log_probs)}
    results = {name: program(hidden, head) for name, program in programs.items()}
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), results["chunked"], results["plain"])
    times = interleaved({n: lambda p=p: p(hidden, head) for n, p in programs.items()}, args.repeats, warm=False)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    report(
        "log_probs",
        tokens=tokens,
        vocab=args.vocab,
        width=args.width,
        seconds=times,
        temporary_bytes=memory,
        time_ratio=times["chunked"] / times["plain"],
        memory_ratio=memory["chunked"] / memory["plain"],
        largest_difference={"loss": difference[0], "gradient": max(difference[1])},
    )


if __name__ == "__main__":
    main()
