"""Groups of which a part is learned from."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import Scored
from rlax_llm.credit.filtering import keep_best, right_or_wrong, shortness, token_efficiency
from rlax_llm.credit.groups import centered, per_group, z_score

pytestmark = pytest.mark.usefixtures("float64")

P, G, T = 3, 6, 9
METRICS = {"shortness": shortness, "efficiency": token_efficiency}


def prepared(seed: int = 0) -> Scored:
    random = np.random.default_rng(seed)
    lengths = np.stack([random.permutation(T)[:G] + 1 for _ in range(P)])
    return Scored(jnp.asarray(random.normal(size=(P, G))), None, jnp.asarray(np.arange(T) < lengths[..., None]))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_the_best_are_learned_from_as_a_group_of_their_own(name, share):
    scored = prepared()
    scores, lengths = np.array(scored.scores), np.asarray(scored.mask.sum(-1))
    scores[1, 3] = np.nan
    found = keep_best(per_group(z_score), METRICS[name], share)(scored._replace(scores=jnp.asarray(scores)))
    for p in range(P):
        metric = -lengths[p] if name == "shortness" else scores[p] / lengths[p]
        order = sorted(range(G), key=lambda g, m=metric, p=p: np.inf if np.isnan(scores[p, g]) else -m[g])
        kept = order[: max(2, int(share * G))]
        values = [scores[p, g] for g in kept]
        for g in range(G):
            wanted = (scores[p, g] - np.mean(values)) / (np.std(values, ddof=1) + 1e-4) if g in kept else 0.0
            assert float(found[p, g]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_with_all_kept_it_is_the_advantage_itself(name):
    scored = prepared(1)
    np.testing.assert_array_equal(
        keep_best(per_group(centered), METRICS[name], 1.0)(scored), per_group(centered)(scored)
    )


def test_labels_are_the_signs_around_the_threshold():
    scored = prepared(2)
    np.testing.assert_array_equal(right_or_wrong(0.3)(scored), np.where(np.asarray(scored.scores) > 0.3, 1.0, -1.0))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="keep_best: "):
        keep_best(per_group(centered), shortness, share)
