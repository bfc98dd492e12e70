"""Parts that several commands' settings have: the model, its reference, the optimizer, batches, the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlax_llm.commands.descriptions import (
    BASE_MODEL_HELP,
    KEEP_HELP,
    MAY_CHANGE,
    NORM_HELP,
    PROFILE_HELP,
    TIME_HELP,
    TRACK_HELP,
    TRAINED_MODEL_HELP,
    may_change,
)
from rlax_llm.commands.fields import Part, above_zero, at_least, divides, option, resolved, within
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
EVERY_PROJECTION = "all"
"""The targets of adapters that are all projections of a layer of the model."""
OF_ADAPTERS: dict[str, Any] = {
    "lora_alpha": 0.0,
    "lora_targets": EVERY_PROJECTION,
    "base_dtype": "float32",
    "rslora": False,
    "dora": False,
    "lora_dropout": 0.0,
    "lora_save": None,
    "lora_tokens": None,
}
"""What settings of adapters are where there are none."""
FILE_BLOCKS = "gguf"
"""The format of a base whose matrices stay in the blocks of their file."""
_IN_BLOCKS = ("int8", "nf4", FILE_BLOCKS)


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

    @property
    def blocks(self) -> str | None:
        """The format of its matrices where they are kept in blocks, else None."""
        return None


@dataclass(frozen=True, kw_only=True)
class TrainedModelSettings(ModelSettings):
    """The model that is trained, or its adapters."""

    model: str = option("char", BASE_MODEL_HELP, metavar="MODEL", values=("char", "smollm2"))
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "Number format of the computation, and of a base under adapters; what is trained is float32."
    )
    base_dtype: Literal["float32", "bfloat16", "int8", "nf4", "gguf"] = resolved(
        "Number format of a base under adapters; of its layers' matrices alone int8 with a scale for each output, nf4 "
        "(4 bits), and gguf, the blocks of a GGUF file as they are.",
        "--dtype",
    )
    remat: bool = resolved("Recompute activations in the backward pass: a tenth of the memory.", "on except for 'char'")
    lora_rank: int = option(0, "Train adapters of this rank instead of the weights; 0 trains the weights.", None, "INT")
    lora_alpha: float = resolved("An adapter counts alpha / rank times.", "twice the rank")
    lora_targets: str = option(
        EVERY_PROJECTION,
        "Projections that have an adapter, of q, k, v, o, gate, up and down, as q,v; all are those that the model has.",
        metavar="NAMES",
    )

    rslora: bool = option(False, "An adapter counts alpha / √rank times, so that a high rank learns as fast (rsLoRA).")
    router_aux_coef: float | None = option(
        None,
        "Weight of the loss that shares tokens out over the experts of a mixture: of transformers' one, over all "
        "layers, exact in micro-batches.",
        "the model's router_aux_loss_coef where its config has output_router_logits, else 0",
    )
    router_z_coef: float = option(0.0, "Weight of the mean squared log-normalizer of a mixture's routers (z-loss).")
    dora: bool = option(False, "Adapters turn the columns of a matrix, and learn their lengths apart (DoRA).")
    lora_save: str | None = option(
        None,
        "What is trained whole beside the adapters, PEFT's modules_to_save: of embed, head and norms, as embed,norms. "
        "A tied embedding is the head too.",
        "nothing",
        "NAMES",
    )
    lora_tokens: tuple[int, ...] | None = option(
        None,
        "Tokens whose rows of the embedding are trained beside the adapters, PEFT's trainable_token_indices; of a tied "
        "embedding they are the head's too.",
        "none",
        "TOKEN_ID",
    )
    lora_dropout: float = option(
        0.0,
        "Share of its inputs that an adapter leaves out in a training step; of sft, dpo, kto and reward, whose rows no "
        "sampler of the run drew.",
    )

    @property
    def stored_dtype(self) -> str:
        """The number format of its parameters: float32 where they are trained, else what is computed in.

        >>> settings = {"remat": True, "lora_rank": 8, "lora_alpha": 16.0, "dtype": "bfloat16"}
        >>> [TrainedModelSettings(base_dtype=name, **settings).stored_dtype for name in ("float32", "nf4")]
        ['float32', 'bfloat16']
        """
        return self.base_dtype if self.blocks is None else self.dtype

    @property
    def blocks(self) -> str | None:
        """The format of its matrices where they are kept in blocks, else None.

        >>> TrainedModelSettings(remat=True, lora_rank=8, lora_alpha=16.0, base_dtype="nf4").blocks
        'nf4'
        """
        return self.base_dtype if self.base_dtype in _IN_BLOCKS else None

    @property
    def saved(self) -> tuple[str, ...]:
        """The names of what is trained whole beside the adapters.

        >>> settings = {"remat": True, "lora_rank": 8, "lora_alpha": 16.0, "base_dtype": "nf4"}
        >>> TrainedModelSettings(lora_save="embed, norms", **settings).saved
        ('embed', 'norms')
        """
        return () if self.lora_save is None else tuple(name.strip() for name in self.lora_save.split(","))

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 0, "lora_rank", "router_aux_coef", "router_z_coef")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}, wanted at least 0 and below 1.")
        if self.lora_tokens and "embed" in self.saved:
            raise ValueError("lora_tokens is given with lora_save embed, which trains every row; leave one out.")
        if self.lora_rank:
            above_zero(self, "lora_alpha")
            return
        for name, unused in OF_ADAPTERS.items():
            if getattr(self, name) != unused:
                raise ValueError(f"{name} is given without lora_rank; give both.")


def check_draws_all(model: TrainedModelSettings) -> None:
    """Raise for a dropout where a policy learns from its own completions.

    Their sampler drops nothing, so a ratio to it would be noise before anything is learned: the clipping, the KL and
    the corrections of the recipes would act on the masks and not on the policy.

    Args:
        model: the settings of the policy.

    Raises:
        ValueError: naming what to do in its place.
    """
    if model.lora_dropout:
        raise ValueError(
            f"lora_dropout is {model.lora_dropout}, and completions are drawn without it, so that ratios to what they "
            "were drawn with would be noise; leave it out, and take a lower lora_rank or learning_rate against "
            "overfitting."
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings(Part):
    """Whether the reference stays what it is."""

    reference_every: int = option(0, "Steps after which the reference moves to the policy; 0 keeps the first.")
    reference_mix: float = option(
        1.0, "Share of the policy that the reference takes on when it moves (TR-DPO); 1 is a copy of the policy."
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "reference_every")
        above_zero(self, "reference_mix")
        within(self, 0, 1, "reference_mix")
        if self.reference_mix != 1 and not self.reference_every:
            raise ValueError("reference_mix is given without reference_every; give both.")


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
class AveragedOptimizerSettings(OptimizerSettings):
    """How parameters move, and whether what is measured and written is an average of theirs."""

    average: Literal["none", "bema"] = option(
        "none",
        "What is measured on held-out rows and written: the last weights, or their bias-corrected moving average "
        "(BEMA), which remembers two copies of them.",
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
    def drawn_size(self) -> int:
        """Completions of a prompt that are drawn."""
        return self.group_size

    @property
    def rows_in_flight(self) -> int:
        """Completions that are drawn beside one another, at most."""
        return self.rows

    @property
    def formats(self) -> dict[str, str | None]:
        """The number formats that completions to learn from are drawn in, where they are not the learner's."""
        return {}

    @property
    def routed(self) -> bool:
        """Whether the learner sends tokens to the experts that the sampler chose."""
        return False


@dataclass(frozen=True, kw_only=True)
class ReplayedRolloutSettings(RolloutSettings):
    """The completions of a step, whose ratios are to the policy that drew them."""

    router_replay: bool = option(
        False,
        "The learner sends each token of a mixture to the experts that the sampler sent it to (R3), so that ratios are "
        "those of one network and the router learns of the experts that were taken; the reference goes by its own.",
    )

    @property
    def routed(self) -> bool:
        """Whether the learner sends tokens to the experts that the sampler chose."""
        return self.router_replay


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
