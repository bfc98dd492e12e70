"""Parts that several commands' settings have: the model, its task, sampling, the optimizer, batches, the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rlax_llm.commands.descriptions import (
    BASE_MODEL_HELP,
    DATA_HELP,
    INTEGERS_HELP,
    KEEP_HELP,
    MAY_CHANGE,
    NORM_HELP,
    PROFILE_HELP,
    REWARD_HELP,
    REWARDS,
    SPLIT_HELP,
    TASK_HELP,
    TASKS,
    TIME_HELP,
    TRACK_HELP,
    TRAINED_MODEL_HELP,
    may_change,
)
from rlax_llm.commands.fields import Part, above_zero, at_least, check_countable, divides, option, resolved, within
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.speculation import Speculation
from rlax_llm.host.tracking.registry import NONE, TRACKERS, tracker_names

CHOSEN = "chosen for the model"
SEED_HELP = "Everything random follows from it."
CONFIG_HELP = (
    "YAML file of settings, keys as the flags with underscores; flags given with it win over it. It is code, as it "
    "may name a reward and an optimizer, which are imported."
)
_OUT_HELP = "Directory of the run: config.yaml, metrics.jsonl, completions.jsonl, curves.png, summary.json, model/."
_RESUME_HELP = (
    f"Go on with an interrupted run from its directory, with its settings; {may_change(MAY_CHANGE)}. The directory is "
    "code: what its config.yaml names as reward and optimizer is imported."
)
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd")
MOMENTS = ("adamw", "lion", "muon")
"""Those that remember moments of each parameter."""
_BEST_HELP = (
    "Metric that the best step is chosen by, as held_out_accuracy: its checkpoint is kept too, and model/ is its. "
    "The highest is best, of a loss the lowest, or as min:NAME and max:NAME say."
)
_MOST_DRAFTS = 64
_COLDEST = 1e-6  # below it, logits divided by a temperature leave float32
_PROJECTIONS = "q,k,v,o,gate,up,down"


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Part):
    """A model that is only read."""

    model: str = option("smollm2", TRAINED_MODEL_HELP, metavar="MODEL", values=("smollm2",))
    dtype: Literal["float32", "bfloat16"] = option("float32", "Number format of the parameters and of the computation.")
    attention: Literal["auto", "blockwise", "splash", "cudnn"] = option(
        "auto",
        "What computes attention: plain XLA in blocks, a kernel of TPUs (splash), or one of NVIDIA's GPUs (cudnn, of "
        "bfloat16). auto takes the machine's kernel where rows are long and it can serve. The numbers are the same.",
    )

    @property
    def stored_dtype(self) -> str:
        """The number format of its parameters."""
        return self.dtype


@dataclass(frozen=True, kw_only=True)
class TrainedModelSettings(ModelSettings):
    """The model that is trained, or its adapters."""

    model: str = option("char", BASE_MODEL_HELP, metavar="MODEL", values=("char", "smollm2"))
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Number format of the computation, and of a base under adapters; what is trained is float32."
    )
    remat: bool = resolved("Recompute activations in the backward pass: a tenth of the memory.", "on except for 'char'")
    lora_rank: int = option(0, "Train adapters of this rank instead of the weights; 0 trains the weights.", None, "INT")
    lora_alpha: float = resolved("An adapter counts alpha / rank times.", "twice the rank")
    lora_targets: str = option(_PROJECTIONS, "Projections that have an adapter, as q,v.", metavar="NAMES")

    @property
    def stored_dtype(self) -> str:
        """The number format of its parameters: float32 where they are trained, else what is computed in.

        >>> model = TrainedModelSettings(remat=True, lora_rank=8, lora_alpha=16.0, dtype="bfloat16")
        >>> model.stored_dtype, TrainedModelSettings(remat=True, lora_alpha=0.0, dtype="bfloat16").stored_dtype
        ('bfloat16', 'float32')
        """
        return self.dtype if self.lora_rank else "float32"

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "lora_rank")
        if self.lora_rank:
            above_zero(self, "lora_alpha")
            return
        for name, unused in (("lora_alpha", 0.0), ("lora_targets", _PROJECTIONS)):
            if getattr(self, name) != unused:
                raise ValueError(f"{name} is given without lora_rank; give both.")


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings(Part):
    """Data of one's own, and what is measured on."""

    data: tuple[str, ...] | None = option(None, DATA_HELP, "the task", "FILE.jsonl")
    split: str = option("train", SPLIT_HELP)
    eval_data: str | None = option(
        None, "File of held-out rows, of the form of --data.", "rows of the data itself", "DATA"
    )
    eval_split: str | None = option(
        None,
        "Split that held-out rows are taken from: of --eval-data, or else of the data itself.",
        "--split",
        "SPLIT",
    )
    eval_size: int | None = resolved(
        "Held-out prompts per evaluation; 0 holds out none.",
        "a tenth of --data, at most 128; all of --eval-data or --eval-split; of a task 256, or 128 for a large model",
    )

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "eval_size")
        given = next((name for name in ("eval_data", "eval_split") if getattr(self, name) is not None), None)
        if given is None:
            if self.eval_size is None and self.data is None:
                raise ValueError("eval_size is None, wanted a whole number, as there is no data.")
            return
        if self.data is None:
            raise ValueError(f"{given} is given without data; give both.")
        if self.eval_size == 0:
            raise ValueError(f"{given} is given and eval_size is 0; leave one out.")
        if self.eval_data is None and self.eval_split == self.split:
            raise ValueError(f"eval_split is {self.split!r}, the split that is learned from; give another.")

    @property
    def split_size(self) -> int:
        """Rows of a task that are held out."""
        return 0 if self.eval_size is None else self.eval_size

    @property
    def source(self) -> str:
        """What is learned from, in a word: files, or the task that is built in."""
        return ", ".join(self.data or ["arithmetic"])


