"""Wrong use is said at the call: one sentence that says what was called, what it got, what it wanted and what to do.

``@checked`` reads a function's own annotations, once, and compares each call's arguments with them: an array where a
function or a number is wanted (a factory that was called like the function it makes), a list or a record where an array
is, an array where a record is, a mask that is no bool, log-probabilities that are whole numbers, an argument that has
another name here. Under ``jit`` this happens while tracing, so a compiled program knows nothing of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from rlax_llm.core.names import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

_RECORDS = (
    "Completions",
    "LabeledBatch",
    "Objective",
    "PolicyBatch",
    "Preference",
    "PreferenceBatch",
    "Responses",
    "RunningMean",
    "Scored",
    "Trajectory",
    "Unpaired",
)
_FUNCTIONS = (
    "Advantage",
    "ClippedValueLoss",
    "Correction",
    "Credit",
    "GroupEstimator",
    "KlControl",
    "KlEstimator",
    "Link",
    "Ratio",
    "Reward",
    "Rewards",
    "Slope",
    "TrustRegion",
    "ValueLoss",
    "Weighting",
)
_STANDINS = ("Coupled", "Remembering")
_USERS = {"Objective": "policy_loss or group_loop", "Preference": "preference_loss or preference_loop"}
_USERS |= {"Unpaired": "unpaired_loss or label_loop", "Coupled": "an Objective"}
_BOOLEAN = ("mask", "chosen_mask", "rejected_mask", "desirable", "truncated")
_REAL = ("log_probs", "old_log_probs", "ref_log_probs", "sampler_log_probs", "log_ratio", "logits", "ref_logits")
_ELSEWHERE = {
    "beta": ("kl_coef",),
    "cliprange": ("eps", "eps_low"),
    "clip_eps": ("eps", "eps_low"),
    "clip_range": ("eps", "eps_low"),
    "clip_ratio": ("eps", "eps_low"),
    "clip_ratio_c": ("ceiling",),
    "clip_ratio_high": ("eps_high",),
    "clip_ratio_low": ("eps_low", "eps"),
    "completion_mask": ("mask",),
    "delta": ("ceiling",),
    "epsilon": ("eps", "eps_low"),
    "epsilon_high": ("eps_high",),
    "eps_low": ("eps",),
    "epsilon_low": ("eps_low", "eps"),
    "gae_lambda": ("traces", "trace", "lambda_"),
    "gamma": ("discounts", "discount"),
    "kl_penalty": ("kl_coef",),
    "label_smoothing": ("eps",),
    "odds_coef": ("beta",),
    "lam": ("traces", "trace", "lambda_", "gae_lambda"),
    "lambda_": ("gae_lambda",),
    "logprobs": ("log_probs",),
    "logps": ("log_probs",),
    "max_completion_length": ("max_new_tokens",),
    "max_response_length": ("max_new_tokens",),
    "old_logprobs": ("old_log_probs",),
    "old_per_token_logps": ("old_log_probs",),
    "per_token_logps": ("log_probs",),
    "ref_logprobs": ("ref_log_probs",),
    "ref_per_token_logps": ("ref_log_probs",),
    "response_mask": ("mask",),
    "rewards": ("scores",),
    "simpo_gamma": ("gamma",),
    "tau": ("beta", "temperature"),
}
"""What other trainers call an argument, and the names that it may have here."""

Judge = Callable[[str, str, Any], None]


def _is_record(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _one(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def describe_argument(value: Any) -> str:
    """What an argument is, to follow its name.

    >>> describe_argument([1.0]), describe_argument(None)
    ('is a list', 'is None')
    """
    if hasattr(value, "shape") and not callable(value):
        return f"has shape {tuple(value.shape)}"
    if value is None:
        return "is None"
    return "is a function" if inspect.isroutine(value) else f"is a {type(value).__name__}"


def check_dtypes(where: str, **arrays: Any) -> None:
    """Raise for a mask that is no bool, and for log-probabilities and logits that are no floats, known by their names.

    Raises:
        ValueError: naming the argument and its dtype.

    >>> import numpy as np
    >>> check_dtypes("f", mask=np.ones(2))
    Traceback (most recent call last):
    ValueError: f: mask has dtype float64, wanted bool; give mask != 0.
    """
    for name, value in arrays.items():
        kind = getattr(getattr(value, "dtype", None), "kind", None)
        if kind is None:
            continue
        if name in _BOOLEAN and kind != "b":
            raise ValueError(f"{where}: {name} has dtype {value.dtype}, wanted bool; give {name} != 0.")
        if name in _REAL and kind in "biu":
            raise ValueError(f"{where}: {name} has dtype {value.dtype}, wanted floats; give {name}.astype(float).")


def _array(where: str, name: str, value: Any) -> None:
    if _is_record(value):
        entries = ", ".join(f"{name}.{field}" for field in value._fields)
        raise ValueError(
            f"{where}: {name} {describe_argument(value)}, wanted an array; give one of its entries, {entries}."
        )
    if isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: {name} {describe_argument(value)}, wanted an array; give jnp.array({name}).")
    if value is None or isinstance(value, (str, Mapping)) or inspect.isroutine(value):
        raise ValueError(f"{where}: {name} {describe_argument(value)}, wanted an array.")
    check_dtypes(where, **{name: value})


def _number(made: str) -> Judge:
    """A number; ``made`` says what the function makes of it."""

    def judge(where: str, name: str, value: Any) -> None:
        no_number = value is None or isinstance(value, (str, list, tuple, Mapping)) or inspect.isroutine(value)
        if no_number or getattr(value, "ndim", 0):
            raise ValueError(f"{where}: {name} {describe_argument(value)}, wanted a number; {made}.")

    return judge


def _numbers(made: str) -> Judge:
    """A tuple of numbers, one for each reward."""

    def judge(where: str, name: str, value: Any) -> None:
        if _is_record(value) or not (isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1):
            raise ValueError(f"{where}: {name} {describe_argument(value)}, wanted a tuple of numbers; {made}.")

    return judge


def _callable(made: str) -> Judge:
    def judge(where: str, name: str, value: Any) -> None:
        if not (callable(value) or _is_record(value)):
            raise ValueError(f"{where}: {name} {describe_argument(value)}, wanted a function; {made}.")

    return judge


def _record(kind: str, function: Callable) -> Judge:
    def judge(where: str, name: str, value: Any) -> None:
        if _is_record(value):
            check_dtypes(where, **value._asdict())
            return
        if inspect.isroutine(value):
            raise ValueError(f"{where}: {name} is the function {value.__name__}, wanted {_one(kind)}; call it.")
        record = function.__globals__.get(kind)
        defaults = getattr(record, "_field_defaults", {})
        fields = [field for field in getattr(record, "_fields", ()) if field not in defaults]
        raise ValueError(
            f"{where}: {name} {describe_argument(value)}, wanted {_one(kind)}; give {kind}({', '.join(fields)})."
        )

    return judge


def _makes(where: str, kind: str) -> str | None:
    """What a factory's result is for, or None for a function that gives numbers."""
    if kind in _USERS:
        return f"{where}(…) makes {_one(kind)}, which goes to {_USERS[kind]}"
    if kind in _FUNCTIONS or kind.startswith("Callable"):
        return f"{where}(…) makes a function: give what that reads to its result, {where}(…)(…)"
    return None


