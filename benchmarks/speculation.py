"""Seconds of SmolLM2's answers with guessed tokens against one pass for each token, where text repeats and where not.

``auto`` guesses where the tokens so far foretell that it pays, ``always`` wherever it can. Each side draws the same
tokens, which is checked; a float's rounding may part them, and then the tokens in common are told. Prompts ask to copy
a passage with a change (text of the prompt comes again) or to tell a story (little does).
"""

from __future__ import annotations

import jax
import numpy as np
from common import interleaved, parser, ready, report

from rlax_llm.core.speculation import Speculation
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.models.loading import load_model

PASSAGE = (
    "The harbor was quiet in the early morning. A small boat with a red sail left the pier, and two gulls followed it. "
    "The old keeper of the lighthouse wrote the hour into his book, as he had done on every day of the last forty "
    "years. Then he made tea, cut a slice of bread and looked at the sea, which lay flat and gray under the clouds."
)
ASKED = {
    "copy": [f"Repeat this text word for word: {PASSAGE}", f"Copy the following text exactly.\n\n{PASSAGE}"],
    "story": [
        "Tell me a long story about a lighthouse and a storm.",
        "Explain how bread is baked, from the field to the oven.",
    ],
}
SAMPLERS = {"greedy": greedy, "sampled": Categorical()}


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    made.add_argument("--tokens", type=int, default=128, help="of each answer; there is no stop token")
    made.add_argument("--drafts", type=int, default=4)
    args = made.parse_args()
    model = load_model("smollm2")
    tokenizer = model.tokenizer
    for rows in args.rows:
        for text, prompts in ASKED.items():
            asked = [[{"role": "user", "content": prompts[row % len(prompts)]}] for row in range(rows)]
            ids = [tokenizer.encode_prompt(one) for one in asked]
            padded = pad_prompts(ids, tokenizer.pad_id, model.config.vocab_size)
            for name, sampler in SAMPLERS.items():
                compare(model, padded, Request(sampler, (), args.tokens), args, {"text": text, "drawing": name})


def compare(model, prompts, request: Request, args, named: dict[str, str]) -> None:
    asked = {
        "plain": None,
        "auto": Speculation(args.drafts),
        "always": Speculation(args.drafts, always=True),
    }

    def side(speculation: Speculation | None):
        own = request._replace(speculation=speculation)
        return lambda: ready(generate(model.config, model.params, prompts, jax.random.key(0), own))

    sides = {name: side(speculation) for name, speculation in asked.items()}
    drawn = {name: np.asarray(run().tokens) for name, run in sides.items()}
    times = interleaved(sides, args.repeats)
    report(
        "speculation",
        model="SmolLM2-135M float32",
        rows=len(drawn["plain"]),
        **named,
        new_tokens=args.tokens,
        drafts=args.drafts,
        seconds=times,
        faster={name: times["plain"] / times[name] for name in ("auto", "always")},
        same={name: float((drawn[name] == drawn["plain"]).mean()) for name in ("auto", "always")},
    )


if __name__ == "__main__":
    main()
