"""The tensors of PEFT's files of adapters, to the leaves of ours and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rlax_llm.core.mesh import fetch
from rlax_llm.models.adapter_parts import Update, joined, padded, parted
from rlax_llm.models.config import ROWS_OF, TARGETS, DecoderConfig, Lora
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.family import Family
from rlax_llm.models.fields import Fields
from rlax_llm.models.functional import Params
from rlax_llm.models.lora import lora_of
from rlax_llm.models.slots import Slot, of_experts, slots_of
from rlax_llm.models.tensors import Tensor, check_tensor, read_finite
from rlax_llm.models.token_rows import row_tokens

PREFIX = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"
_PLAIN_NAME = re.compile(r"\^?[\w.]+")
_OF_LAYER = re.compile(r"model\.layers\.\d+\.")
_EMBEDDINGS = ("embed", "head")
_TABLES = {"model.embed_tokens", "lm_head"}
_MAGNITUDES = "lora_magnitude_vector"

Widths = Mapping[str, int]
"""The projections of one matrix, in the order of its rows, and the outputs of each."""


def modules(config: DecoderConfig, family: Family, targets: Iterable[str]) -> list[Widths]:
    """The matrices that some projections are in.

    Args:
        config: shapes.
        family: says which projections share one.
        targets: the projections.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2)
    >>> modules(config, FAMILIES["phi3"], ("q", "v", "o"))
    [{'q': 4, 'k': 2, 'v': 2}, {'o': 4}]
    """
    shapes = config.parameter_shapes["layers"]
    groups = dict.fromkeys(family.leaves_with(target) for target in targets)
    return [{leaf: shapes[leaf][-1] for leaf in group} for group in groups]


def module_name(family: Family, leaves: Iterable[str], layer: int) -> str:
    """What a family's model calls the matrix of some projections.

    >>> module_name(FAMILIES["phi3"], ("q", "k", "v"), 3)
    'model.layers.3.self_attn.qkv_proj'
    """
    return family.tensor(next(iter(leaves)), layer).removesuffix(".weight")


def target_name(family: Family, leaves: Iterable[str]) -> str:
    """What ``target_modules`` calls the matrix of some projections in every layer.

    >>> target_name(FAMILIES["llama"], ("q",)), target_name(FAMILIES["qwen2_moe"], ("gate",))
    ('q_proj', 'shared_expert.gate_proj')
    """
    inside = _OF_LAYER.sub("", module_name(family, leaves, 0))
    return inside.partition(".")[2]


def updates_of(config: DecoderConfig, family: Family, adapter: Params) -> list[tuple[Widths, Update]]:
    """The adapter of each matrix as a family's files have them.

    Args:
        config: shapes, with its ``lora``.
        family: of the files.
        adapter: ``config.adapter_shapes``.

    Raises:
        ValueError: as ``joined``.
    """
    lora = lora_of("updates_of", config)
    found = []
    for widths in modules(config, family, lora.targets):
        parts = {leaf: _own(adapter["layers"], leaf, lora.dora) for leaf in widths if leaf in lora.targets}
        found.append((widths, joined(parts, widths)))
    return found


def _own(layers: Params, leaf: str, dora: bool) -> Update:
    a, b = (fetch(layers[f"{leaf}_lora_{side}"]) for side in "ab")
    return Update(a, b, fetch(layers[f"{leaf}_lora_m"]) if dora else None)


def tensors_of(name: str, update: Update, layer: int) -> dict[str, np.ndarray]:
    """The tensors of one layer of an adapter by their names in a file.

    Args:
        name: of the module.
        update: its adapter in all layers.
        layer: which.
    """
    lengths = {} if update.m is None else {_MAGNITUDES: update.m[layer]}
    own = {"lora_A.weight": update.a[layer].T, "lora_B.weight": update.b[layer].T} | lengths
    return {f"{PREFIX}{name}.{side}": np.ascontiguousarray(x) for side, x in own.items()}


def whole_slots(config: DecoderConfig, family: Family, adapter: Params) -> dict[str, Slot]:
    """The tensors of what an adapter holds whole, by their names in the model.

    Args:
        config: shapes.
        family: says the names.
        adapter: its leaves.
    """
    held = set(adapter) | set(adapter["layers"])
    return {name: slot for name, slot in _all_slots(config, family).items() if set(slot.leaves) <= held}


def saved_modules(names: Iterable[str]) -> list[str]:
    """What ``modules_to_save`` calls modules, of their tensors' names.

    >>> saved_modules(["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"])
    ['embed_tokens', 'input_layernorm', 'model.norm']
    """
    modules = {name.rpartition(".")[0] for name in names}
    inside = {_OF_LAYER.sub("", module) for module in modules}
    return sorted("embed_tokens" if name == "model.embed_tokens" else name for name in inside)


def _all_slots(config: DecoderConfig, family: Family) -> dict[str, Slot]:
    """Of all that a module that is saved whole may be: a head and a score too."""
    shapes = replace(config, tie_embeddings=False).parameter_shapes | {"score": (config.hidden_size,)}
    return {name: slot for name, slot in slots_of(shapes, family).items() if not of_experts(slot.leaves[0])}


def row_tensors(config: DecoderConfig, family: Family, adapter: Params) -> dict[str, np.ndarray]:
    """The tensors of an adapter's trained rows by their names in a file.

    Args:
        config: shapes, with the tokens in its ``lora``.
        family: says the names.
        adapter: with ``embed_rows`` and ``head_rows`` where there are any.
    """
    names = {leaf: family.tensor(leaf, None).removesuffix(".weight") for leaf in row_tokens(config)}
    return {f"{PREFIX}{name}{_ROWS}": fetch(adapter[f"{leaf}_rows"]) for leaf, name in names.items()}


def row_indices(config: DecoderConfig, family: Family) -> list[int] | dict[str, list[int]] | None:
    """What ``trainable_token_indices`` says: ids of the embedding, or of each table by its name; None for none.

    >>> row_indices(DecoderConfig(5, 4, 8, 1, 2, 1, 2, lora=Lora(1, 1.0, tokens=(3,))), FAMILIES["llama"])
    [3]
    """
    tokens = row_tokens(config)
    if tokens.keys() <= {"embed"}:
        return list(tokens["embed"]) if tokens else None
    return {family.tensor(leaf, None).split(".")[-2]: list(ids) for leaf, ids in tokens.items()}


class Reading(NamedTuple):
    """A file of an adapter, as it is read.

    Attributes:
        settings: of adapter_config.json.
        tensors: of the file, by name.
        config: of the base.
        family: whose names they have.
        dtype: that is wanted.
    """

    settings: Fields
    tensors: Mapping[str, Tensor]
    config: DecoderConfig
    family: Family
    dtype: Any

    @property
    def adapted(self) -> list[Widths]:
        """The matrices that have an adapter in the first layer: ``target_modules`` may be a pattern."""
        every = modules(self.config, self.family, self.config.projections)
        return [widths for widths in every if self._named(widths, 0, "lora_A.weight") in self.tensors]

    @property
    def saved(self) -> dict[str, Slot]:
        """The tensors of what is held whole, of which the file has some."""
        slots = _all_slots(self.config, self.family)
        leaves = {slot.leaves for name, slot in slots.items() if PREFIX + name in self.tensors}
        return {PREFIX + name: slot for name, slot in slots.items() if slot.leaves in leaves}

    @property
    def rows(self) -> dict[str, str]:
        """Leaf to tensor of trained rows of the embedding or the head."""
        names = {leaf: self.family.tensor(leaf, None).removesuffix(".weight") for leaf in _EMBEDDINGS}
        found = {leaf: f"{PREFIX}{name}{_ROWS}" for leaf, name in names.items()}
        return {leaf: name for leaf, name in found.items() if name in self.tensors}

    def names(self) -> set[str]:
        """The tensors that a file with some of these has."""
        sides = ["lora_A.weight", "lora_B.weight"] + [_MAGNITUDES] * self.settings.flag("use_dora")
        layers = range(self.config.num_layers)
        adapters = {self._named(widths, i, side) for widths in self.adapted for i in layers for side in sides}
        return adapters | self.saved.keys() | set(self.rows.values())

    def _named(self, widths: Widths, layer: int, side: str) -> str:
        return f"{PREFIX}{module_name(self.family, widths, layer)}.{side}"

    def absent(self) -> list[str]:
        """Modules that are said to be saved and of which the file has nothing."""
        held = {name.removeprefix(PREFIX).rpartition(".")[0] for name in self.saved}
        # A classifier's score is listed under all the names that it may have; what is tied may be there once.
        held |= {"score", "classifier"} | ({"embed_tokens", "lm_head"} if held & _TABLES and self.ties() else set())
        listed = self.settings.words("modules_to_save")
        return [name for name in listed if not any(module.endswith(name) for module in held)]

    def updates(self) -> tuple[Lora, dict[str, Update]]:
        """The adapters by leaf, of one rank and one scale."""
        settings = self.settings
        rank, alpha = settings.size("r"), settings.number("lora_alpha")
        dropout = settings.number("lora_dropout") if settings.raw.get("lora_dropout") else 0.0
        lora = Lora(rank, alpha, TARGETS, settings.flag("use_rslora"), settings.flag("use_dora"), dropout)
        found: dict[str, Update] = {}
        for widths in self.adapted:
            found |= parted(self._update(widths, lora), widths)
        highest = max(update.a.shape[-1] for update in found.values())
        targets = tuple(target for target in TARGETS if target in found)
        lora = replace(lora, rank=highest, alpha=lora.alpha_of(highest), targets=targets)
        return lora, {leaf: padded(found[leaf], highest) for leaf in targets}

    def _update(self, widths: Widths, lora: Lora) -> Update:
        """One matrix's adapters in all layers."""
        each = [self._layer(widths, layer, lora) for layer in range(self.config.num_layers)]
        highest = max(update.a.shape[-1] for update in each)
        each = [padded(update, highest) for update in each]
        lengths = np.concatenate([update.m for update in each]) if lora.dora else None
        a, b = (np.concatenate([update[side] for update in each]) for side in (0, 1))
        return Update(a, b, lengths)

    def _layer(self, widths: Widths, layer: int, lora: Lora) -> Update:
        name = module_name(self.family, widths, layer)
        rank = _pattern(self.settings, "rank_pattern", name, lora.rank)
        alpha = _pattern(self.settings, "alpha_pattern", name, lora.alpha)
        into, out = self.config.parameter_shapes["layers"][next(iter(widths))][1], sum(widths.values())
        a = self._read(f"{PREFIX}{name}.lora_A.weight", (int(rank), into)).T
        b = self._read(f"{PREFIX}{name}.lora_B.weight", (out, int(rank))).T
        share = replace(lora, rank=int(rank), alpha=alpha).scale / lora.scale
        b = b if math.isclose(share, 1, rel_tol=1e-9) else (b * np.float32(share)).astype(b.dtype)
        return Update(
            a[None], b[None], self._read(f"{PREFIX}{name}.{_MAGNITUDES}", (out,))[None] if lora.dora else None
        )

    def _read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        check_tensor(self.tensors[name], shape, self.settings.path.name)
        return read_finite(self.tensors[name].read(), self.dtype, self.tensors[name].path, name)

    def whole(self) -> Params:
        """What is held whole, by leaf; leaves of the layers stacked."""
        top: Params = {}
        layers: dict[str, list[np.ndarray]] = {}
        for name, slot in self.saved.items():
            value = self._read(name, slot.shape)
            for leaf in slot.leaves:
                own = slot.laid.taken(slot.leaves.index(leaf), value)
                if slot.layer is None:
                    top[leaf] = own[0] if leaf == "score" else own
                else:
                    layers.setdefault(leaf, []).append(own)
        return top | {"layers": {leaf: np.stack(values) for leaf, values in layers.items()}}

    def trained_rows(self) -> tuple[dict[str, tuple[int, ...]], Params]:
        """The tokens whose rows of the embedding and of the head were trained, by field of ``Lora``; and the rows.

        Raises:
            ValueError: for ids that the vocabulary has not.
        """
        tokens = {leaf: tuple(self._ids(leaf)) for leaf in self.rows}
        width = self.config.hidden_size
        rows = {f"{leaf}_rows": self._read(self.rows[leaf], (len(ids), width)) for leaf, ids in tokens.items()}
        return {ROWS_OF[leaf]: ids for leaf, ids in tokens.items()}, rows

    def _ids(self, leaf: str) -> list[int]:
        """The tokens whose rows were trained."""
        settings, name = self.settings, "trainable_token_indices"
        if isinstance(settings.raw.get(name), dict):
            settings = settings.nested(name)
            last = self.family.tensor(leaf, None).split(".")[-2]
            name = next((key for key in settings.raw if key.rpartition(".")[2] == last), last)
        return settings.ids(name, self.config.vocab_size)

    def ties(self) -> bool:
        """Whether head and embedding are one: they were, and neither was trained apart from the other."""
        apart = {name.rpartition(".")[2] for name in self.settings.words("modules_to_save")}
        trained = apart & {"embed_tokens", "lm_head"} and not self.settings.flag("ensure_weight_tying")
        return self.config.tie_embeddings and not trained and "head" not in self.rows


def _pattern(settings: Fields, field: str, module: str, default: float) -> float:
    """A number of a module's own, where a pattern of its name has one."""
    nested = settings.nested(field)
    for name in nested.raw:
        if not _PLAIN_NAME.fullmatch(name):
            raise nested.refused(name, "the name of a module, not a pattern", "merge it with peft instead")
        plain = name.removeprefix("^")
        if module == plain or (plain == name and module.endswith(f".{plain}")):
            return nested.size(name) if field == "rank_pattern" else nested.number(name)
    return default


def family_of_tensors(names: Iterable[str]) -> Family:
    """The family that most tensors of the first layer are named after; Llama where none is.

    >>> family_of_tensors(["base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight"]).architecture
    'Phi3'
    """
    first = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in names if ".layers.0." in name}

    def known(family: Family) -> int:
        return len(first & {module_name(family, (target,), 0) for target in TARGETS})

    return max(FAMILIES.values(), key=known)
