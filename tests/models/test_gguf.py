from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, RopeScalingType, dequantize, quantize
from safetensors.numpy import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from rlax_llm.models.blocks import Blocks, dequantized
from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.decoder import logits
from rlax_llm.models.families import FAMILIES
from rlax_llm.models.fields import told
from rlax_llm.models.gguf import read_gguf, read_gguf_blocks
from rlax_llm.models.gguf_blocks import alike, blocks_of, stacked
from rlax_llm.models.huggingface import read_config, read_parameters, write_model
from rlax_llm.models.loading import load_blocks
from rlax_llm.models.ropes import LinearRope, Llama3Rope, Rope, YarnRope
from rlax_llm.models.tokenizer import Tokenizer

SPECIAL = ["<|end|>", "<|turn|>", "<think>"]
BYTES = sorted(ByteLevel.alphabet())
MERGES = ["h i", "Ġ hi", "1 2"]
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
LLAMA = DecoderConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    max_positions=64,
)
NAMES = {"embed": "token_embd", "norm": "output_norm", "head": "output", "attention_norm": "attn_norm"}
NAMES |= {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "mlp_norm": "ffn_norm"}
NAMES |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
NAMES |= {"sinks": "attn_sinks", "router": "ffn_gate_inp"}
NAMES |= {f"expert_{leaf}": f"ffn_{leaf}_exps" for leaf in ("gate", "up", "down")}


def parameters(config: DecoderConfig) -> dict:
    rng = np.random.default_rng(0)

    def draw(shape):
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    return jax.tree.map(draw, config.parameter_shapes, is_leaf=lambda node: isinstance(node, tuple))


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: the two halves of each head's rows become neighbors."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
    return np.stack([halves[:, 0], halves[:, 1]], 2).reshape(rows.shape)


def tensors_of(config: DecoderConfig, params: dict, architecture: str) -> dict[str, np.ndarray]:
    tensors = {f"{NAMES[leaf]}.weight": value for leaf, value in params.items() if leaf != "layers"}
    names = NAMES | ({"mlp_norm": "post_attention_norm"} if architecture == "gpt-oss" else {})
    for leaf, of_layers in params["layers"].items():
        module, biased, _ = leaf.partition("_bias")
        name = f"{names[module]}.bias" if biased else f"{names[module]}.weight"
        for layer, value in enumerate(of_layers):
            rows = np.ascontiguousarray(value if value.ndim == 1 or biased else value.swapaxes(-1, -2))
            if architecture in ("llama", "granite") and leaf in ("q", "k"):
                rows = interleaved(rows, config.num_heads if leaf == "q" else config.num_kv_heads)
            tensors[f"blk.{layer}.{name}"] = rows
    return joined(tensors, config.num_layers) if architecture == "phi3" else tensors


def joined(tensors: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """As Phi-3's files have them: one matrix of q, k and v, and one of gate and up."""
    for layer in range(layers):
        stem = f"blk.{layer}."
        qkv, both = (
            np.concatenate([tensors.pop(f"{stem}{name}.weight") for name in names])
            for names in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
        )
        tensors |= {f"{stem}attn_qkv.weight": qkv, f"{stem}ffn_up.weight": both}
    return tensors


def write(
    path: Path, config=LLAMA, architecture="llama", pre="smollm", kind="F32", extra=lambda writer: None, others=None
):
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 4] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}<|turn|>")
    extra(writer)
    for name, value in tensors_of(config, parameters(config), architecture).items():
        own = (others or {}).get(name, "F32" if value.ndim == 1 else kind)
        if own == "F32":
            writer.add_tensor(name, value)
        else:
            quantization = GGMLQuantizationType[own]
            writer.add_tensor(name, quantize(value, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (LLAMA, "llama"),
        (replace(LLAMA, tie_embeddings=False), "llama"),
        (replace(LLAMA, biases=("q", "k", "v")), "qwen2"),
        (replace(LLAMA, qk_norm="head", head_dim=16), "qwen3"),
        (LLAMA, "phi3"),
    ],
)
def test_config_and_parameters_come_back(tmp_path, config, architecture):
    read, params, _ = read_gguf(write(tmp_path / "m.gguf", config, architecture))
    assert read == config
    expected = parameters(config)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize(("kind", "atol"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 2e-1)])
