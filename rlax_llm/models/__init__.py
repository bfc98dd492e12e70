"""Networks and their files: decoder, policies of control, adapters, tokenizers; imports ``core`` and ``envs``."""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "adapter_files": ("read_adapter", "write_adapter"),
        "actor_critic": ("ActorCritic", "perceptron", "policy_from_apply", "recurrent"),
        "config": ("Balance", "Clamped", "DecoderConfig", "Experts", "Lora"),
        "decoder": ("init_decoder", "logits"),
        "distilling": (
            "Reading",
            "Sampled",
            "compared_rows",
            "distilled_log_probs",
            "row_top_tokens",
            "teacher_log_probs",
        ),
        "functional": ("pure_functions",),
        "huggingface": ("write_model", "write_scalar"),
        "initializers": ("orthogonal",),
        "loading": ("LanguageModel", "check_same_vocabulary", "load_model", "load_scalar"),
        "lora": ("init_adapter", "merge_adapter"),
        "packing": ("Packed", "packed_log_probs"),
        "ropes": ("DynamicRope", "LinearRope", "Llama3Rope", "LongRope", "Rope", "RopeScaling", "YarnRope"),
        "scalar": ("init_scalar", "prefix_scores", "sequence_scores", "token_values"),
        "scoring": (
            "by_tokens",
            "group_log_probs",
            "group_log_probs_with_collisions",
            "group_logits",
            "row_log_probs",
        ),
        "sharding": ("laid", "pinned", "placed", "sampling_rules", "shardings"),
        "tokenizer": ("Tokenizer",),
    },
)
