"""Optimizers by name: those of Optax, with one learning rate and one weight decay that mean the same to all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from rlax_llm.commands.moments import store_moments
from rlax_llm.commands.shared_settings import MOMENTS, OPTIMIZERS, AveragedOptimizerSettings, OptimizerSettings
from rlax_llm.core.names import did_you_mean
from rlax_llm.core.user_code import call_named, is_own
from rlax_llm.loops.averages import PAPERS, averaged_params, averaging

_TRANSFORMATIONS = {"an Optax transformation": (optax.GradientTransformation, optax.GradientTransformationExtraArgs)}
_B2 = 0.99
_LAYER_MATRIX = optax.contrib.MuonDimensionNumbers((1,), (2,))


class Rate(NamedTuple):
    """How far parameters move.

    Attributes:
        schedule: learning rate by optimizer step.
        decay: decoupled weight decay, times the learning rate.
    """

    schedule: optax.Schedule
    decay: float

    def moved(self, *direction: optax.GradientTransformation) -> optax.GradientTransformation:
        """``θ ← θ − rate · (direction + decay · θ)``."""
        return optax.chain(
            *direction, optax.add_decayed_weights(self.decay), optax.scale_by_learning_rate(self.schedule)
        )


def _adamw(rate: Rate) -> optax.GradientTransformation:
    return optax.adamw(rate.schedule, b2=_B2, weight_decay=rate.decay)


def _adafactor(rate: Rate) -> optax.GradientTransformation:
    """Adafactor's direction at the learning rate of the settings, not at one relative to the parameters' size."""
    factored = optax.adafactor(learning_rate=None, multiply_by_parameter_scale=False)
    # What Optax gives is the step down; the direction is its opposite.
    return rate.moved(factored, optax.scale(-1.0))


def _lion(rate: Rate) -> optax.GradientTransformation:
    return optax.lion(rate.schedule, weight_decay=rate.decay)


def _sgd(rate: Rate) -> optax.GradientTransformation:
    return rate.moved()


def _muon(rate: Rate) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, each layer's by itself, and AdamW for all else.

    A step is as long as one of AdamW is (arXiv:2502.16982), so that the learning rate is the same.
    """
    layers = rate.moved(
        optax.contrib.scale_by_muon(weight_dimension_numbers=_layer_matrices), optax.stateless_with_tree_map(_as_adam)
    )
    return optax.partition({"layers": layers, "else": _adamw(rate)}, _parts)


def _parts(params: Any) -> Any:
    """A layer's matrices are stacked, ``[L, in, out]``; embedding and head are matrices ``[V, D]`` of no layer.

    Biases of experts, ``[L, E, out]``, are none.
    """

    def part(path: Any, x: Any) -> str:
        biases = jax.tree_util.keystr(path, simple=True).endswith("_bias")
        return "layers" if x.ndim == len(("layer", "in", "out")) and not biases else "else"

    return jax.tree_util.tree_map_with_path(part, params)


def _layer_matrices(params: Any) -> Any:
    return jax.tree.map(lambda _: _LAYER_MATRIX, params)


def _as_adam(direction: Any, parameter: Any) -> Any:
    del parameter
    return direction * (0.2 * math.sqrt(max(direction.shape[1:])))


_MADE: dict[str, Callable[[Rate], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
    "sgd": _sgd,
}
assert tuple(_MADE) == OPTIMIZERS and {*MOMENTS} <= {*OPTIMIZERS}


def build_optimizer(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimizer that ``settings.optimizer`` names, with its moments as they say.

    Raises:
        ValueError: no such optimizer; as ``named_function``; where the function fails or does not return an Optax
            transformation.
    """
    name = settings.optimizer
    if name in _MADE:
        chosen = _MADE[name](Rate(schedule, settings.weight_decay))
    elif is_own(name):
        chosen = call_named("optimizer", name, _TRANSFORMATIONS, schedule)
    else:
        there = f"there are {', '.join(OPTIMIZERS)}, and your own as MODULE:FUNCTION or FILE.py:FUNCTION."
        raise ValueError(f"optimizer {name!r} is unknown{did_you_mean(name, OPTIMIZERS, f'; {there}')}")
    if settings.moments_dtype != "float32":
        chosen = store_moments(chosen, settings.moments_dtype)
    # A norm without a bound keeps the optimizer's state of one form.
    return optax.chain(optax.clip_by_global_norm(settings.max_grad_norm or math.inf), chosen)


def build_averaging(settings: AveragedOptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """``build_optimizer``, which keeps an average of the weights where the settings ask for one.

    Args:
        settings: of the optimizer.
        schedule: learning rate by optimizer step.

    Raises:
        ValueError: as ``build_optimizer``.
    """
    chosen = build_optimizer(settings, schedule)
    return averaging(chosen, PAPERS) if settings.average == "bema" else chosen


def measured(state: Any) -> Any:
    """What of a state is measured and written: its parameters, or their average where its optimizer keeps one.

    Args:
        state: of a loop, with ``params`` and ``opt_state``.
    """
    return averaged_params(state.params, state.opt_state)