def test_quantized_weights_come_back_nearly(tmp_path, kind, atol):
    _, params, _ = read_gguf(write(tmp_path / "m.gguf", kind=kind))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), params, parameters(LLAMA))
    _, half, _ = read_gguf(tmp_path / "m.gguf", np.float16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half)} == {"float16"}


def test_linear_rope_is_metadata(tmp_path):
    def linear(writer):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    assert read_gguf(write(tmp_path / "m.gguf", extra=linear))[0].rope_scaling == LinearRope(4.0)
    alone = write(tmp_path / "m.gguf", extra=lambda writer: writer.add_rope_scaling_factor(4.0))
    assert read_gguf(alone)[0].rope_scaling == LinearRope(4.0)  # as in llama.cpp


def yarn(writer):
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, YarnRope(4.0, 64, magnitude=0.1 * math.log(4.0) + 1.0)),
        (
            {"original_context_length": 16, "yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0, "yarn_attn_factor": 1.25},
            YarnRope(4.0, 16, 8.0, 2.0, 1.25),
        ),
        (
            {"yarn_log_multiplier": 0.5, "yarn_ext_factor": 1.0, "attn_factor": 1.0},
            YarnRope(4.0, 64, magnitude=(0.1 * math.log(4.0) + 1.0) / (0.05 * math.log(4.0) + 1.0)),
        ),
    ],
)
def test_yarn_is_metadata(tmp_path, said, wanted):
    """Its magnitude as transformers has it of the numbers that the keys are written from."""

    def extra(writer):
        yarn(writer)
        for name, value in said.items():
            add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
            add(f"llama.rope.scaling.{name}", value)

    assert read_gguf(write(tmp_path / "m.gguf", extra=extra))[0].rope_scaling == wanted


OSS = FAMILIES["gpt_oss"].shape(
    told(
        {"vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 5}
        | {"num_local_experts": 4, "num_experts_per_tok": 2}
    )
)
EXPERTS = [f"blk.{layer}.ffn_{leaf}_exps.weight" for layer in range(2) for leaf in ("gate", "up", "down")]


def oss_metadata(writer):
    """What llama.cpp's converter says of a gpt-oss beyond what it says of all."""
    writer.add_sliding_window(5)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(32)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4_096)
    writer.add_rope_scaling_yarn_beta_fast(32.0)
    writer.add_rope_scaling_yarn_beta_slow(1.0)


def in_halves(codes: np.ndarray) -> np.ndarray:
    """Bytes of which the lower halves are the first 16 of 32 codes, as bytes of two neighbors."""
    each = np.concatenate([codes & 15, codes >> 4], -1)
    return each[..., ::2] | each[..., 1::2] << 4


def experts_in_blocks(path, config) -> np.ndarray:
    """The numbers of the experts' gates as blocks hold them."""
    held = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    each = [blocks_of("MXFP4", matrix) for layer in range(2) for matrix in held[f"blk.{layer}.ffn_gate_exps.weight"]]
    return np.asarray(stacked(each).wide()).reshape(config.parameter_shapes["layers"]["expert_gate"])


def test_experts_in_mxfp4_are_those_of_the_safetensors(tmp_path):
    """A gpt-oss in both kinds of files, of the same codes: one decoder, number for number."""
    config = DecoderConfig(**OSS)
    path = write(
        tmp_path / "m.gguf", config, "gpt-oss", "gpt-4o", extra=oss_metadata, others=dict.fromkeys(EXPERTS, "MXFP4")
    )
    write_model(tmp_path / "model", config, parameters(config))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts."
        held = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors if tensor.name in EXPERTS}
        each = {leaf: held[f"blk.{layer}.ffn_{leaf}_exps.weight"] for leaf in ("gate", "up", "down")}
        each |= {"gate_up": np.stack([each["gate"], each["up"]], 2).reshape(4, 64, -1)}
        for leaf in ("gate_up", "down"):
            blocks = each[leaf].reshape(*each[leaf].shape[:2], -1, 17)
            del tensors[f"{stem}{leaf}_proj"]
            tensors[f"{stem}{leaf}_proj_blocks"] = in_halves(blocks[..., 1:])
            tensors[f"{stem}{leaf}_proj_scales"] = np.ascontiguousarray(blocks[..., 0])
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (config_of_file, params, tokenizer), wanted = read_gguf(path), read_parameters(tmp_path / "model", config)
    assert config_of_file == read_config(tmp_path / "model") == config
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    tokens = np.array([tokenizer.encode("hi hi12<think>hi")], np.int32)
    np.testing.assert_array_equal(logits(config, params, tokens), logits(config, wanted, tokens))
    gate = experts_in_blocks(path, config)
    np.testing.assert_array_equal(gate, params["layers"]["expert_gate"])


