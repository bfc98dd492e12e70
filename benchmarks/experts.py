"""A mixture of experts with its gradient against the dense MLP of as many active numbers.

Seconds of the value and gradient of all inputs; and of the value alone for few tokens, as a sampler has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from common import interleaved, parser, report

from rlax_llm.models.config import Experts
from rlax_llm.models.experts import Weights, gated_by, mixture
from rlax_llm.models.routers import route


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--tokens", type=int, nargs="*", default=[8, 512, 4096])
    made.add_argument("--width", type=int, default=512)
    made.add_argument("--experts", type=int, default=64)
    made.add_argument("--per-token", type=int, default=8)
    made.add_argument("--expert-width", type=int, default=192)
    args = made.parse_args()
    for tokens in args.tokens:
        measure(tokens, args)


def measure(tokens: int, args: Any) -> None:
    keys = jax.random.split(jax.random.key(0), 8)
    shapes = {"gate": (args.width, args.expert_width), "up": (args.width, args.expert_width)}
    shapes |= {"down": (args.expert_width, args.width)}
    gate, up, down = (_drawn(key, (args.experts, *shape)) for key, shape in zip(keys, shapes.values()))
    several = Weights(gate, up, down)
    x = jax.random.normal(keys[3], (1, tokens, args.width))
    router = _drawn(keys[4], (args.width, args.experts))
    active = args.per_token * args.expert_width
    whole = Weights(
        _drawn(keys[5], (args.width, active)),
        _drawn(keys[6], (args.width, active)),
        _drawn(keys[7], (active, args.width)),
    )
    asked = Experts(args.experts, args.per_token, args.expert_width)

    def sparse(x: jax.Array, router: jax.Array, weights: Weights) -> jax.Array:
        return mixture(x, route(x @ router, asked), weights, gated_by(jax.nn.silu))

    def dense(x: jax.Array, router: jax.Array, weights: Weights) -> jax.Array:
        return (jax.nn.silu(x @ weights.gate) * (x @ weights.up)) @ weights.down + 0 * router.sum()

    for name, form in (("value", jax.jit), ("value and gradient", _with_gradient)):
        sides = {"experts": (form(sparse), several), "dense twin": (form(dense), whole)}
        times = interleaved({n: lambda f=f, w=w: f(x, router, w) for n, (f, w) in sides.items()}, args.repeats)
        report(
            "experts",
            what=name,
            tokens=tokens,
            experts=args.experts,
            per_token=args.per_token,
            widths=[args.width, args.expert_width],
            seconds=times,
            ratio=times["experts"] / times["dense twin"],
        )


def _drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape) * shape[-2] ** -0.5


def _with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(lambda *given: jnp.sin(function(*given)).sum(), (0, 1, 2)))


if __name__ == "__main__":
    main()
