"""Print `docs/families.md` from the registry of model families itself.

python docs/print_families.py > docs/families.md
"""

from __future__ import annotations

import runpy
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.families import FAMILIES, WITHIN
from rlax_llm.models.fields import told

HEADER = """# Model families

Whatever `--model` names is read from its `config.json`, computed by one decoder and written back so that transformers
loads it. A family is a row of `rlax_llm/models/families.py`; this page is printed from it by `docs/print_families.py`.

*Does otherwise* lists the fields of `rl.DecoderConfig` in which a family differs from Llama where its `config.json`
says no more than sizes; each is explained there. A field of `config.json` that changes the computation and is not
understood is an error.

| `model_type` | class | does otherwise | scores | GGUF | compared with transformers |
|---|---|---|---|---|---|
"""
COMPARED = """

*Compared*: so many configurations of a random model in float32, each of them read from what transformers wrote:
logits within 1e-4 on rows that are whole, padded left, right and on both sides; the same greedy tokens with a cache;
the export loaded by transformers without a missing or unexpected key, with the same logits; and import, export and
import again without a bit changed. Each switch that a configuration has is dropped once, and the logits must differ.
Of mixtures, whether the weights of a token's experts are normalized is turned once too, and the clamp, its numbers and
each bias are dropped. *Scores* says whether transformers has a sequence classifier of the family, which a reward or a
value model is written as.

## Ropes

Plain, linear, dynamic NTK, Llama 3's, YaRN and LongRoPE, in the words of transformers 4 and 5. Two things are other
than in transformers, because a policy's log-probabilities must be one function of its tokens:

- **Dynamic NTK** is the plain rope up to `max_position_embeddings`; longer sequences are refused, where transformers
  turns what follows faster than what is already cached.
- **LongRoPE** (Phi) has a list of factors for short sequences and one for long ones. A model is read with the short
  list, up to `original_max_position_embeddings`; `rl.models.LongRope(…, max_positions=131_072)` in the config takes the
  long list for all of its sequences. A file has both lists, so an export of either is the same.

## Mixtures of experts

A token passes the experts that it is sent to and no other: tokens are sorted by expert, and multiplied with
`jax.lax.ragged_dot`, or on a CPU in blocks of one expert (`benchmarks/experts.py`). Under a mesh the axis `tensor`
holds each device's own experts, and none has those of others; along `fsdp` a layer's are gathered as other matrices
are. The router is trained with the rest; `--router-aux-coef C` adds transformers'
load-balancing loss to what any command minimizes, of shares over all layers and the whole batch: where a step is taken
in micro-batches a pass counts before it. `--router-z-coef C` adds the z-loss. Not given, C is the model's own
`router_aux_loss_coef` where its config has `output_router_logits`, as transformers decides; TRL takes the coefficient
without asking that. `router/load_max` (the largest share that an expert of a layer has over an equal one),
`router/entropy` (nats), `router/aux_loss` (k where all experts have alike) and `router/z_loss` are told either way.
`--sampler-dtype int8` keeps the experts' matrices in int8 too, with a scale for each output of an expert;
under adapters `--base-dtype` keeps them [in 4 or 8 bits](guides/lora.md#a-base-in-4-or-8-bits). Sampler and learner
route by their own numbers: a token whose experts are as good as equal may go another way in a sampler of less
precision, which `sampler/…` metrics show and the correction weighs.

`--router-replay` of `grpo`, `ppo` and `distill` (R3, [arXiv 2510.11370](https://arxiv.org/abs/2510.11370)) takes the
sampler's choice over: the experts that each token of prompt and completion was sent to, in every layer, are kept beside
what was drawn (`rl.Completions.routed`, a byte for each expert that a token has in a layer), and the learner sends its
tokens there, with the weights that its own router gives these experts. So the first ratio is that of one network,
whatever numbers the sampler computed in, and gradients go through the experts that were taken, to the router too. The
learner's own log-probabilities before an update, which `--correction` reads, are taken so; a reference is another model
and goes by its own router, as in slime and NeMo-RL. Tokens of which nobody says, such as a demonstration's, go where
the router sends them. `router/mismatch` is the share of experts that the router itself would not have chosen;
`router/load_max` and `router/aux_loss` count the experts that tokens were sent to. In Python it is `Request(…,
routed=True)`; `row_log_probs`, `group_log_probs` and their like read what completions hold. A server says it too
([another sampler](guides/foreign-sampler.md#the-experts-of-a-mixture)). Completions of several turns and partial
rollouts do not, and are refused; what all prompts begin with is read with each of them. A value model and a teacher go
by their own routers, as a reference does. `online` has no such flag: its losses compare the policy with its reference,
or are a likelihood, and have no ratio to the sampler; by the sampler's experts the policy would differ from an equal
reference before the first step.

## Attention sinks

Each head of gpt-oss has one more logit in its softmax (`sinks`), whose share is dropped: a head may attend to nothing.
It comes behind all keys, those of a shared prompt and a row's own, so it is counted once, and it is trained with the
rest. The kernel of TPUs takes it; cuDNN does not, so on an NVIDIA GPU attention is plain XLA in blocks.

## Files

`model.safetensors` or its shards, in float32, float16 or bfloat16. Adapters are read and written in the names of the
family's own modules, joined ones too ([LoRA](guides/lora.md#adapters-of-others)).

*GGUF* is the `general.architecture` of the llama.cpp files that are read; none is written. Their metadata are said in
the words of the family's `config.json` and read as that is. What the converter does to tensors is undone: norms that
hold the sum with 1 (Gemma), rows of q and k in the order in which neighbors turn (`llama`, `smollm3`, `granite`),
several projections or all experts in one. What an architecture says of itself is taken from it: SmolLM3's layers
without a rope, Gemma's scale of scores, Qwen3-MoE's normalized weights, gpt-oss's clamp and the ends of its YaRN's
ramp, which are no whole numbers as in its config.json (llama.cpp rounds them). Ropes are plain, linear, YaRN
(`rope.scaling.*`; `yarn_attn_factor` is the `attention_factor` of the config.json that the file was made from), Llama
3's (a tensor of divisors) and LongRoPE (two). Every quantization that the `gguf` package makes wide is read, gpt-oss's
MXFP4 among them. Each family is compared with the model that the file was made of. A key that changes the computation
and is not its family's is an error, and so are older files that hold a tensor for each expert, and Mistral's newest
under the name `mistral3`. Tokenizers are byte-level BPE (of these `tokenizer.ggml.pre`: gpt-2, olmo, smollm, refact,
llama-bpe, dbrx, chatglm-bpe, glm4, qwen2, gpt-4o) or SentencePiece's (`llama`: Gemma, Phi-3, Mixtral, Llama 2); others,
as Mistral Nemo's (`tekken`), are refused by name.

Of a multimodal checkpoint (`gemma3`) the language model is read, and written as `gemma3_text`.

gpt-oss keeps its experts in MXFP4 (`…_blocks` and `…_scales`): they are made wide as they are read, a part at a time,
and are written wide, in the dtype of the parameters. gpt-oss-20b has 21 billion parameters, 42 GB in bfloat16. Other
formats of few bits (`quantization_config`) are refused by name.
"""
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 64,
}
NUMBERS = ("rope_theta", "norm_eps", "tie_embeddings", "max_positions", "window")
PARITY = Path(__file__).parent.parent / "tests" / "parity" / "families.py"


