"""Parts of settings about rows of tokens: how long they are, and how completions are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from rlax_llm.commands.fields import (
    Part,
    above_zero,
    at_least,
    check_countable,
    divides,
    option,
    resolved,
    unescaped,
    within,
)
from rlax_llm.commands.shared_settings import CHOSEN
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.speculation import Speculation

_MOST_DRAFTS = 64
_COLDEST = 1e-6  # below it, logits divided by a temperature leave float32


@dataclass(frozen=True, kw_only=True)
class LimitSettings(Part):
    """How long rows may be."""

    max_prompt_tokens: int = resolved("Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int = resolved("Longest completion, tokens.", CHOSEN)

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "max_prompt_tokens", "max_new_tokens")

    @property
    def row_tokens(self) -> int:
        """The longest row."""
        return self.max_prompt_tokens + self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class BatchSettings(LimitSettings):
    """The rows of a step, where they come from a file."""

    batch_size: int = resolved("Examples per step.", CHOSEN)
    micro_batch_size: int | None = option(
        None, "Examples per micro-batch: less memory, same gradient.", "the whole batch at once"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 1, "batch_size", "micro_batch_size")
        divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
        check_countable(self.widest_row, {"batch_size": self.batch_size})

    @property
    def widest_row(self) -> int:
        """Tokens of the widest row."""
        return self.row_tokens

    @property
    def micro_batches(self) -> int:
        """Parts that a batch is taken in."""
        return self.batch_size // self.rows_together

    @property
    def rows_together(self) -> int:
        """Examples of a micro-batch."""
        return self.batch_size if self.micro_batch_size is None else self.micro_batch_size


@dataclass(frozen=True, kw_only=True)
class DrawSettings(Part):
    """What completions are drawn from, token by token."""

    temperature: float = option(1.0, "Sampling temperature, above 0.")
    top_k: int = option(0, "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "Sample among the likeliest tokens that hold this probability; 1 is off.")
    min_p: float = option(0.0, "Sample among tokens at least this times as likely as the likeliest; 0 is off.")
    repetition_penalty: float = option(
        1.0, "Logits of tokens of prompt and completion are divided by it (multiplied, those below 0); 1 is off."
    )
    presence_penalty: float = option(0.0, "Subtracted from the logits of tokens of the completion; 0 is off.")
    frequency_penalty: float = option(0.0, "The same, for each time that the token is there; 0 is off.")
    min_new_tokens: int = option(0, "Shortest completion, tokens: none stops before.")
    stop: tuple[str, ...] | None = option(
        None,
        r"Texts that end a completion, wherever their tokens begin and end; \n is a new line, \t a tab, \\ a "
        "backslash. Rewards read what stands before.",
        "stop tokens alone",
        "TEXT",
        empty=True,
    )
    stop_ids: tuple[int, ...] | None = option(
        None, "Tokens that end a completion, beside the tokenizer's own.", "those alone", "TOKEN_ID"
    )
    pattern: str | None = option(
        None,
        "Regular expression that a whole completion matches, without ^ and $: only tokens that can go on to a text of "
        "it are drawn, and stop tokens only at its end. It needs the extra 'pattern'.",
        "any text",
        "REGEX",
    )
    logit_bias: str | None = option(
        None, "Added to the logits of tokens, as 42=-2.5,7=-inf; -inf bans a token.", "no bias", "TOKEN_ID=BIAS,..."
    )
    speculate: str = option(
        "auto",
        "Tokens that are guessed from the text so far, so that one pass of the model draws several; the tokens are the "
        "same. auto guesses 4 where few completions go on and repeat what was there before, off none, and a number so "
        "many wherever no completion waits for a slot. Several devices guess none.",
        metavar="auto|off|INT",
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "top_k", "min_new_tokens", "temperature")
        if 0 < self.temperature < _COLDEST:
            raise ValueError(f"temperature is {self.temperature}, wanted at least {_COLDEST}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, wanted a number above 0 and up to 1.")
        within(self, 0, 1, "min_p")
        bias_pairs(self.logit_bias)
        speculation_of(self.speculate)
        above_zero(self, "repetition_penalty")
        within(self, -1000, 1000, "repetition_penalty", "presence_penalty", "frequency_penalty")
        if self.pattern is not None and self.min_new_tokens:
            raise ValueError("pattern and min_new_tokens are given, and may leave no token to draw; leave one out.")
        if not all(self.stops):
            raise ValueError("stop has an empty text, wanted texts that end a completion; leave it out.")
        if min(self.stop_ids or (), default=0) < 0:
            raise ValueError(f"stop_ids are {list(self.stop_ids or ())}, wanted ids of tokens, from 0 on.")

    @property
    def penalties(self) -> Penalties:
        """Those of tokens that were there before."""
        return Penalties(self.repetition_penalty, self.presence_penalty, self.frequency_penalty)

    @property
    def stops(self) -> tuple[str, ...]:
        r"""The texts that end a completion.

        >>> DrawSettings(stop=(r"\n\nQ:",)).stops
        ('\n\nQ:',)
        """
        return tuple(map(unescaped, self.stop or ()))

    @property
    def speculation(self) -> Speculation | None:
        """How tokens are guessed."""
        return speculation_of(self.speculate)

    @property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """The pairs of token id and bias."""
        return bias_pairs(self.logit_bias)


OF_THE_DISTRIBUTION = (
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_new_tokens",
    "stop",
    "pattern",
)
"""Fields of ``DrawSettings`` that say which tokens may be drawn, or how likely they are, by those before them: a token
alone does not tell what it was drawn from.
"""


def speculation_of(text: str) -> Speculation | None:
    """What ``speculate`` asks for.

    Raises:
        ValueError: for text that is none of ``auto``, ``off`` and a number of tokens.

    >>> speculation_of("auto"), speculation_of("off"), speculation_of("3")
    (Speculation(drafts=4, always=False), None, Speculation(drafts=3, always=True))
    """
    if text in ("auto", "off"):
        return Speculation() if text == "auto" else None
    drafts = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= drafts <= _MOST_DRAFTS:
        raise ValueError(f"speculate is {text!r}, wanted auto, off or a number of tokens from 1 to {_MOST_DRAFTS}.")
    return Speculation(drafts, always=True)


def bias_pairs(text: str | None) -> tuple[tuple[int, float], ...]:
    """The pairs of token id and bias that ``logit_bias`` names.

    Raises:
        ValueError: for text that is no list of ``TOKEN_ID=BIAS``.

    >>> bias_pairs("42=-2.5,7=-inf"), bias_pairs(None)
    (((42, -2.5), (7, -inf)), ())
    """
    pairs = []
    for pair in [] if text is None else text.split(","):
        token, _, bias = pair.partition("=")
        try:
            pairs.append((int(token), float(bias)))
        except ValueError:
            raise ValueError(
                f"logit_bias holds {pair!r}, wanted TOKEN_ID=BIAS; give pairs with commas between them, as "
                "42=-2.5,7=-inf."
            ) from None
    return tuple(pairs)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(DrawSettings, LimitSettings):
    """How completions are sampled to learn from."""

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        above_zero(self, "temperature")
        check_shortest(self.min_new_tokens, self.max_new_tokens)


def check_shortest(shortest: int, longest: int) -> None:
    """Raise where the shortest completion is longer than the longest."""
    if shortest > longest:
        raise ValueError(f"min_new_tokens is {shortest}, wanted at most max_new_tokens, {longest}.")


def check_samples(samples: int, temperature: float) -> None:
    """Raise where several samples would all be the same."""
    if samples > 1 and temperature == 0:
        raise ValueError(f"samples is {samples} at temperature 0, where all are the same; give a temperature above 0.")
