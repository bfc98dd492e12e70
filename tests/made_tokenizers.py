"""Small tokenizers of other makes, and chat templates of the shapes that models are published with."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rlax_llm.models.tokenizer import Tokenizer, fast_class

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+=?.,![]/<>|-_\n\u2581"
WORDS = ["two", "plus", "is", "four", "five", "yes", "add", "them", "\n\n"] * 50
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
KINDS = ("first", "always", "legacy")

ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CUTTING = (
    "{% for m in messages %}{% set c = m['content'] %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""An older one of models that reason: it cuts the reasoning from every answer."""
OPENING = CUTTING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""A newer one: its prompt opens the reasoning, and a whole conversation has none."""
SHOWING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set c = m['content'] %}{% set r = m['reasoning_content'] or '' %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}<think>\n{{ r }}\n</think>\n\n{% endif %}"
    "{{ c }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""One that writes the reasoning of what follows the last question, an empty one where there is none."""


def metaspace(kind: str, template: str | None = None, eos: str = "</s>") -> Tokenizer:
    """A BPE that writes blanks as SentencePiece does and begins a text with ``<s>``.

    Args:
        kind: where a blank is put before text: "first" before a whole one, "always" before each part between special
            tokens, "legacy" the same by a normalizer.
        template: the chat template.
        eos: the tokenizer's end of sequence.
    """
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=kind, split=False)
    fused = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(fused)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=list(LETTERS))
    # Word by word: no token holds parts of two words, as in the tokenizers that this stands for.
    backend.train_from_iterator(WORDS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = fast_class()(tokenizer_object=backend, bos_token="<s>", eos_token=eos, unk_token="<unk>")
    fast.chat_template = template
    return Tokenizer(fast)
