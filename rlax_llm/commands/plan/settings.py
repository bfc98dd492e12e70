"""The settings of ``rlax-llm plan COMMAND``: the command's own, and the devices to plan for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.fields import Part, option
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.sft.settings import SftSettings

HERE = "here"


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Part):
    """What is planned for."""

    on: str = option(
        HERE,
        "A TPU slice as v5e:2x4, v6e:2x4 or v5p:2x2x1, whose compiler the extra `plan` holds; 'here' is this machine.",
        metavar="CHIP:TOPOLOGY",
    )


class OfPlan:
    """Settings of a command's plan."""

    command: ClassVar[str]

    @classmethod
    def words(cls) -> str:
        """What the command line says for it."""
        return f"plan {cls.command}"


@dataclass(frozen=True, kw_only=True)
class PlannedGrpo(OfPlan, GrpoSettings):
    """Settings of ``rlax-llm plan grpo``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedPpo(OfPlan, PpoSettings):
    """Settings of ``rlax-llm plan ppo``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedSft(OfPlan, SftSettings):
    """Settings of ``rlax-llm plan sft``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedReward(OfPlan, RewardSettings):
    """Settings of ``rlax-llm plan reward``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedDpo(OfPlan, DpoSettings):
    """Settings of ``rlax-llm plan dpo``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedKto(OfPlan, KtoSettings):
    """Settings of ``rlax-llm plan kto``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedOnline(OfPlan, OnlineSettings):
    """Settings of ``rlax-llm plan online``."""

    plan: PlanSettings


@dataclass(frozen=True, kw_only=True)
class PlannedDistill(OfPlan, DistillSettings):
    """Settings of ``rlax-llm plan distill``."""

    plan: PlanSettings

    def __post_init__(self) -> None:
        """Check that there is something to plan."""
        super().__post_init__()
        if self.teacher.write_teacher is not None:
            raise ValueError("write_teacher trains nothing, and a plan is of a training step; leave it out.")


WithRollout = PlannedGrpo | PlannedPpo | PlannedOnline | PlannedDistill
Planned = WithRollout | PlannedSft | PlannedReward | PlannedDpo | PlannedKto
