"""What of a model is trained, and what stays as it is: all weights, or adapters over frozen ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.commands.shared_settings import EVERY_PROJECTION, TrainedModelSettings
from rlax_llm.core.trees import join_trees, widen
from rlax_llm.core.types import Completions
from rlax_llm.generation.engine import for_sampling
from rlax_llm.models.adapter_files import write_adapter
from rlax_llm.models.blocks import dequantized, is_quantized
from rlax_llm.models.config import Balance, DecoderConfig, Lora
from rlax_llm.models.functional import Params
from rlax_llm.models.huggingface import write_model, write_scalar
from rlax_llm.models.huggingface_config import NOWHERE, Origin, scalar_fields
from rlax_llm.models.loading import LanguageModel, base_directory
from rlax_llm.models.lora import init_adapter, merge_adapter, saved_parts, under_adapter
from rlax_llm.models.scalar import (
    Initial,
    Scalars,
    drop_trailing,
    init_scalar,
    sequence_scores,
    small_normal,
)
from rlax_llm.models.tokenizer import Tokenizer

NAMELESS = "char"  # the embedded model, which a seed draws
Export = Callable[[Params, Path], None]
_DROPOUT = 2**31 - 3  # folded into a run's key: no step has this number


@partial(jax.jit, static_argnums=0)
def _merged(config: DecoderConfig, base: Params, adapter: Params) -> Params:
    """One model, in at least float32: an adapter's small steps do not fit into a narrow base."""
    return merge_adapter(config, widen(dequantized(base)), adapter)


def _narrow(params: Params) -> bool:
    return is_quantized(params) or any(
        jnp.finfo(leaf.dtype).bits < jnp.finfo(jnp.float32).bits for leaf in jax.tree.leaves(params)
    )


def completion_scores(tokenizer: Tokenizer, config: DecoderConfig, layout: tuple[int, int], remat: bool) -> Scalars:
    """``sequence_scores`` where transformers reads them, so that a reward model that is written scores alike there.

    That is the stop token, unless the tokenizer pads with it: then it is the token before.

    Args:
        tokenizer: the model's.
        config: shapes.
        layout: ``(group_size, prompt_width)``.
        remat: recompute each layer in the backward pass.
    """
    scores, pad = sequence_scores(config, layout, remat), tokenizer.pad_id
    if pad not in tokenizer.eos_ids:
        return scores

    def scores_without_padding(params: Params, completions: Completions) -> jax.Array:
        return scores(params, drop_trailing(completions, pad))

    return scores_without_padding


class Learner(NamedTuple):
    """A model as a run trains it.

    Attributes:
        name: what it was loaded as.
        config: the decoder's shape, with its ``lora`` where adapters are trained.
        params: what is trained, at its start.
        frozen: what is not, or None.
        tokenizer: the model's.
        origin: what its directory said of it, which is said again of what is written.
    """

    name: str
    config: DecoderConfig
    params: Params
    frozen: Params | None
    tokenizer: Tokenizer
    origin: Origin = NOWHERE

    @property
    def shape(self) -> DecoderConfig:
        """The shape without adapters: that of ``whole``."""
        return dataclasses.replace(self.config, lora=None)

    def dropout_key(self, seed: int, index: int) -> jax.Array | None:
        """What the adapters of a step drop by; None where they drop nothing.

        Args:
            seed: of the run.
            index: of the step, from 0.
        """
        if self.config.lora is None or self.config.lora.dropout == 0:
            return None
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _DROPOUT), index)

    def whole(self, params: Params) -> Params:
        """One model without adapters, for generation and export, in float32 where adapters are added to it.

        Args:
            params: as trained so far, like ``self.params``.
        """
        return params if self.frozen is None else _merged(self.config, self.frozen, params)

    @property
    def _apart(self) -> bool:
        """Whether completions are drawn from adapters beside their base.

        A base of bfloat16 or in blocks has no room for the small steps of an adapter, and a wide copy of it would cost
        what the narrow one saves.
        """
        return self.frozen is not None and _narrow(self.frozen)

    @property
    def sampled_shape(self) -> DecoderConfig:
        """The shape of ``sampled``."""
        return self.config if self._apart else self.shape

    def sampled(self, params: Params, shape: DecoderConfig | None = None) -> Params:
        """What completions are drawn from: ``whole``, or adapters beside a narrow base; laid out for a sampler.

        Args:
            params: as trained so far, like ``self.params``.
            shape: ``sampled_shape`` with other number formats of a sampler; None is itself.
        """
        read = join_trees(params, self.frozen) if self._apart else self.whole(params)
        return for_sampling(self.sampled_shape if shape is None else shape, read)

    def write_whole(self, params: Params, path: Path) -> None:
        """Write one model without adapters: ``whole``.

        Args:
            params: as trained so far.
            path: of the model's directory.

        Raises:
            OSError: the disk is full.
        """
        whole = self.whole(params)
        (write_scalar if "score" in whole else write_model)(path, self.shape, whole, self.tokenizer, self.origin)

    def export(self, params: Params, path: Path) -> None:
        """Write the whole model, and beside it the adapters where there are any, with a base that has no name.

        Args:
            params: as trained so far.
            path: of the model's directory; those of its adapters and their base lie beside it, ``model_adapter`` and
                ``model_base``.

        Raises:
            OSError: the disk is full.
        """
        self.write_whole(params, path)
        if self.frozen is not None:
            place = path.with_name(f"{path.name}_adapter")
            write_adapter(place, self.config, params, self._base(place, params), self.origin)

    def _base(self, adapter: Path, params: Params) -> str:
        """What the adapter's files call its base, from wherever they are read.

        What is trained whole is in them, and stands in a base without a name as it is now: its start is gone.
        """
        if self.name != NAMELESS:
            return os.path.abspath(self.name) if Path(self.name).exists() else self.name
        base = base_directory(adapter)
        every = dequantized(self.frozen or {})
        shapes = self.config.parameter_shapes
        layers = {leaf: (params["layers"] | every["layers"])[leaf] for leaf in shapes["layers"]}
        whole = {leaf: value for leaf, value in {**params, **every}.items() if leaf in shapes}
        write_model(base, self.shape, whole | {"layers": layers}, self.tokenizer, self.origin)
        return os.path.abspath(base)


