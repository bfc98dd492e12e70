"""vLLM drawing completions of given lengths from a model that we wrote, once for each line on standard input.

    python run_vllm.py DIRECTORY --settings FILE.json

The file holds, for instance, ``{"dtype": "float32", "lengths": [12, 80], "prompts": [[5, 6], [7, 8]]}``. Needs vLLM.
``rollout.py`` starts it; every line is answered with the seconds of a whole generation. Each completion ends at its
length, so all sides draw the same number of tokens. Caching of prefixes and the scheduler are at their defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("directory", type=Path)
    made.add_argument("--settings", type=Path, required=True, help="a JSON file")
    args = made.parse_args()
    said = json.loads(args.settings.read_text(encoding="utf-8"))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer

    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(args.directory),
        dtype=said["dtype"],
        max_model_len=len(said["prompts"][0]) + max(said["lengths"]),
        max_num_seqs=len(said["lengths"]),
        seed=0,
    )
    prompts = [{"prompt_token_ids": ids} for ids in said["prompts"]]
    wanted = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in said["lengths"]]
    for _ in sys.stdin:
        start = time.perf_counter()
        found = engine.generate(prompts, wanted, use_tqdm=False)
        taken = time.perf_counter() - start
        engine.reset_prefix_cache()  # a next batch has other prompts
        drawn = [len(one.outputs[0].token_ids) for one in found]
        assert drawn == said["lengths"], "vLLM drew other lengths than it was asked for"
        print(taken, file=answers, flush=True)


if __name__ == "__main__":
    main()
