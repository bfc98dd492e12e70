from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rlax_llm.core.types import Completions
from rlax_llm.loops.parts import summed_gradient
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.huggingface import read_config, read_parameters, write_model, write_scalar
from rlax_llm.models.loading import check_same_vocabulary, load_scalar
from rlax_llm.models.scalar import (
    drop_trailing,
    init_scalar,
    prefix_scores,
    sequence_scores,
    small_normal,
    token_values,
)
from rlax_llm.models.tokenizer import Tokenizer

V, GROUP, WIDTH, OWN = 14, 3, 4, 5
ROWS = 2 * GROUP
CONFIGS = {
    "llama": DecoderConfig(V, 16, 24, 2, 4, 2, 4),
    "llama, free head": DecoderConfig(V, 16, 24, 2, 4, 2, 4, tie_embeddings=False),
    "qwen2": DecoderConfig(V, 16, 24, 2, 2, 2, 8, biases=("q", "k", "v")),
    "qwen3": DecoderConfig(V, 16, 24, 2, 4, 1, 6, qk_norm="head"),
    "mistral, odd heads": DecoderConfig(V, 16, 24, 2, 6, 2, 8),
}
LLAMA = CONFIGS["llama"]


def is_shape(node) -> bool:
    return isinstance(node, tuple)


def random_params(config: DecoderConfig, dtype=jnp.float64):
    random = np.random.default_rng(0)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.3 + (path[-1].key.endswith("norm")), dtype)

    return jax.tree_util.tree_map_with_path(draw, config.scalar_shapes, is_leaf=is_shape)


def rows(lengths, tools=()) -> Completions:
    """Two prompts (one padded), three completions each; ``tools`` are columns that the policy did not choose."""
    random = np.random.default_rng(1)
    tokens = np.concatenate(
        [np.repeat(random.integers(0, V, (2, WIDTH)), GROUP, 0), random.integers(0, V, (ROWS, OWN))], 1
    )
    prompt = np.repeat(np.array([[True] * WIDTH, [False, False, True, True]]), GROUP, 0)
    own = np.arange(OWN) < np.asarray(lengths)[:, None]
    mask = np.concatenate([np.zeros_like(prompt), own], 1)
    for column in tools:
        mask[:, WIDTH + column] = False
    nothing = jnp.zeros(tokens.shape)
    valid = jnp.asarray(np.concatenate([prompt, own], 1))
    return Completions(jnp.asarray(tokens), valid, jnp.asarray(mask), nothing, jnp.zeros(ROWS, bool))


@jax.jit
def states(params, tokens, valid):
    return decoder.hidden_states(LLAMA, params, tokens, valid)


def literal(params, completions) -> tuple[np.ndarray, np.ndarray]:
    """Values and scores row by row, each row without its padding."""
    values, scores = np.zeros(completions.tokens.shape), np.zeros(len(completions.tokens))
    hidden = np.asarray(states(params, completions.tokens, completions.valid))
    score = np.asarray(params["score"], np.float64)
    for i, (valid, mask) in enumerate(zip(np.asarray(completions.valid), np.asarray(completions.mask), strict=True)):
        columns = np.flatnonzero(valid)
        for before, t in pairwise(columns):
            if mask[t]:
                values[i, t] = hidden[i, before] @ score
        scores[i] = hidden[i, columns[-1]] @ score
    return values, scores


values_of = {group: jax.jit(token_values(LLAMA, (group, WIDTH))) for group in (1, GROUP)}
scores_of = {group: jax.jit(sequence_scores(LLAMA, (group, WIDTH))) for group in (1, GROUP)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("group", [1, GROUP])
@pytest.mark.parametrize("tools", [(), (1, 2), (4,)])
def test_values_and_scores_are_the_score_of_the_states(group, tools):
    """Also of rows that a tool writes into, at its end as well, and of a completion without a token."""
    params, completions = random_params(LLAMA), rows([5, 1, 2, 0, 3, 5], tools)
    values, scores = literal(params, completions)
    ours = values_of[group](params, completions)
    np.testing.assert_allclose(ours, values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(np.asarray(ours)[~np.asarray(completions.mask)], 0)
    np.testing.assert_allclose(scores_of[group](params, completions), scores, rtol=0, atol=1e-12)
    assert len(np.unique(np.round(scores, 6))) == ROWS


@pytest.mark.usefixtures("float64")
def test_a_prefix_is_scored_as_the_row_that_ends_there():
    params, completions = random_params(LLAMA), rows([5, 1, 2, 0, 3, 5], (1, 2))
    found = np.asarray(jax.jit(prefix_scores(LLAMA, (GROUP, WIDTH)))(params, completions))
    hidden = np.asarray(states(params, completions.tokens, completions.valid)) @ np.asarray(params["score"])
    np.testing.assert_allclose(found, np.where(completions.mask, hidden, 0.0), rtol=0, atol=1e-12)
    scores = np.asarray(scores_of[GROUP](params, completions))
    ends = [(0, WIDTH + 4), (1, WIDTH), (5, WIDTH + 4)]  # the last token of the others is a tool's, or a prompt's
    np.testing.assert_allclose([found[end] for end in ends], scores[[0, 1, 5]], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, OWN - 1), min_size=ROWS, max_size=ROWS))
