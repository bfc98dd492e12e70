"""Fisher-vector products of a two-layer actor: Gauss-Newton form against differentiating the divergence twice.

Seconds and the compiler's temporary bytes of one natural direction by conjugate gradients, compilation not counted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from common import interleaved, parser, report

from rlax_llm.core.distributions import categorical, gaussian
from rlax_llm.core.trees import dot
from rlax_llm.natural.fisher import add_damping, conjugate_gradient, fisher_vector_product


def main() -> None:
    made = parser(__doc__, repeats=21)
    made.add_argument("--batch", type=int, default=512)
    made.add_argument("--width", type=int, default=64)
    made.add_argument("--observations", type=int, default=8)
    made.add_argument("--actions", type=int, default=4)
    made.add_argument("--iterations", type=int, default=10)
    args = made.parse_args()
    for name in ("categorical", "gaussian"):
        measure(name, args)


def actor(key: jax.Array, args, outputs: int) -> dict[str, jax.Array]:
    sizes = [args.observations, args.width, args.width, outputs]
    keys = jax.random.split(key, 3)
    layers = {f"w{i}": jax.random.normal(keys[i], sizes[i : i + 2]) / sizes[i] ** 0.5 for i in range(3)}
    return layers | {f"b{i}": jnp.zeros(sizes[i + 1]) for i in range(3)}


def measure(name: str, args) -> None:
    distribution, outputs = (categorical, args.actions) if name == "categorical" else (gaussian, 2 * args.actions)
    keys = jax.random.split(jax.random.key(0), 3)
    params = actor(keys[0], args, outputs)
    gradient = jax.tree.map(lambda leaf: jax.random.normal(keys[1], leaf.shape), params)
    observations = jax.random.normal(keys[2], (args.batch, args.observations))
    weights = jnp.full(args.batch, 1 / args.batch)

    def policy(params, observations):
        hidden = jnp.tanh(observations @ params["w0"] + params["b0"])
        hidden = jnp.tanh(hidden @ params["w1"] + params["b1"])
        out = hidden @ params["w2"] + params["b2"]
        return out if name == "categorical" else (out[:, : args.actions], 0.1 * out[:, args.actions :])

    def gauss_newton(params, observations):
        return fisher_vector_product(lambda p: policy(p, observations), params, distribution.fisher, weights)

    def divergence(params, observations):
        old = jax.lax.stop_gradient(policy(params, observations))
        return lambda p: (weights * distribution.kl(old, policy(p, observations))).sum()

    def forward_over_reverse(params, observations):
        slope = jax.grad(divergence(params, observations))
        return lambda tangent: jax.jvp(slope, (params,), (tangent,))[1]

    def reverse_over_reverse(params, observations):
        slope = jax.grad(divergence(params, observations))
        return lambda tangent: jax.grad(lambda p: dot(slope(p), tangent))(params)

    def compiled(form):
        def direction(params, gradient, observations):
            matvec = add_damping(form(params, observations), 0.1)
            return conjugate_gradient(matvec, gradient, args.iterations, 0.0).x

        return jax.jit(direction).lower(params, gradient, observations).compile()

    forms = (gauss_newton, forward_over_reverse, reverse_over_reverse)
    programs = {form.__name__: compiled(form) for form in forms}
    results = {n: program(params, gradient, observations) for n, program in programs.items()}
    exact = results["gauss_newton"]
    norm = dot(exact, exact)

    def distance(other) -> float:
        gap = jax.tree.map(jnp.subtract, other, exact)
        return float(jnp.sqrt(dot(gap, gap) / norm))

    times = interleaved({n: lambda p=p: p(params, gradient, observations) for n, p in programs.items()}, args.repeats)
    report(
        "fisher",
        distribution=name,
        batch=args.batch,
        width=args.width,
        iterations=args.iterations,
        seconds=times,
        times_gauss_newton={n: taken / times["gauss_newton"] for n, taken in times.items()},
        temporary_bytes={n: program.memory_analysis().temp_size_in_bytes for n, program in programs.items()},
        relative_difference={n: distance(result) for n, result in results.items()},
    )


if __name__ == "__main__":
    main()