def llama3_divisors(factor: float) -> np.ndarray:
    config = replace(LLAMA, rope_theta=500_000.0, rope_scaling=Llama3Rope(factor, 1.0, 4.0, 8_192))
    plain, scaled = (rope.frequencies(config.head_dim) for rope in (Rope(config.rope_theta), config.rope))
    return (plain / scaled).astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_is_recognized_by_its_divisors(tmp_path, factor):
    config = replace(LLAMA, rope_theta=500_000.0)
    path = write(
        tmp_path / "m.gguf", config, extra=lambda w: w.add_tensor("rope_freqs.weight", llama3_divisors(factor))
    )
    read, params, _ = read_gguf(path)
    assert read.rope_scaling == Llama3Rope(factor, 1.0, 4.0, 8_192)
    jax.tree.map(np.testing.assert_array_equal, params, parameters(config))


def test_the_tokenizer_splits_digits_and_stops_at_every_stop_token(tmp_path):
    path = write(tmp_path / "m.gguf")
    tokenizer = read_gguf(path)[2]
    assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.vocab_size) == ((0, 1), 0, len(TOKENS))
    ids = [TOKENS.index(token) for token in ("hi", "Ġhi", "1", "2", "<think>", "hi")]
    assert tokenizer.encode("hi hi12<think>hi") == ids
    assert tokenizer.decode(ids) == "hi hi12<think>hi"  # added by a user: matched, and printed
    assert tokenizer.encode_prompt("hi") == [TOKENS.index("hi"), 1]