def test_a_score_is_the_value_of_the_state_after_the_last_token(lengths):
    params, completions = random_params(LLAMA), rows(lengths)
    after = WIDTH + np.array(lengths)
    longer = completions._replace(
        valid=completions.valid.at[np.arange(ROWS), after].set(True),
        mask=completions.mask.at[np.arange(ROWS), after].set(True),
    )
    values = values_of[GROUP](params, longer)[np.arange(ROWS), after]
    np.testing.assert_allclose(values, scores_of[GROUP](params, completions), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_padding_and_foreign_tokens_in_it_change_nothing():
    params, completions = random_params(LLAMA), rows([5, 1, 2, 0, 3, 4])
    other = completions._replace(tokens=jnp.where(completions.valid, completions.tokens, 7))
    np.testing.assert_array_equal(scores_of[GROUP](params, other), scores_of[GROUP](params, completions))
    empty = completions._replace(valid=completions.valid.at[:GROUP].set(False))
    np.testing.assert_array_equal(scores_of[1](params, empty)[:GROUP], 0)


@pytest.mark.usefixtures("float64")
def test_micro_batches_change_no_gradient():
    params, completions = random_params(LLAMA), rows([5, 1, 2, 0, 3, 5])
    values, scores = (make(LLAMA, (GROUP, WIDTH), remat=True) for make in (token_values, sequence_scores))

    def loss(params, rows):
        return jnp.sin(values(params, rows)).sum() + jnp.cos(scores(params, rows)).sum(), {}

    gradient = jax.jit(lambda params, parts: summed_gradient(loss, params, completions, parts)[0], static_argnums=1)
    whole = gradient(params, 1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-10), gradient(params, 2), whole)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(whole))


def test_bfloat16_scores_are_sums_in_float32(monkeypatch):
    """The states are bfloat16; what the score makes of them is not: a sum in bfloat16 would be off by a tenth."""
    random = np.random.default_rng(4)
    hidden, score = (jnp.asarray(random.normal(size=(*shape, 4096)), jnp.bfloat16) for shape in ((ROWS, 1 + OWN), ()))
    monkeypatch.setattr("rlax_llm.models.scalar.completion_states", lambda *_: hidden)
    lengths = [5, 1, 2, 0, 3, 5]
    scores = sequence_scores(LLAMA, (GROUP, WIDTH))({"score": score}, rows(lengths))
    expected = (np.asarray(hidden, np.float64) @ np.asarray(score, np.float64))[np.arange(ROWS), lengths]
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3)
    values = token_values(LLAMA, (GROUP, WIDTH))({"score": score}, rows(lengths))
    assert values.dtype == jnp.float32


def test_a_scalar_model_starts_from_a_decoder():
    config = CONFIGS["llama, free head"]
    base = jax.tree.map(lambda shape: jnp.ones(shape, jnp.bfloat16), config.parameter_shapes, is_leaf=is_shape)
    params = init_scalar(base, jax.random.key(1))
    assert jax.tree.map(lambda x: x.shape, params) == config.scalar_shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert params["embed"] is base["embed"]
    again = init_scalar(params, jax.random.key(1), jax.nn.initializers.zeros)
    np.testing.assert_array_equal(again["score"], np.zeros(16))
    drawn = small_normal(jax.random.key(0), (4095,))
    np.testing.assert_allclose(drawn.std() * np.sqrt(4096), 1, atol=4 / np.sqrt(2 * 4095))


def test_rows_up_to_their_last_token_that_does_not_pad():
    """A 9 at the end, several, one in the middle, a row of them only; none, and a completion without a token."""
    completions = rows([5, 4, 5, 0, 2, 2])
    tokens = (completions.tokens % 9).at[0, -1].set(9).at[1, 6:8].set(9).at[2, 5].set(9).at[4, WIDTH:].set(9)
    cut = drop_trailing(completions._replace(tokens=tokens), 9)
    np.testing.assert_array_equal(cut.valid[:, WIDTH:].sum(-1), [4, 2, 5, 0, 0, 2])
    np.testing.assert_array_equal(cut.mask.sum(-1), [4, 2, 5, 0, 0, 2])
    np.testing.assert_array_equal(cut.valid[:, :WIDTH], completions.valid[:, :WIDTH])