@dataclass(frozen=True, kw_only=True)
class BuiltInSettings(Part):
    """A task that comes with its prompts."""

    task: str = option("arithmetic", TASK_HELP, metavar="TASK", values=TASKS)


@dataclass(frozen=True, kw_only=True)
class TaskSettings(HeldOutSettings, BuiltInSettings):
    """Prompts and what tells their completions apart: rewards, a reward model or both."""

    data: tuple[str, ...] | None = option(None, DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, REWARD_HELP, "the task's own, none with a reward model", "REWARD", values=REWARDS)
    integer_answers: bool = option(False, INTEGERS_HELP)
    reward_model: str | None = option(
        None,
        "Reward model whose score is added: RUN_DIR/model of a reward run (or its model_adapter), or another sequence "
        "classifier.",
        "none",
        "DIR",
    )

    def check(self) -> None:
        """Check that data has a reward."""
        super().check()
        if self.data is not None and self.reward is None and self.reward_model is None:
            raise ValueError("data is given without reward or reward_model, and a file has none of its own; give one.")
        check_integer_answers(self.integer_answers, self.data)

    @property
    def source(self) -> str:
        """What is learned from, in a word: files or a task."""
        return ", ".join(self.data or [self.task])


def check_integer_answers(integer_answers: bool, data: object) -> None:
    """Raise where integers are wanted of answers that are not there."""
    if integer_answers and data is None:
        raise ValueError("integer_answers is given without data, whose answers it reads; give both.")


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


_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
_ESCAPED = re.compile(r"\\([nt\\])")


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
        return tuple(_ESCAPED.sub(lambda found: _ESCAPES[found[1]], text) for text in self.stop or ())

    @property
    def speculation(self) -> Speculation | None:
        """How tokens are guessed."""
        return speculation_of(self.speculate)

    @property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """The pairs of token id and bias."""
        return bias_pairs(self.logit_bias)


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


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Part):
    """How parameters move."""

    optimizer: str = option(
        "adamw",
        "adamw; adafactor (a row and a column of each matrix's second moment); lion (one moment; wants a tenth of the "
        "learning rate); muon (matrices of the layers, adamw for the rest); sgd (no memory); or MODULE:FUNCTION or "
        "FILE.py:FUNCTION that returns an Optax transformation given a schedule.",
        metavar="OPTIMIZER",
        values=OPTIMIZERS,
    )
    moments_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Number format that adamw, lion and muon keep their moments in; they compute in float32."
    )
    learning_rate: float = resolved("Peak learning rate.", CHOSEN)
    schedule: Literal["constant", "cosine", "linear"] = option(
        "linear", "Learning rate after the warm-up; cosine and linear end at 0."
    )
    warmup_steps: int = option(0, "Steps over which the learning rate rises from 0.")
    weight_decay: float = option(0.0, "Decoupled weight decay, times the learning rate.")
    max_grad_norm: float = option(1.0, NORM_HELP, infinite=True)

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "warmup_steps", "weight_decay", "max_grad_norm")
        above_zero(self, "learning_rate")
        if self.moments_dtype != "float32" and self.optimizer not in MOMENTS:
            raise ValueError(
                f"moments_dtype is {self.moments_dtype} with optimizer {self.optimizer}, wanted one of "
                f"{', '.join(MOMENTS)}; leave moments_dtype out, or take one of them."
            )