@pytest.mark.parametrize("adds", [True, False])
def test_a_text_begins_as_the_file_says(tmp_path, adds):
    def extra(writer):
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(adds)

    tokenizer = read_gguf(write(tmp_path / "m.gguf", extra=extra))[2]
    tokenizer.save(tmp_path)
    for own in (tokenizer, Tokenizer.from_directory(tmp_path)):
        assert own.begun(own.encode("hi")) == [1] * adds + [TOKENS.index("hi")]
        # The chat template writes what a chat begins with.
        assert own.encode_prompt("hi") == [TOKENS.index("hi"), 1]


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("gpt-2", ["Ġhi", "12", "1"]),
        ("llama-bpe", ["Ġhi", "12", "1"]),
        ("qwen2", ["Ġhi", "1", "2", "1"]),
        ("smollm", ["Ġhi", "1", "2", "1"]),
        ("refact", ["Ġhi", "1", "2", "1"]),
        ("chatglm-bpe", ["Ġhi", "12", "1"]),
        ("gpt-4o", ["Ġhi", "12", "1"]),
    ],
)
def test_each_pre_tokenizer_treats_digits_in_its_own_way(tmp_path, pre, tokens):
    tokenizer = read_gguf(write(tmp_path / "m.gguf", pre=pre))[2]
    assert tokenizer.encode(" hi121") == [TOKENS.index(token) for token in tokens]
    assert tokenizer.decode(tokenizer.encode(" hi121\n\n né 🦆")) == " hi121\n\n né 🦆"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "gemma"}, "the architecture is 'gemma', wanted llama or qwen2 or qwen3"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken', wanted gpt-2 or olmo or"),
        ({"extra": lambda w: w.add_tokenizer_model("t5")}, "tokenizer.ggml.model is 't5', wanted gpt2 or llama"),
        ({"extra": lambda w: w.add_expert_count(4)}, "tensor blk.0.ffn_down_exps.weight is missing (8 are)"),
        ({"extra": lambda w: w.add_logit_scale(4.0)}, "llama.logit_scale is 4.0, wanted none; use a model without it"),
        ({"extra": lambda w: w.add_array("llama.attention.sliding_window_pattern", [True])}, "wanted a number, or one"),
        ({"extra": lambda w: w.add_rope_dimension_count(4)}, "rope.dimension_count is 4, wanted all 8 of a head"),
        ({"extra": lambda w: w.add_rope_scaling_type(RopeScalingType.LONGROPE)}, "rope.scaling.type is 'longrope'"),
        ({"extra": lambda w: w.add_rope_scaling_type(RopeScalingType.YARN)}, "rope.scaling.factor is None, wanted a"),
        ({"extra": lambda w: yarn(w) or w.add_rope_scaling_yarn_ext_factor(0.5)}, "yarn_ext_factor is 0.5, wanted 1"),
        ({"extra": lambda w: yarn(w) or w.add_rope_scaling_attn_factors(1.5)}, "1.5, wanted 1 beside the type yarn"),
        ({"extra": lambda w: w.add_float32("llama.rope.scale_linear", 2.0)}, "rope.scale_linear is 2.0, wanted none"),
        ({"extra": lambda w: w.add_tensor("rope_freqs.weight", np.full(4, 3.0, np.float32))}, "a Llama 3 rope"),
        (
            {"extra": lambda w: w.add_tensor("blk.0.odd.weight", np.ones(3, np.float32))},
            "blk.0.odd.weight is unexpected",
        ),
        ({"extra": lambda w: w.add_block_count(3)}, "tensor blk.2.attn_k.weight is missing (9 are)"),
        (
            {"extra": lambda w: w.add_eos_token_id(10**6)},
            "tokenizer.ggml.eos_token_id is 1000000, wanted token ids from",
        ),
        ({"extra": lambda w: w.add_block_count(10**7)}, "the configuration has 10000000 layers (num_hidden_layers)"),
        ({"extra": lambda w: w.add_head_count([4, 4])}, "attention.head_count is [4, 4], wanted a positive integer"),
        ({"extra": lambda w: w.add_rope_freq_base(0.0)}, "rope.freq_base is 0.0, wanted a finite number above 0"),
        ({"extra": lambda w: w.add_layer_norm_rms_eps(float("nan"))}, "rms_epsilon is nan, wanted a finite number"),
        ({"extra": lambda w: w.add_feed_forward_length(96)}, "has shape (64, 32), the metadata wants (96, 32)"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changes, words):
    given: dict[str, Any] = dict(changes)
    if "extra" in given:
        given["extra"] = overriding(given["extra"])
    path = write(tmp_path / "m.gguf", **given)
    with pytest.raises(ValueError) as caught:
        read_gguf(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def overriding(change):
    """Let ``change`` write a key a second time, which the writer forbids, and keep its value."""

    def extra(writer):
        earlier = [dict(fields) for fields in writer.kv_data]
        for fields in writer.kv_data:
            fields.clear()
        change(writer)
        for fields, before in zip(writer.kv_data, earlier):
            fields.update(before | dict(fields))

    return extra


@pytest.mark.parametrize("kept", [0, 3, 100, 5_000, -64])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"m\.gguf is not a whole GGUF file"):
        read_gguf(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf is not a file"):
        read_gguf(tmp_path / "nowhere.gguf")


def test_smollm2_answers_as_published(smollm2):
    """Rows of q and k left interleaved hardly move a loss but ruin the model: its published greedy answer tells."""
    prompt = smollm2.tokenizer.encode_prompt("What is the capital of France?")
    answer = smollm2.tokenizer.encode("The capital of France is Paris.") + [2]
    assert answer == [504, 3575, 282, 4649, 314, 7042, 30, 2]
    tokens = np.asarray([prompt + answer], np.int32)
    greedy = logits(smollm2.config, smollm2.params, tokens, np.ones_like(tokens, bool)).argmax(-1)[0]
    assert greedy[len(prompt) - 1 : -1].tolist() == answer


WORDS = {
    "helloWorld's HTTPServer": ["hello", "World's", "ĠHTTPServer"],
    "it'LL isn't I'M": ["it'LL", "Ġisn't", "ĠI'M"],
    "12345 x": ["123", "45", "Ġx"],
    "a ==/\n\n  b": ["a", "Ġ==/ĊĊ", "Ġ", "Ġb"],
}


def test_a_word_ends_at_a_capital_and_takes_its_short_form_along(tmp_path):
    """gpt-4o's rule; a word that is a token is that one, whatever would be merged."""
    tokens = list(dict.fromkeys([*TOKENS, *chain.from_iterable(WORDS.values())]))

    def extra(writer):
        for fields in writer.kv_data:
            for key in ("tokens", "token_type"):
                fields.pop(f"tokenizer.ggml.{key}", None)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 4] + [1] * (len(tokens) - 3))

    config = replace(LLAMA, vocab_size=len(tokens))
    tokenizer = read_gguf(write(tmp_path / "m.gguf", config, pre="gpt-4o", extra=extra))[2]
    for text, wanted in WORDS.items():
        assert tokenizer.encode(text) == [tokens.index(word) for word in wanted]


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcn"]
PIECES += ["▁a", "ab", "bc", "abc", "▁ab", "▁▁", "an", "nan", "▁b"]
SCORES = [0.0] * 264 + [-1.0, -3.0, -2.0, -7.0, -4.0, -5.0, -8.0, -6.0, -9.0]


