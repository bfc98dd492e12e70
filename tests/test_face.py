"""The flat face: what a newcomer finds under ``rl.…``."""

from __future__ import annotations

import pkgutil
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rlax_llm as rl
from rlax_llm.core.types import Completions
from rlax_llm.policy.objectives import Objective
from rlax_llm.recipes import group as recipes

PACKAGES = [rl, *(getattr(rl, module.name) for module in pkgutil.iter_modules(rl.__path__) if module.ispkg)]
FACES = [package for package in PACKAGES if hasattr(package, "__getattr__")]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_every_name_of_a_face_is_there(face):
    for name in set(dir(face)) - {"brax_env"}:  # its package may be absent
        assert getattr(face, name) is not None, name


def test_the_flat_names_are_few_and_each_is_its_folders_too():
    flat = [name for name in dir(rl) if not isinstance(getattr(rl, name), ModuleType) and name[0] != "_"]
    assert len(flat) < 140
    assert rl.mesh is rl.core.mesh.mesh  # in a module of its name, so that the folder shows that
    for name in set(flat) - {"mesh"}:
        homes = [folder for folder in FACES[1:] if getattr(folder, name, None) is getattr(rl, name)]
        assert len(homes) == 1, name


def test_a_name_that_a_folder_shows_is_no_module_of_it():
    for face in FACES:
        modules = {module.name for module in pkgutil.iter_modules(face.__path__) if module.name[0] != "_"}
        assert all(isinstance(getattr(face, name), ModuleType) for name in modules - {"brax_env"})


def test_where_a_recipe_and_its_part_share_a_name_the_flat_name_is_the_recipe():
    names = [name for name in vars(recipes) if not name.startswith("_") and recipes.__dict__[name] is not None]
    made = [name for name in names if getattr(vars(recipes)[name], "__module__", "") == recipes.__name__]
    for name in made:
        if name not in ("penalty_or_none", "trpo"):
            assert getattr(rl, name) is vars(recipes)[name], name
    assert isinstance(rl.gdpo((1.0, 0.5)), Objective)
    assert rl.credit.gdpo is not rl.gdpo


@pytest.mark.parametrize(
    ("face", "name", "hint"),
    [
        (rl, "z_scores", "; did you mean 'z_score'?"),
        (rl, "retrace", "; it is rlax_llm.credit.retrace."),
        (rl.credit, "gea", "; did you mean 'gae'?"),
        (rl, "qwertyuiop", "."),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_nearest(face, name, hint):
    with pytest.raises(AttributeError) as caught:
        getattr(face, name)
    assert str(caught.value) == f"module {face.__name__!r} has no attribute {name!r}{hint}"


def test_a_small_decoder_from_its_config_to_log_probabilities():
    config = rl.DecoderConfig(
        vocab_size=11, hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4
    )
    params = rl.init_decoder(config, jax.random.key(0))
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    logits = rl.logits(config, params, tokens)
    assert logits.shape == (2, 4, 11)
    mask = jnp.array([[False, True, True, True]] * 2)
    zeros, every = jnp.zeros(tokens.shape), jnp.ones(tokens.shape, bool)
    np.testing.assert_array_equal(logits, rl.logits(config, params, tokens, every))
    plain = jax.nn.log_softmax(logits)[:, :-1]
    chosen = jnp.take_along_axis(plain, tokens[:, 1:, None], -1)[..., 0]
    completions = Completions(tokens, every, mask, zeros, jnp.zeros(2, bool))
    rows = rl.row_log_probs(config)(params, completions)[0]
    packed = rl.models.packed_log_probs(config)(
        params, rl.models.Packed(*completions, segments=jnp.ones(tokens.shape, jnp.int32))
    )[0]
    for found in (rows, packed):
        np.testing.assert_allclose(found[:, 1:], chosen, rtol=1e-5, atol=1e-6)