# Directories.


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.characters("0123456789+=")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_export_then_import_is_the_identity(tmp_path, tokenizer, name, dtype):
    config = CONFIGS[name]
    params = random_params(config, dtype)
    write_scalar(tmp_path / "reward", config, params, tokenizer, shard_bytes=6_000)
    loaded = load_scalar(tmp_path / "reward", dtype)
    assert loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.tokenizer.encode("1+2=") == tokenizer.encode("1+2=")
    fields = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert fields["architectures"][0].endswith("ForSequenceClassification")
    assert (fields["num_labels"], fields["id2label"], fields["pad_token_id"]) == (1, {"0": "LABEL_0"}, 0)


@pytest.fixture
def reward(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    write_scalar(tmp_path / "reward", LLAMA, random_params(LLAMA, jnp.float32), tokenizer)
    return tmp_path / "reward"


def with_score(reward: Path, *shape: int) -> None:
    tensors = load_file(reward / "model.safetensors")
    save_file(tensors | {"score.weight": np.ones(shape, np.float32)}, reward / "model.safetensors")


def test_files_are_as_torch_wants_them(reward):
    tensors = load_file(reward / "model.safetensors")
    assert tensors["score.weight"].shape == (1, 16)
    assert "lm_head.weight" not in tensors


def test_a_head_that_is_left_over_is_passed_over(reward):
    tensors = load_file(reward / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, reward / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_scalar(reward).params, random_params(LLAMA, jnp.float32))


def test_a_language_model_is_no_reward_model_and_the_other_way_round(tmp_path, tokenizer, reward):
    params = jax.tree.map(jnp.ones, LLAMA.parameter_shapes, is_leaf=is_shape)
    write_model(tmp_path / "policy", LLAMA, params, tokenizer)
    with pytest.raises(ValueError) as caught:
        load_scalar(tmp_path / "policy")
    assert str(caught.value) == (
        f"{tmp_path / 'policy'} has no tensor score.weight, wanted a reward model (a sequence classifier with one "
        "label); train one, or give a directory that holds one."
    )
    with pytest.raises(ValueError) as caught:
        read_parameters(reward, read_config(reward))
    assert str(caught.value) == (
        f"{reward} is a reward model (it has score.weight), wanted a language model; give the model that it was "
        "trained from."
    )


def test_several_labels_are_refused(reward):
    with_score(reward, 3, 16)
    with pytest.raises(ValueError) as caught:
        load_scalar(reward)
    assert str(caught.value) == f"{reward}: num_labels is 3, wanted 1, one score a sequence; use a reward model."


def test_a_score_of_another_width_is_named(reward):
    with_score(reward, 1, 15)
    with pytest.raises(ValueError, match=r"tensor score\.weight has shape \(1, 15\), config\.json wants \(1, 16\)"):
        load_scalar(reward)


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(FileNotFoundError) as caught:
        load_scalar("no/such/place")
    assert str(caught.value) == (
        "load_scalar: 'no/such/place' is not a directory or a hub name owner/name, wanted a reward model; "
        "check the path."
    )


def test_parameters_of_a_language_model_are_refused(tmp_path):
    config = replace(LLAMA, tie_embeddings=False)
    with pytest.raises(ValueError) as caught:
        write_scalar(tmp_path / "reward", config, jax.tree.map(jnp.ones, config.parameter_shapes, is_leaf=is_shape))
    assert str(caught.value) == (
        "write_scalar: parameter head is (14, 16), the config wants none; give the parameters that belong to the "
        "config."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("policy", "reward", "message"),
    [
        ("abc", "acb", "token 'b' is id 4 in its tokenizer and 3 in the policy's (5 tokens against 5)"),
        ("ab", "abc", "token 'c' is id 4 in its tokenizer and absent in the policy's (5 tokens against 4)"),
        ("abc", "ab", "token 'c' is absent in its tokenizer and 4 in the policy's (4 tokens against 5)"),
    ],
)
def test_a_reward_model_of_another_vocabulary_is_refused(policy, reward, message):
    with pytest.raises(ValueError) as caught:
        check_same_vocabulary(Tokenizer.characters(policy), Tokenizer.characters(reward))
    assert str(caught.value) == (
        f"The reward model has another vocabulary than the policy: {message}; give a reward model trained from a model "
        "with the policy's tokenizer."
    )


def test_one_vocabulary_passes():
    check_same_vocabulary(Tokenizer.characters("abc"), Tokenizer.characters("abc"))