def literal_pieces(text: str) -> list[str]:
    """SentencePiece's rule: of neighbors that make a piece the first pair of the highest score is joined."""
    pieces = list(text)
    while True:
        found = [
            (-SCORES[PIECES.index(both)], at)
            for at in range(len(pieces) - 1)
            if (both := pieces[at] + pieces[at + 1]) in PIECES
        ]
        if not found:
            return pieces
        at = min(found)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@pytest.mark.parametrize("prefixed", [True, False])
def test_sentence_pieces_are_joined_by_their_scores(tmp_path, prefixed):
    def extra(writer):
        for fields in writer.kv_data:
            for key in ("tokens", "token_type", "merges", "model"):
                fields.pop(f"tokenizer.ggml.{key}", None)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(PIECES)
        writer.add_token_scores(SCORES)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259))
        writer.add_bos_token_id(1)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(prefixed)

    config = replace(LLAMA, vocab_size=len(PIECES))
    tokenizer = read_gguf(write(tmp_path / "m.gguf", config, extra=extra))[2]
    random = np.random.default_rng(0)
    for text in ["", "abc ab", *("".join(random.choice(list("abcn "), 12)) for _ in range(20))]:
        wanted = literal_pieces(("▁" if prefixed and text else "") + text.replace(" ", "▁"))
        assert tokenizer.encode(text) == [PIECES.index(piece) for piece in wanted]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("é")[-2:] == [PIECES.index("<0xC3>"), PIECES.index("<0xA9>")]
    assert tokenizer.decode(tokenizer.encode("é 🦆")) == "é 🦆"
    assert tokenizer.begun(tokenizer.encode("a"))[0] == 1


