"""The command ``ppo`` as a function of its settings."""

from __future__ import annotations

import jax

from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, language_learner, scalar_learner
from rlax_llm.commands.parts import TrainedModelSettings
from rlax_llm.commands.ppo.phase import Models, PpoPhase
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.setup import build_model, scalar_judge
from rlax_llm.commands.tasks import judged_task
from rlax_llm.commands.warm_start import build_warm_start
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.models import decoder
from rlax_llm.models.loading import LanguageModel


def run_ppo(config: PpoSettings) -> RunDirectory:
    """Train policy and value model by PPO against a reward model, reward functions or both; leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    models = build_models(config)
    task = judged_task(config, models.policy)
    phase = PpoPhase(config, models, task)
    return run_language(config, phase, models.policy.params, build_warm_start(config, models.policy, task))


def build_models(config: PpoSettings) -> Models:
    """Policy, value model and reward model of the settings.

    Raises:
        ValueError: for a reward or value model of another vocabulary.
    """
    model = build_model(config)
    reward = None if config.reward_model is None else scalar_judge(config.reward_model, model, config.model)
    policy = language_learner(config.model, model, config.run.seed)
    return Models(policy, _value(config, model, reward), reward, value_origin(config) == "policy")


def value_origin(config: PpoSettings) -> str:
    """What the value model starts from."""
    return config.value_model or ("policy" if config.reward_model is None else "reward")


def _value(config: PpoSettings, model: LanguageModel, reward: LanguageModel | None) -> Learner:
    """The value model, and what its adapters belong to."""
    origin = value_origin(config)
    if origin == "scratch":
        fresh = decoder.init_decoder(model.config, jax.random.key(config.seed + 1))
        name, start = "scratch", model._replace(params=fresh)
        config = config.changed(lora_rank=0, lora_alpha=0.0, lora_targets=TrainedModelSettings.lora_targets)
    elif origin == "policy":
        name, start = config.model.model, model
    elif reward is not None and origin == "reward":
        name, start = str(config.reward_model), reward
    else:
        name, start = origin, scalar_judge(origin, model, config.model)
    learner = scalar_learner(config.model, start, config.run.seed + 1, jax.nn.initializers.zeros)
    # Training gives its arrays away: the value model's are its own.
    return learner._replace(name=name, params=jax.tree.map(lambda x: x.copy(), learner.params))
