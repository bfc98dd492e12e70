"""A way to learn from a teacher is a point in a product, as a policy objective is: what is paid, whose tokens, which
teacher, and what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.divergences import Divergence
from rlax_llm.core.types import PolicyBatch, Scored
from rlax_llm.core.wording import check_template, filled
from rlax_llm.credit.teachers import teacher_log_ratio
from rlax_llm.policy.coupled import Coupled
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.terms import Term
from rlax_llm.policy.trust_regions import TrustRegion


class Attempt(NamedTuple):
    """A completion and what it was drawn for.

    Attributes:
        columns: of its row, by name.
        text: what it says.
        solved: whether it is right; None where nobody says so.
        feedback: what a reward said of it; None where it said nothing.
    """

    columns: dict[str, Any]
    text: str
    solved: bool | None = None
    feedback: str | None = None


Hints = Callable[[Sequence[Attempt]], list[str | None]]
Write = Callable[[str, str], str]


class Prompting(NamedTuple):
    """What a teacher reads that the student does not.

    Attributes:
        hints: of the attempts of one prompt, a text for each; or None where there is none, and nothing is taught.
        write: ``(prompt, hint) → text``, what the teacher is asked.
    """

    hints: Hints
    write: Write


class Distillation(NamedTuple):
    """``_replace`` states how one way of distillation differs from another.

    Attributes:
        objective: what the student's own tokens are paid; its ``advantage`` reads the teacher's log-probabilities as
            ``ref_log_probs``, and a KL term is one towards the teacher.
        divergence: of every token over the whole vocabulary, a term of the loss; None for none.
        on_policy: share λ of the steps whose completions the student draws; in the others they are given.
        follows: share of the student that the teacher takes on after each step, which begins as the student does: 0 is
            the student's start, 1 the student itself. None where the teacher is a model of its own.
        prompting: what the teacher reads; None where it reads what the student does.
    """

    objective: Objective
    divergence: Divergence | None = None
    on_policy: float = 1.0
    follows: float | None = None
    prompting: Prompting | None = None

    @property
    def loss(self) -> Objective:
        """The objective with the divergence among its terms."""
        if self.divergence is None:
            return self.objective
        term = Term("divergence", from_teacher, 1.0, weighting=self.objective.weighting)
        return self.objective._replace(terms=(*self.objective.terms, term))

    @property
    def reads_log_probs(self) -> bool:
        """Whether the objective reads the teacher's log-probabilities of the tokens."""
        scores, tokens = jnp.zeros((1, 2)), jnp.zeros((1, 2, 1))
        try:
            jax.eval_shape(self.objective.advantage, Scored(scores, tokens, tokens > 0))
        except checks.NoReference:
            return True
        return self.objective.kl is not None or any(_reads_teacher(term) for term in self.objective.terms)


def _reads_teacher(term: Term) -> bool:
    one = jnp.ones((1, 1))
    batch = PolicyBatch(one, one, one, one > 0, given=one < 0, scores=one, entropy=one, divergence=one)
    try:
        jax.eval_shape(term.loss, batch._replace(staleness=0 * one))
    except checks.NoReference:
        return True
    return False


@check_arguments
def from_teacher(batch: PolicyBatch) -> jax.Array:
    """The divergence of student and teacher at a token, nats: a term's loss.

    Args:
        batch: its ``divergence`` is read.

    Raises:
        ValueError: where the batch has none.

    >>> one = jnp.ones((1, 1))
    >>> from_teacher(PolicyBatch(one, one, one, one > 0, divergence=2 * one)).tolist()
    [[2.0]]
    """
    if batch.divergence is None:
        raise ValueError(
            "policy_loss: a term reads a divergence from a teacher, got a batch without one; take a log_probs that "
            "gives a third array, as distilled_log_probs makes."
        )
    return batch.divergence


@check_arguments
def paid_by_teacher(region: TrustRegion) -> Callable[[PolicyBatch], jax.Array]:
    """A trust region on ``teacher_log_ratio``, in the place of the advantages: a term's loss.

    Limiting case: 0 where student and teacher agree.

    Args:
        region: ``(log_ratio, advantages) → loss``, elementwise.

    Raises:
        ValueError: by the function, where the batch has no log-probabilities of a teacher.

    >>> from rlax_llm.policy.trust_regions import unclipped
    >>> one = jnp.ones((1, 1))
    >>> paid_by_teacher(unclipped)(PolicyBatch(-one, -one, one, one > 0, ref_log_probs=-3 * one)).tolist()
    [[2.0]]
    """

    def loss(batch: PolicyBatch) -> jax.Array:
        if batch.ref_log_probs is None:
            raise checks.NoReference("policy_loss: a term reads ref_log_probs, got None; give the teacher's.")
        return region(batch.log_probs - batch.old_log_probs, batch.ref_log_probs - batch.old_log_probs)

    return loss