def literal_blocks(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of random blocks of a kind with scales that are numbers, and what the gguf package says that they are."""
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (5, 768 // weights, size), dtype=np.uint8)
    two = kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
    for at in (0, 2) if two else (size - 2 if kind == "Q6_K" else 0,):
        data[..., at : at + 2] = rng.normal(size=(*data.shape[:2], 1)).astype(np.float16).view(np.uint8)
    if kind == "MXFP4":
        data[..., 0] = rng.integers(100, 140, data.shape[:2])
    data = data.reshape(5, -1)
    return data, dequantize(data, GGMLQuantizationType[kind]).T


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("Q8_0", 8.5), ("Q4_0", 4.5), ("Q4_1", 5), ("Q4_K", 4.625), ("Q6_K", 8.5625)]
    + [("Q5_0", 8.5), ("Q5_1", 9), ("Q5_K", 8.625), ("MXFP4", 5)],
)
def test_blocks_are_the_numbers_of_the_file(kind, bits):
    data, wanted = literal_blocks(kind)
    found = blocks_of(kind, data)
    np.testing.assert_array_equal(found.wide(), wanted)
    assert sum(part.nbytes for part in jax.tree.leaves(found)) * 8 / wanted.size == bits


@pytest.mark.parametrize(
    ("kinds", "bits"),
    [(("Q4_K", "Q6_K"), 9.125), (("Q8_0", "Q5_0"), 8.5), (("Q4_0", "Q4_1", "Q8_0"), 9), (("Q6_K", "Q8_0", "Q4_K"), 12)],
    ids=str,
)
def test_blocks_of_several_kinds_have_one_form_and_the_same_numbers(kinds, bits):
    data, wanted = zip(*map(literal_blocks, kinds))
    found = stacked(alike([blocks_of(kind, one) for kind, one in zip(kinds, data)]))
    np.testing.assert_array_equal(found.wide(), np.stack(wanted))
    assert sum(part.nbytes for part in jax.tree.leaves(found)) * 8 / np.stack(wanted).size == bits


def test_a_base_of_several_kinds_is_read_and_says_so(tmp_path):
    """As Q4_K_M: other blocks in some layers, number for number."""
    path = write(tmp_path / "m.gguf", kind="Q4_0", others={"blk.1.ffn_down.weight": "Q8_0"})
    with pytest.warns(UserWarning, match=r"m\.gguf: the layers of down are of Q4_0 and Q8_0; they are kept in"):
        _, params, _ = read_gguf_blocks(path)
    jax.tree.map(np.testing.assert_array_equal, dequantized(params), read_gguf(path)[1])
    assert (params["layers"]["down"].bits, params["layers"]["up"].bits) == (8, 4)


@pytest.mark.parametrize("architecture", ["phi3", "granite"])
def test_blocks_of_joined_and_of_reordered_matrices_are_put_back(tmp_path, architecture):
    path = write(tmp_path / "m.gguf", architecture=architecture, kind="Q4_0")
    (_, params, _), (config, whole, _) = read_gguf_blocks(path), read_gguf(path)
    assert replace(config, attention_scale=None) == LLAMA
    jax.tree.map(np.testing.assert_array_equal, dequantized(params), whole)
    assert isinstance(params["layers"]["k"], Blocks)


def test_experts_keep_the_blocks_of_their_file(tmp_path):
    """Mixtral's, of two kinds in different layers."""
    config = replace(LLAMA, experts=Experts(4, 2, 64))

    def extra(writer):
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)

    others = {"blk.0.ffn_down_exps.weight": "Q8_0", **{f"blk.{i}.ffn_gate_inp.weight": "F32" for i in (0, 1)}}
    path = write(tmp_path / "m.gguf", config, kind="Q4_0", extra=extra, others=others)
    with pytest.warns(UserWarning, match="the layers of expert_down are of Q4_0 and Q8_0"):
        found, params, _ = read_gguf_blocks(path)
    assert found.experts == config.experts
    jax.tree.map(np.testing.assert_array_equal, dequantized(params), read_gguf(path)[1])
    gate, down = (params["layers"][f"expert_{name}"] for name in ("gate", "down"))
    assert (gate.bits, gate.shape, down.bits, down.shape) == (4, (2, 4, 32, 64), 8, (2, 4, 64, 32))


def test_a_base_keeps_the_blocks_of_its_file(tmp_path):
    path = write(tmp_path / "m.gguf", kind="Q4_1")
    (config, params, _), (whole_config, whole, _) = read_gguf_blocks(path), read_gguf(path)
    assert config == whole_config
    jax.tree.map(np.testing.assert_array_equal, dequantized(params), whole)
    assert isinstance(params["layers"]["q"], Blocks) and params["layers"]["q"].bits == 4
    with pytest.raises(ValueError, match=r"m\.gguf: the quantization of q is 'F32', wanted one of Q8_0, .* over nf4"):
        read_gguf_blocks(write(tmp_path / "m.gguf"))
    with pytest.raises(ValueError, match=f"{tmp_path} is no GGUF file, wanted one that has blocks; take nf4 or int8"):
        load_blocks(tmp_path)
