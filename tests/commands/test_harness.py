"""A model for lm-evaluation-harness: its numbers against literal ones, its class against the documented interface."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.commands.eval.harness import Scorer, harness_model
from rlax_llm.commands.setup import build_model
from rlax_llm.commands.shared_settings import ModelSettings
from rlax_llm.models.decoder import hidden_states, vocabulary_logits


@pytest.fixture(scope="module")
def scorer():
    return Scorer(build_model("harness", ModelSettings(model="char"), 0), batch_size=2)


def literal(scorer, ids):
    """Log-probabilities ``[T − 1, V]`` of what follows each token, without padding and in one row."""
    model, tokens = scorer.model, jnp.array([ids])
    hidden = hidden_states(model.config, model.params, tokens, jnp.ones_like(tokens, bool))
    return np.asarray(jax.nn.log_softmax(vocabulary_logits(model.config, model.params, hidden)))[0, :-1]


def test_a_continuation_has_its_log_likelihood_after_its_context(scorer):
    pairs = [("12+3=", "15"), ("1+", "2"), ("12+3=12+3=12+3=", "15")]
    for (context, continuation), (found, _) in zip(pairs, scorer.continuations(pairs), strict=True):
        ids = scorer.model.tokenizer.encode(context + continuation)
        rows = literal(scorer, ids)
        start = len(context) - 1
        wanted = sum(rows[place, ids[place + 1]] for place in range(start, len(rows)))
        assert found == pytest.approx(wanted, abs=1e-4)


def test_what_the_model_would_write_is_the_greedy_one(scorer):
    written = scorer.answer("1+2=", {"max_gen_toks": 3})
    (_, greedy), (_, other) = scorer.continuations(
        [("1+2=", written), ("1+2=", written[:-1] + "+-"[written[-1] == "+"])]
    )
    assert len(written) == 3 and greedy and not other
    assert scorer.answer("1+2=", {"max_gen_toks": 3, "until": [written[1]]}) == written.split(written[1])[0]
    assert len(scorer.answer("1+2=", {"max_gen_toks": 3, "do_sample": True, "temperature": 1.0, "top_k": 5})) <= 3


def test_nothing_before_a_continuation_is_the_token_that_ends_texts(scorer):
    ((found, _),) = scorer.continuations([("", "12")])
    assert found == pytest.approx(scorer.whole_text("12"), abs=1e-4)


def test_a_long_text_is_taken_in_windows_behind_as_much_context_as_there_is(scorer, monkeypatch):
    """Each token is predicted once; as the harness has it, the last window is a full one."""
    monkeypatch.setattr(scorer, "_longest", 5)
    ids = scorer.model.tokenizer.encode("12+34=46+1")  # windows of 4: 0–3, 4–7 behind one token, 8–9 behind three
    wanted = 0.0
    for before, own in (([scorer.model.tokenizer.eos_ids[0]], ids[:4]), (ids[3:4], ids[4:8]), (ids[5:8], ids[8:])):
        rows = literal(scorer, [*before, *own])
        wanted += sum(rows[len(before) - 1 + place, token] for place, token in enumerate(own))
    assert scorer.whole_text("12+34=46+1") == pytest.approx(wanted, abs=1e-4)


def test_the_class_answers_requests(monkeypatch):
    """``Instance.args`` in, a result for each out: the interface that ``lm_eval.api.model.LM`` documents."""
    module = types.ModuleType("lm_eval.api.model")
    module.LM = type("LM", (), {})
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    model = harness_model("char")
    assert isinstance(model, module.LM) and model.tokenizer_name == "char"
    ((value, greedy),) = model.loglikelihood([SimpleNamespace(args=("1+", "2"))])
    assert value < 0 and isinstance(greedy, bool)
    assert model.loglikelihood_rolling([SimpleNamespace(args=("1+2",))])[0] < 0
    assert len(model.generate_until([SimpleNamespace(args=("1+", {"max_gen_toks": 2, "until": ["="]}))])) == 1


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"lm-eval is not installed .* pip install lm-eval"):
        harness_model("char")