@check_arguments
def blended(policy: Objective, distilled: Objective, weight: float) -> Objective:
    """``(1 − w) · policy loss + w · distillation loss``, each with tokens' weights of its own (TRL's SDPO).

    Limiting cases: the loss of ``policy`` for w = 0, that of ``distilled`` for w = 1.

    Args:
        policy: what scores pay.
        distilled: what the teacher pays: its advantage is ``teacher_log_ratio``, its ratio that of tokens.
        weight: w, from 0 to 1.

    Raises:
        ValueError: for a weight out of its range, or a distillation that is paid otherwise.

    >>> from rlax_llm.recipes import distillation, group
    >>> found = blended(group.dapo(), distillation.opd().objective, 0.25)
    >>> found.terms[0].coef, found.weighting(jnp.ones((1, 3), bool)).tolist()
    (0.25, [[0.25, 0.25, 0.25]])
    """
    checks.not_negative("blended", weight=weight, **{"1 − weight": 1 - weight})
    region, more = distilled.trust_region, distilled.terms or distilled.kl is not None
    if distilled.advantage is not teacher_log_ratio or isinstance(region, Coupled) or more:
        raise ValueError(
            "blended: the distillation pays more than teacher_log_ratio, or otherwise; give one that is a trust region "
            "on it, such as opd's or sdpo's objective."
        )
    paid = Term("distillation_loss", paid_by_teacher(region), weight, weighting=distilled.weighting)
    rest = 1 - weight
    terms = tuple(term._replace(coef=rest * term.coef) for term in policy.terms)
    return policy._replace(weighting=lambda mask: rest * policy.weighting(mask), terms=(*terms, paid))


@check_arguments
def demonstration(attempts: Sequence[Attempt]) -> list[str | None]:
    """The row's own right answer: its ``hint``, ``completion`` or ``answer``, the first that it has.

    Args:
        attempts: of one prompt.

    >>> demonstration([Attempt({"answer": "5"}, "6")])
    ['5']
    """
    return [_shown(attempt.columns) for attempt in attempts]


def _shown(columns: dict[str, Any]) -> str | None:
    found = [columns[name] for name in ("hint", "completion", "answer") if columns.get(name) is not None]
    return _text(found[0]) if found else None


def _text(shown: Any) -> str:
    """What is written, of a conversation what its messages say."""
    if not isinstance(shown, list):
        return str(shown)
    return "\n".join(str(message["content"]) for message in shown)


@check_arguments
def solved_attempt(attempts: Sequence[Attempt]) -> list[str | None]:
    """Another attempt at the same prompt that is right, for each; None where there is none.

    Args:
        attempts: of one prompt.

    >>> solved_attempt([Attempt({}, "5", True), Attempt({}, "6", False)])
    [None, '5']
    """
    right = [place for place, attempt in enumerate(attempts) if attempt.solved]
    others = [[place for place in right if place != own] for own in range(len(attempts))]
    return [attempts[found[0]].text if found else None for found in others]


@check_arguments
def own_feedback(attempts: Sequence[Attempt]) -> list[str | None]:
    """What was said of each attempt: its ``feedback``, else its row's column of that name; None where that is blank.

    Args:
        attempts: of one prompt.

    >>> own_feedback([Attempt({}, "6", False, "one too many"), Attempt({"feedback": "add"}, "5"), Attempt({}, "4")])
    ['one too many', 'add', None]
    """
    return [_said(attempt.feedback) or _said(attempt.columns.get("feedback")) for attempt in attempts]


def _said(text: Any) -> str | None:
    return None if text is None or not str(text).strip() else str(text)


@check_arguments
def in_words(hints: Hints, template: str) -> Hints:
    """Hints with words around them.

    Limiting case: the hints themselves for ``{hint}``.

    Args:
        hints: of the attempts of one prompt.
        template: a text in which ``{hint}`` stands for each.

    Raises:
        ValueError: for a template without it.

    >>> in_words(solved_attempt, "Right is {hint}.")([Attempt({}, "5", True), Attempt({}, "6", False)])
    [None, 'Right is 5.']
    """
    check_template("in_words: template", template, "hint")

    def told(attempts: Sequence[Attempt]) -> list[str | None]:
        return [None if hint is None else filled(template, hint=hint) for hint in hints(attempts)]

    return told


@check_arguments
def joined(*hints: Hints) -> Hints:
    """All that several hints say of an attempt, one text after the other; None where none says anything.

    Limiting case: the first alone where the others say nothing.

    Args:
        hints: of the attempts of one prompt.

    >>> both = joined(solved_attempt, in_words(own_feedback, " But: {hint}"))
    >>> both([Attempt({}, "5", True), Attempt({}, "6", False, "too many"), Attempt({}, "7", False)])
    [None, '5 But: too many', '5']
    """

    def together(attempts: Sequence[Attempt]) -> list[str | None]:
        found = zip(*(each(attempts) for each in hints), strict=True)
        said = ([text for text in texts if text is not None] for texts in found)
        return ["".join(texts) if texts else None for texts in said]

    return together


@check_arguments
def written(template: str) -> Write:
    """``(prompt, hint) → text``: what a teacher is asked, by a template.

    Limiting case: ``after_example`` for ``{prompt}{hint}\\n{prompt}``.

    Args:
        template: a text in which ``{prompt}`` stands for what the student reads, and ``{hint}`` for a hint.

    Raises:
        ValueError: for a template without one of them.

    >>> written("{prompt} ({hint}) Again: ")("2+3=", "not 6")
    '2+3= (not 6) Again: '
    """
    check_template("written: template", template, "prompt", "hint")
    return lambda prompt, hint: filled(template, prompt=prompt, hint=hint)


@check_arguments
def after_example(prompt: str, hint: str, separator: str = "\n") -> str:
    """The prompt behind an answer that is known to be right.

    Args:
        prompt: as the student reads it.
        hint: an answer.
        separator: between the two.

    >>> after_example("2+3=", "5")
    '2+3=5\\n2+3='
    """
    return f"{prompt}{hint}{separator}{prompt}"