def language_learner(settings: TrainedModelSettings, model: LanguageModel, seed: int) -> Learner:
    """The model's weights, or adapters over them where the settings ask for them.

    Args:
        settings: those of the model.
        model: as loaded.
        seed: draws the adapters.

    Raises:
        ValueError: targets that the decoder does not have, or a coefficient of routers that it does not have.
    """
    model = model._replace(config=_balanced(settings, model))
    if not settings.lora_rank:
        return Learner(settings.model, model.config, model.params, None, model.tokenizer, model.origin)
    targets = _targets(settings.lora_targets, model.config)
    kind = settings.rslora, settings.dora, settings.lora_dropout, settings.lora_tokens or ()
    try:
        lora = Lora(settings.lora_rank, settings.lora_alpha, targets, *kind)
        config = dataclasses.replace(model.config, lora=lora)
    except ValueError as error:
        said = str(error).replace("Lora: target", "lora_targets: target")
        raise ValueError(said.replace("DecoderConfig: lora names", "lora_targets names")) from None
    adapter = init_adapter(config, jax.random.fold_in(jax.random.key(seed), 1), base=model.params)
    trained = join_trees(adapter, saved_parts(config, model.params, settings.saved))
    frozen = under_adapter(config, model.params, trained)
    return Learner(settings.model, config, trained, frozen, model.tokenizer, model.origin)


def _targets(named: str, config: DecoderConfig) -> tuple[str, ...]:
    """The projections that have an adapter."""
    if named == EVERY_PROJECTION:
        return config.projections
    return tuple(name.strip() for name in named.split(","))


def _balanced(settings: TrainedModelSettings, model: LanguageModel) -> DecoderConfig:
    """The model's shape with what training adds to its loss for the routers, where it has any."""
    experts = model.config.experts
    if experts is None:
        for name in ("router_aux_coef", "router_z_coef"):
            if getattr(settings, name):
                raise ValueError(
                    f"{name} is {getattr(settings, name)} and {settings.model} is no mixture of experts; leave it out."
                )
        return model.config
    aux_coef = settings.router_aux_coef
    if aux_coef is None:
        config = model.origin.config
        aux_coef = float(config.get("router_aux_loss_coef", 0.0)) if config.get("output_router_logits") else 0.0
    balance = Balance(aux_coef, settings.router_z_coef)
    return dataclasses.replace(model.config, experts=dataclasses.replace(experts, balance=balance))


def scalar_learner(
    settings: TrainedModelSettings, model: LanguageModel, seed: int, initial: Initial = small_normal
) -> Learner:
    """The model with a scalar in place of its head; the score is always trained, the rest as in ``language_learner``.

    Args:
        settings: those of the model.
        model: as loaded; a model that has a score keeps it.
        seed: draws the score and the adapters.
        initial: ``(key, shape, dtype) → score``, where the model has none.

    Raises:
        ValueError: transformers has no sequence classifier of the model's family.
    """
    scalar_fields(model.config, model.origin)  # what cannot be written is not trained
    params = model.params
    params = params if "score" in params else init_scalar(params, jax.random.key(seed), initial)
    kept = ",".join(name for name in settings.saved if name != "head") or None  # a score is in the head's place
    # A score balances no router.
    settings = dataclasses.replace(settings, router_aux_coef=0.0, router_z_coef=0.0, lora_save=kept)
    learner = language_learner(settings, model._replace(params=params), seed)
    if learner.frozen is None:
        return learner
    rest = {name: leaf for name, leaf in learner.frozen.items() if name != "score"}
    score = {"score": widen(params["score"])}
    return learner._replace(params=learner.params | score, frozen=rest)
