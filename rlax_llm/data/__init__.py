"""From tables and tasks to rows of tokens; imports ``models``, ``rewards``, ``preference`` and ``core``.

What cannot be used is left out, counted and named.
"""

from rlax_llm.core.faces import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "arithmetic": ("Problems", "digit_rows", "word_rows"),
        "batches": ("demonstration_rows", "labeled_rows", "pair_rows", "stepwise_rows"),
        "encoding": ("encode_demonstrations", "encode_labeled", "encode_pairs", "encode_stepwise"),
        "jsonl": ("read_rows",),
        "packing": ("pack",),
        "preferences": (
            "Demonstration",
            "Labeled",
            "Pair",
            "Stepwise",
            "read_demonstrations",
            "read_labeled",
            "read_pairs",
            "read_stepwise",
        ),
        "rows": ("DataError", "batch_indices", "split_rows"),
        "tasks": ("Task", "file_task", "load_task"),
    },
)