def _judge(function: Callable, annotation: str) -> Judge | None:
    where = function.__name__
    optional = "None" in annotation.split(" | ")
    parts = [x for x in annotation.split(" | ") if x != "None"]
    made = _makes(where, function.__annotations__.get("return", ""))
    judge: Judge | None = None
    if parts in (["jax.Array"], ["PerStep"], ["jax.typing.ArrayLike"]):
        judge = _array
    elif made and set(parts) <= {"float", "int", "jax.Array"}:
        judge = _number(made)
    elif made and parts == ["tuple[float, ...]"]:
        judge = _numbers(made)
    elif all(part in (*_FUNCTIONS, *_STANDINS) or part.startswith("Callable") for part in parts):
        judge = _callable(made or "give one")
    elif len(parts) == 1 and parts[0] in _RECORDS:
        judge = _record(parts[0], function)
    if judge is None or not optional:
        return judge
    return lambda where, name, value: None if value is None else judge(where, name, value)


def _unknown(where: str, name: str, names: list[str]) -> TypeError:
    here = next((known for known in _ELSEWHERE.get(name, ()) if known in names), None)
    if here is not None:
        return TypeError(f"{where}: there is no argument {name}; what others call {name} is {here} here.")
    takes = f" It takes {', '.join(names)}." if names else " It takes none."
    return TypeError(f"{where}: there is no argument {name}{did_you_mean(name, names)}{takes}")


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which says in a sentence what is wrong with a call.

    Args:
        function: whose annotations say what it takes.

    Returns:
        The same, with the same signature.

    Raises:
        ValueError: by the result, for an argument of another kind than annotated.
        TypeError: by the result, for an argument that there is not.

    >>> def half(x: jax.Array) -> jax.Array:
    ...     return x / 2
    >>> check_arguments(half)([1.0, 2.0])
    Traceback (most recent call last):
    ValueError: half: x is a list, wanted an array; give jnp.array(x).
    >>> check_arguments(half)(y=1.0)
    Traceback (most recent call last):
    TypeError: half: there is no argument y. It takes x.
    """
    parameters = inspect.signature(function).parameters.values()
    where = function.__name__
    names = [p.name for p in parameters]
    judges = {p.name: _judge(function, str(p.annotation)) for p in parameters}
    places = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(zip(places, args, strict=False)) | kwargs
        for name, value in given.items():
            if name not in judges and not open_ended:
                raise _unknown(where, name, names)
            judge = judges.get(name)
            if judge is not None:
                judge(where, name, value)
        return function(*args, **kwargs)

    return call
