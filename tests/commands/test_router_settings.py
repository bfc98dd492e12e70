"""Coefficients of routers: the model's own as transformers takes it, the given ones, and who refuses them."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import language_learner, scalar_learner
from rlax_llm.commands.preference.settings import RewardSettings
from rlax_llm.commands.shared_settings import OF_ADAPTERS, TrainedModelSettings
from rlax_llm.models.config import Balance, DecoderConfig, Experts
from rlax_llm.models.huggingface_config import Origin
from rlax_llm.models.loading import LanguageModel

DENSE = DecoderConfig(5, 4, 8, 1, 2, 1, 2)
MIXTURE = DecoderConfig(5, 4, 3, 1, 2, 1, 2, experts=Experts(4, 2, 3))
TOLD = {"output_router_logits": True, "router_aux_loss_coef": 0.02, "model_type": "mixtral"}


def learner(config: DecoderConfig, said: dict, made=language_learner, **given):
    settings = TrainedModelSettings(model="mine", remat=False, **OF_ADAPTERS, **given)
    params = {"embed": None, "score": None} if made is scalar_learner else {}
    return made(settings, LanguageModel(config, params, None, Origin(MappingProxyType(said))), 0)


@pytest.mark.parametrize(
    ("said", "given", "wanted"),
    [
        (TOLD, {}, Balance(0.02)),
        (TOLD | {"output_router_logits": False}, {}, Balance()),
        ({}, {}, Balance()),
        (TOLD, {"router_aux_coef": 0.0, "router_z_coef": 0.1}, Balance(0.0, 0.1)),
        ({}, {"router_aux_coef": 0.5}, Balance(0.5)),
    ],
)
def test_a_mixture_is_balanced_as_its_config_says_or_as_is_given(said, given, wanted):
    assert learner(MIXTURE, said, **given).config.experts.balance == wanted
    assert learner(DENSE, said).config == DENSE


@pytest.mark.parametrize("name", ["router_aux_coef", "router_z_coef"])
def test_a_coefficient_without_a_router_to_balance_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} is 0.1 and mine is no mixture of experts; leave it out\.$"):
        learner(DENSE, {}, **{name: 0.1})
    with pytest.raises(ValueError, match=f"{name} is given, and a model of scores balances no router; leave it out"):
        RewardSettings.of(**{name: 0.1})
    assert learner(MIXTURE, TOLD, scalar_learner, **{name: 0.1}).config.experts.balance == Balance()


def test_a_choice_of_experts_is_that_of_a_mixture():
    settings = GrpoSettings.of(router_replay=True)
    with pytest.raises(
        ValueError, match=r"^router_replay is given, and mine is no mixture of experts, .*; leave it out"
    ):
        build_drawing(settings.sampling, settings.rollout, learner(DENSE, {}))