@dataclass(frozen=True, kw_only=True)
class SeedSettings(Part):
    """Where randomness and further settings come from."""

    seed: int = option(0, SEED_HELP)
    config: str | None = option(None, CONFIG_HELP, "no file", "FILE.yaml")


@dataclass(frozen=True, kw_only=True)
class RunSettings(Part):
    """How long a run is, and what is measured and kept on the way."""

    steps: int = resolved("Training steps.", CHOSEN)
    seed: int = option(0, SEED_HELP)
    eval_every: int = resolved("Steps between held-out evaluations; 0 is only first and last.", CHOSEN)
    save_every: int = option(50, "Steps between checkpoints; 0 is only at the end or at Ctrl-C.")
    keep_checkpoints: int = option(2, KEEP_HELP)
    best: str | None = option(None, _BEST_HELP, "none, model/ is the last step's", "METRIC")
    max_hours: float | None = option(None, TIME_HELP, "no limit")
    profile: int | None = option(None, PROFILE_HELP, "none", "STEP")
    track: tuple[str, ...] | None = option(None, TRACK_HELP, "none", "TRACKER", values=(*TRACKERS, NONE))
    out: str | None = option(None, _OUT_HELP, "runs/COMMAND-DATE-TIME", "DIR")
    resume: str | None = option(None, _RESUME_HELP, "a new run", "RUN_DIR")
    config: str | None = option(None, CONFIG_HELP, "no file", "FILE.yaml")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "steps", "keep_checkpoints", "profile")
        at_least(self, 0, "eval_every", "save_every")
        above_zero(self, "max_hours")
        tracker_names(self.track)
        if self.profile is not None and self.profile > self.steps:
            raise ValueError(f"profile is {self.profile}, wanted a step of the run, at most {self.steps}.")


@dataclass(frozen=True, kw_only=True)
class WarmStartedRunSettings(RunSettings):
    """A run that may begin with supervised steps."""

    warm_start_steps: int = resolved(
        "Supervised steps before, on the task's own answers.", "chosen for 'char', 0 for other models"
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "warm_start_steps")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Part):
    """The completions of a step."""

    batch_size: int = resolved("Prompts per step.", CHOSEN)
    group_size: int = resolved("Completions per prompt.", CHOSEN)
    slots: int | None = option(
        None,
        "Completions drawn at a time: others enter where some have ended, so caches take less memory. They are the "
        "same completions.",
        "all of a step",
    )

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "batch_size", "group_size", "slots")
        if self.slots is not None and self.slots < self.group_size:
            raise ValueError(
                f"slots is {self.slots}, wanted at least group_size, {self.group_size}: a group enters together."
            )

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.batch_size * self.group_size

    @property
    def rows_in_flight(self) -> int:
        """Completions that are drawn beside one another, at most."""
        return self.rows

    @property
    def formats(self) -> dict[str, str | None]:
        """The number formats that completions to learn from are drawn in, where they are not the learner's."""
        return {}


@dataclass(frozen=True, kw_only=True)
class EpochSettings(Part):
    """How often a rollout is learned from, and in which shares."""

    epochs: int = option(1, "Times that each completion is learned from.")
    minibatches: int = option(1, "Optimizer steps in an epoch, each on a share of the prompts.")
    micro_batch_size: int | None = option(
        None,
        "Completions per micro-batch: less memory, same gradient; a part of a group computes its prompt anew.",
        "a minibatch at once",
    )

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "epochs", "minibatches", "micro_batch_size")

    def check_shares(self, rollout: RolloutSettings) -> None:
        """Raise unless the shares are whole.

        Args:
            rollout: the completions of a step.
        """
        divides("minibatches", self.minibatches, "batch_size", rollout.batch_size)
        size, rows = self.micro_batch_size, rollout.rows // self.minibatches
        if size is not None and rows % size:
            raise ValueError(f"micro_batch_size is {size}, wanted a divisor of the {rows} completions of a minibatch.")

    def micro_batches(self, rollout: RolloutSettings) -> int:
        """Parts that a minibatch is taken in.

        Args:
            rollout: the completions of a step.
        """
        return rollout.rows // self.minibatches // self.rows_together(rollout)

    def rows_together(self, rollout: RolloutSettings) -> int:
        """Completions of a micro-batch.

        Args:
            rollout: the completions of a step.
        """
        return rollout.rows // self.minibatches if self.micro_batch_size is None else self.micro_batch_size

    @property
    def updates(self) -> int:
        """Optimizer steps of a step."""
        return self.epochs * self.minibatches
