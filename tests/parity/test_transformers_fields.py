"""A field of transformers' configs is understood, or refused by name, or changes no logit there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from torch_models import padded, torch_logits, torch_model
from transformers import PreTrainedConfig

from rlax_llm.models.families import FAMILIES as OURS
from rlax_llm.models.fields import told
from rlax_llm.models.huggingface import read_config

# The first configuration of each family, and Llama's with what all configs have.
FIRST = {family: name for name, (family, _) in reversed(FAMILIES.items())}
OF_ALL = set(PreTrainedConfig().to_dict())
ABOUT = {"model_type", "architectures", "transformers_version", "dtype", "_name_or_path", "return_dict"}
"""Of the file and of calls, and no numbers of the model."""


def others(value: Any) -> Iterator[Any]:
    """What may stand in a value's place."""
    if value is None:
        yield from (True, 2, 0.5, [1])
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
        yield value / 2
    elif isinstance(value, str):
        yield "gelu"
    elif isinstance(value, list):
        yield value[::-1]
        yield [*value, 1]


def unread(described: dict[str, Any], kind: str) -> set[str]:
    """The fields that a family does not ask for."""
    fields = told(described)
    OURS[kind].shape(fields)
    return described.keys() - fields.asked - ABOUT


def logits_of(model: torch.nn.Module, described: dict[str, Any]) -> np.ndarray | None:
    """Those of a model that is described otherwise, and must take the same weights; None where there is none."""
    kind = type(model.config)
    try:
        twin = type(model)(kind(**described)).eval()
    except Exception:  # whatever transformers says of it
        return None
    twin.load_state_dict(model.state_dict())
    return torch_logits(twin, *padded(model.config.vocab_size))


@pytest.mark.parametrize("family", FIRST)
def test_no_field_that_changes_the_logits_is_overlooked(tmp_path, family):
    model = torch_model(*FAMILIES[FIRST[family]])
    described = json.loads(model.config.to_json_string(use_diff=False))
    own = unread(described, model.config.model_type) - (set() if family == "Llama" else OF_ALL)
    wanted = torch_logits(model, *padded(model.config.vocab_size))
    tried = 0
    for name in sorted(own):
        for other in others(described[name]):
            (tmp_path / "config.json").write_text(json.dumps(described | {name: other}))
            try:
                read_config(tmp_path)
            except ValueError:
                continue
            found = logits_of(model, described | {name: other})
            if found is not None:
                np.testing.assert_array_equal(found, wanted, err_msg=f"{name} = {other!r}")
                tried += 1
    assert tried > 0
