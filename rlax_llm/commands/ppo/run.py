"""The command ``ppo`` as a function of its settings."""

from __future__ import annotations

import dataclasses

import jax

from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, language_learner, scalar_learner
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.ppo.phase import Models, PpoPhase
from rlax_llm.commands.ppo.settings import PpoModelSettings, PpoSettings
from rlax_llm.commands.setup import build_model, scalar_judge
from rlax_llm.commands.shared_settings import OF_ADAPTERS
from rlax_llm.commands.stepping import build_step_judge
from rlax_llm.commands.tasks import judged_task
from rlax_llm.commands.warm_start import build_warm_start
from rlax_llm.core.mesh import copied
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.models import decoder
from rlax_llm.models.loading import LanguageModel


@on_machine
def run_ppo(settings: PpoSettings) -> RunDirectory:
    """Train policy and value model by PPO against a reward model, reward functions or both; leave a run directory.

    Args:
        settings: of the command.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    seed = settings.run.seed
    model = build_model("ppo", settings.model, seed, settings.sampling)
    models = build_models(settings.model, settings.task.reward_model, seed, model)
    models = models._replace(steps=build_step_judge(settings.task, settings.model, model.tokenizer))
    task = judged_task(settings.task, settings.sampling, seed, model)
    phase = PpoPhase(settings, models, task)
    warm_start = build_warm_start(settings, models.policy, task)
    return run_language(settings, phase, models.policy.params, warm_start, settings.objective.recipe)


def build_models(settings: PpoModelSettings, reward_model: str | None, seed: int, model: LanguageModel) -> Models:
    """Policy, value model and reward model.

    Args:
        settings: of the policy, and what the value model starts from.
        reward_model: its directory, or None.
        seed: draws what is new.
        model: that the policy starts from.

    Raises:
        ValueError: for a reward or value model of another vocabulary.
    """
    reward = None if reward_model is None else scalar_judge(reward_model, model, settings)
    policy = language_learner(settings, model, seed)
    value = value_learner(settings, seed + 1, _origin(settings, seed + 1, model, (reward_model, reward)))
    return Models(policy, value, reward, settings.value_model == "policy")


def _origin(
    settings: PpoModelSettings, seed: int, model: LanguageModel, reward: tuple[str | None, LanguageModel | None]
) -> tuple[str, LanguageModel]:
    """What the value model starts from, with its name."""
    name, reward_model = reward
    if settings.value_model == "scratch":
        return "scratch", model._replace(params=decoder.init_decoder(model.config, jax.random.key(seed)))
    if settings.value_model == "policy":
        return settings.model, model
    if settings.value_model == "reward" and name is not None and reward_model is not None:
        return name, reward_model
    return settings.value_model, scalar_judge(settings.value_model, model, settings)


def value_learner(settings: PpoModelSettings, seed: int, origin: tuple[str, LanguageModel]) -> Learner:
    """The value model, and what its adapters belong to.

    Args:
        settings: of the policy.
        seed: draws its score and its adapters.
        origin: what it starts from, with its name.
    """
    name, start = origin
    if name == "scratch":  # adapters belong to a model that can be read again
        settings = dataclasses.replace(settings, lora_rank=0, **OF_ADAPTERS)
    learner = scalar_learner(settings, start, seed, jax.nn.initializers.zeros)
    # Training gives its arrays away: the value model's are its own.
    return learner._replace(name=name, params=copied(learner.params))