def words(name: str, value: Any) -> str:
    """A field and its value; of layers that differ, how many of twelve."""
    if name in ("sliding", "rotated"):
        return f"`{name}` {sum(value)} of {len(value)} layers"
    if name == "local_rope":
        return "`local_rope`"
    if name == "rope_scaling":
        return f"`rope_scaling` {type(value).__name__}"
    if isinstance(value, Experts):
        further = ["normalized"] * value.normalized + ["and a shared MLP"] * value.shared
        further += ["with biases"] * value.biased + ["and a clamp"] * (value.clamped is not None)
        return " ".join([f"`experts` {value.per_token} of {value.count}", *further])
    shown = ", ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
    return f"`{name}`" if value is True else f"`{name}` {shown}"


def otherwise(kind: str) -> str:
    """In what a family differs from Llama."""
    shape = FAMILIES[kind].shape(told(SIZES | {"model_type": kind}))
    config = DecoderConfig(**shape)
    plain = {field.name: field.default for field in fields(DecoderConfig) if field.name not in SIZES}
    own = {name: getattr(config, name) for name, value in plain.items() if getattr(config, name) != value}
    shown = [words(name, value) for name, value in own.items() if name not in NUMBERS and name in OPTIONAL]
    joined = [f"`{'` and `'.join(leaves)}` in one tensor" for leaves in FAMILIES[kind].joined.values()]
    windows = ["a window"] if config.window is not None else []
    return ", ".join(windows + shown + joined) or "—"


OPTIONAL = {field.name for field in fields(DecoderConfig)} - {"num_heads", "num_kv_heads", "head_dim", "num_layers"}


def page() -> str:
    """The whole page."""
    compared = runpy.run_path(str(PARITY))
    classes = [name for name, _ in compared["FAMILIES"].values()]
    rows = []
    for kind, family in FAMILIES.items():
        also = [f" (in `{other}`)" for other, (inside, _) in WITHIN.items() if inside == kind]
        named = {family.architecture, f"{family.architecture}Text"}
        count = sum(name in named for name in classes)
        scores = "yes" if family.classifier is not None else "no"
        gguf = f"`{family.gguf.architecture}`" if family.gguf else ""
        rows.append(
            f"| `{kind}`{''.join(also)} | {family.architecture} | {otherwise(kind)} | {scores} | {gguf} | {count} |"
        )
    return HEADER + "\n".join(rows) + COMPARED


if __name__ == "__main__":
    print(page(), end="")
