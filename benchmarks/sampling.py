"""Drawing from a large vocabulary: every cut against the head's matmul and against ``jax.random.categorical``.

``peaked`` logits fall off as a language model's do (the nucleus of 0.9 holds some tens of tokens), ``flat`` ones are
those of a model that knows nothing (the nucleus holds most of the vocabulary).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from common import interleaved, parser, report

from rlax_llm.generation.sampling import Categorical, greedy

SAMPLERS = {
    "greedy": greedy,
    "plain": Categorical(),
    "top_k_50": Categorical(top_k=50),
    "top_p_0.9": Categorical(top_p=0.9),
    "top_k_50_top_p_0.9": Categorical(top_k=50, top_p=0.9),
}


def gumbel(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The usual way: a Gumbel variable for every token, and the log-probability of the one drawn."""
    tokens = jax.random.categorical(key, logits)
    return tokens, jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], -1)


def main() -> None:
    made = parser(__doc__, repeats=15)
    made.add_argument("--batches", type=int, nargs="*", default=[8, 32, 128])
    made.add_argument("--vocab", type=int, default=49_152)
    made.add_argument("--width", type=int, default=576)
    args = made.parse_args()
    key = jax.random.key(0)
    head = jax.random.normal(key, (args.vocab, args.width))
    product = jax.jit(lambda x, w: x @ w.T)
    drawers = {name: jax.jit(sampler) for name, sampler in {**SAMPLERS, "jax_categorical": gumbel}.items()}
    for batch in args.batches:
        x = jax.random.normal(key, (batch, args.width))
        noise = jax.random.normal(key, (batch, args.vocab))
        order = jax.vmap(lambda k: jax.random.permutation(k, args.vocab))(jax.random.split(key, batch))
        for shape, logits in {"peaked": noise - 2.5 * jnp.log1p(order), "flat": 0.1 * noise}.items():
            sides = {"head_matmul": lambda x=x: product(x, head)}
            for name, draw in drawers.items():
                sides[name] = lambda draw=draw, logits=logits: draw(key, logits)
            times = interleaved(sides, args.repeats)
            report(
                "sampling",
                batch=batch,
                vocab=args.vocab,
                logits=shape,
                milliseconds={name: 1e3 * t for name, t in times.items()},
                ratio_to_head={name: times[name] / times["head_matmul"] for name in SAMPLERS},
                ratio_to_jax_categorical={name: times[name] / times["jax_categorical"] for name in SAMPLERS},
            )


if __name__ == "__main__":
    main()
