"""Named ways to learn from a teacher, each by its difference from another."""

from __future__ import annotations

from functools import partial

import jax

from rlax_llm.core import divergences
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.divergences import jensen_shannon
from rlax_llm.credit.groups import per_group, z_score
from rlax_llm.credit.teachers import (
    mean_return_after,
    no_credit,
    prefix_weighted,
    teacher_log_ratio,
    with_teacher,
)
from rlax_llm.policy.distillation import (
    Distillation,
    Prompting,
    Write,
    after_example,
    demonstration,
    in_words,
    joined,
    own_feedback,
    solved_attempt,
    written,
)
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.trust_regions import cispo, clip, score_function, unclipped
from rlax_llm.policy.weightings import token_mean


@check_arguments
def gkd(beta: float | jax.Array = 0.5, on_policy: float = 0.5) -> Distillation:
    """Generalized knowledge distillation (arXiv 2306.13649): a divergence at every token, some of them the student's.

    Args:
        beta: of the Jensen-Shannon divergence; 0 is the forward KL, 1 the reverse one.
        on_policy: share of the steps whose completions the student draws.

    >>> gkd().on_policy
    0.5
    """
    silent = Objective(no_credit, token_ratio, score_function, token_mean)
    return Distillation(silent, jensen_shannon(beta), on_policy)


@check_arguments
def forward_kl() -> Distillation:
    """Distillation on given completions (arXiv 1503.02531, for language models 1606.07947): KL(teacher‖student).

    >>> forward_kl().on_policy
    0.0
    """
    return gkd(beta=0.0, on_policy=0.0)


@check_arguments
def reverse_kl() -> Distillation:
    """The same with KL(student‖teacher).

    >>> reverse_kl().divergence.__name__
    'reverse_kl'
    """
    return forward_kl()._replace(divergence=divergences.reverse_kl)


@check_arguments
def opd() -> Distillation:
    """On-policy distillation: the reverse KL of the student's own tokens as their advantage, with importance weights.

    No vocabulary is read: one log-probability of the teacher for each token.

    >>> opd().divergence is None
    True
    """
    return Distillation(Objective(teacher_log_ratio, token_ratio, unclipped, token_mean))


@check_arguments
def iw_opd(gamma: float | jax.Array = 0.5) -> Distillation:
    """IW-OPD (arXiv 2606.22600): ``opd`` whose tokens count the less, the further the prefix has left the teacher.

    Args:
        gamma: how much more the first token counts than one behind all of the gap to the teacher.

    >>> iw_opd().objective.trust_region is opd().objective.trust_region
    True
    """
    return Distillation(opd().objective._replace(advantage=prefix_weighted(gamma)))


@check_arguments
def opd_grpo(coef: float | jax.Array = 1.0, eps: float = 0.2) -> Distillation:
    """``opd`` beside GRPO's reward: z-scores of the group, and PPO's clip.

    Args:
        coef: weight of the teacher's log-ratio, standard deviations of the score per nat.
        eps: half-width of the clip.

    >>> opd_grpo().on_policy
    1.0
    """
    mixed = with_teacher(per_group(z_score), coef)
    return Distillation(opd().objective._replace(advantage=mixed, trust_region=clip(eps)))


@check_arguments
def minillm() -> Distillation:
    """MiniLLM (arXiv 2306.08543): the reverse KL of whole completions by policy gradient.

    A token's own part is the full divergence; the tokens after it are its length-normalized return. All completions are
    the student's own: the paper's mixed sampling and its likelihood of a corpus are left out.

    >>> minillm().objective.advantage.__name__
    'mean_return_after'
    """
    objective = opd().objective._replace(advantage=mean_return_after, trust_region=clip(0.2))
    return Distillation(objective, divergences.reverse_kl)


@check_arguments
def sdft(follows: float = 0.05, separator: str = "\n", teacher_prompt: str | None = None) -> Distillation:
    """Self-distillation (arXiv 2601.19897): the teacher is the student that sees an answer, on the student's tokens.

    Args:
        follows: share of the student that the teacher takes on after each step.
        separator: between the answer that it sees and the prompt.
        teacher_prompt: what it is asked, as ``written`` takes it; None is ``after_example``.

    >>> sdft().follows
    0.05
    """
    own = gkd(beta=1.0, on_policy=1.0)
    asked = _asked(separator, teacher_prompt)
    return own._replace(follows=follows, prompting=Prompting(demonstration, asked))


def _asked(separator: str, template: str | None) -> Write:
    return partial(after_example, separator=separator) if template is None else written(template)


@check_arguments
def opsd(separator: str = "\n", teacher_prompt: str | None = None) -> Distillation:
    """On-policy self-distillation (arXiv 2601.18734): ``sdft`` whose teacher stays what the student began as.

    Args:
        separator: between the answer that the teacher sees and the prompt.
        teacher_prompt: as in ``sdft``.

    >>> opsd().follows
    0.0
    """
    return sdft(0.0, separator, teacher_prompt)


@check_arguments
def sdpo(
    reward_coef: float = 0.0,
    follows: float = 0.05,
    separator: str = "\n",
    teacher_prompt: str | None = None,
    attempt_template: str = "{hint}",
    feedback_template: str | None = None,
) -> Distillation:
    """SDPO (arXiv 2601.20802): the teacher sees a right attempt and feedback; its log-ratio is the advantage.

    The attempt is another one at the same prompt, the feedback that of the attempt at hand. Where there is neither,
    nothing is taught; without feedback it is distillation from right attempts alone.

    Args:
        reward_coef: weight of GRPO's advantage beside it; 0 leaves it out.
        follows: share of the student that the teacher takes on after each step.
        separator: between what it sees and the prompt, and before feedback.
        teacher_prompt: as in ``sdft``.
        attempt_template: how a right attempt is shown, as ``in_words`` takes it.
        feedback_template: how feedback is shown; None is behind the separator.

    >>> sdpo().follows
    0.05
    """
    advantage = with_teacher(_scaled(reward_coef)) if reward_coef else teacher_log_ratio
    objective = opd().objective._replace(advantage=advantage, trust_region=cispo(ceiling=2.0))
    told = separator + "{hint}" if feedback_template is None else feedback_template
    shown = joined(in_words(solved_attempt, attempt_template), in_words(own_feedback, told))
    return Distillation(objective, follows=follows, prompting=Prompting(shown, _asked(separator, teacher_prompt)))


def _scaled(coef: float):
    scores = per_group(z_score)
    return lambda scored: coef * scores(scored)
