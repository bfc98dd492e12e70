"""Completions that a server draws: OpenAI's completions API with token ids and log-probabilities (vLLM, SGLang).

A prompt goes as token ids and a completion comes back as token ids, each with the log-probability of its draw: nothing
is ever encoded a second time. What the server leaves out, or does otherwise than it was asked, is an error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import numpy as np

from rlax_llm.core.mesh import fetch
from rlax_llm.core.processes import done_by_all, is_first
from rlax_llm.core.types import Completions
from rlax_llm.generation import served_routes
from rlax_llm.generation.prompts import Prompts
from rlax_llm.generation.request import Request, check_request
from rlax_llm.generation.sampling import Categorical, Sampler, greedy, row_keys
from rlax_llm.generation.server import Server
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params

MOST_CONNECTIONS = 256
_LIKELIEST = 5  # tokens that a server tells of, at least, where it is asked to
_LARGEST_BIAS = 100.0  # of the API
_PROCESSED = "processed log-probabilities (vLLM: --logprobs-mode processed_logprobs)"
_NEUTRAL = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
}
"""Said of every request: what is left out a server takes from the model's generation_config.json."""


class Asked(NamedTuple):
    """What is asked for one completion.

    Attributes:
        prompt: token ids.
        seed: of its draws.
        limit: the most tokens.
    """

    prompt: list[int]
    seed: int
    limit: int


_PROBE = Asked([0], 0, 1)


class Answered(NamedTuple):
    """One completion.

    Attributes:
        tokens: ids, the stop token included.
        log_probs: of each, nats.
        truncated: it ended at its limit.
        routed: where prompt and tokens were sent, by ``read_routes``; nothing where nobody asks.
    """

    tokens: list[int]
    log_probs: list[float]
    truncated: bool
    routed: str = ""


class Served:
    """A ``generate`` whose completions a server draws, from the weights that it was given last.

    Limiting case: of a server with the same weights and number format it is ``generate`` in distribution.

    Args:
        server: where it is.
        model: its name there; None takes the first that the server lists.

    Attributes:
        version: of the policy whose weights the server has; None where it was given none.
    """

    def __init__(self, server: Server, model: str | None = None):
        self.server, self.model = server, model
        self.version: int | None = None
        self._probed: set[str] = set()

    def __call__(
        self,
        config: DecoderConfig,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        request: Request,
        slots: int | None = None,
        limits: Any | None = None,
    ) -> Completions:
        """Completions of prompts, on the host; see ``generate``.

        Args:
            config: shapes; the vocabulary and the positions are read.
            params: not read: the server has its own.
            prompts: ``tokens [P, W]`` and ``valid [P, W]``, padded on the left.
            key: gives each completion its seed.
            request: temperature and bias of the sampler, stop tokens, longest completion, group size.
            slots: requests at a time, at most.
            limits: ``[P · G]``, the most tokens of each completion.

        Returns:
            ``Completions``, with the ``versions`` of the policy that drew them.

        Raises:
            ValueError: for a sampler that the learner could not recompute, or an answer that is not what was asked.
            ConnectionError: the server cannot be reached.
        """
        del params
        check_request(config, prompts[0].shape[1], request)
        fetched = fetch(prompts)
        asked = _asked(fetched, key, request, limits)
        told = done_by_all(
            lambda: self._drawn(asked, config, request, slots) if is_first() else None, ValueError, OSError
        )
        rows = [Answered(*row) for row in told[0] or ()]
        drawn = _completions(fetched, rows, request, self.version)
        return _with_routes(config, drawn, rows) if request.routed else drawn

    def _drawn(
        self, asked: Sequence[Asked], config: DecoderConfig, request: Request, slots: int | None
    ) -> list[Answered]:
        """The completions, many asked for at a time: the server has its own batches."""
        wanted = sampling_fields(request)
        self.check(request, config.vocab_size)
        if request.routed:
            wanted |= served_routes.ASKED
        with ThreadPoolExecutor(min(slots or len(asked), len(asked), MOST_CONNECTIONS)) as pool:
            return list(pool.map(lambda one: self._one(one, wanted, config, request), asked))

    def _one(self, asked: Asked, wanted: dict[str, Any], config: DecoderConfig, request: Request) -> Answered:
        answer = self._ask(asked, wanted)
        try:
            read = read_answer(answer, asked, config.vocab_size, request.stop_ids)
            return read._replace(routed=_routes(answer, asked, read, config)) if request.routed else read
        except ValueError as error:
            raise ValueError(f"{self.server.url}: {error}") from None

    def _ask(self, asked: Asked, wanted: dict[str, Any], likeliest: int = 1) -> Any:
        own = {"prompt": asked.prompt, "seed": asked.seed, "max_tokens": asked.limit, "model": self._name()}
        form = {"logprobs": likeliest, "return_token_ids": True, "n": 1, "stream": False}
        return self.server.ask("/v1/completions", _NEUTRAL | wanted | own | form)

    def _name(self) -> str:
        if self.model is None:
            self.model = str(listed_model(self.server)["id"])
        return self.model

    def check(self, request: Request, vocabulary: int) -> None:
        """Raise where the log-probabilities are not of what is drawn from, but of the logits as they were before.

        A temperature divides what lies between the likeliest tokens; a large bias leaves one token, of log-probability
        0.

        Args:
            request: whose sampler is asked about; nothing is, where it draws from the logits as they are.
            vocabulary: the model's.

        Raises:
            ValueError: for a server with other log-probabilities.
        """
        wanted = sampling_fields(request)
        temperature = wanted["temperature"]
        if temperature not in (0.0, 1.0):
            self._check_once("temperature", lambda: self._divides(temperature))
        if "logit_bias" in wanted:
            self._check_once("logit_bias", lambda: self._adds(vocabulary))

    def _check_once(self, name: str, shows: Callable[[], bool]) -> None:
        if name not in self._probed and not shows():
            raise ValueError(
                f"{self.server.url}: the log-probabilities are those before {name}, and completions are drawn after "
                f"it; start the server with {_PROCESSED}, or leave {name} out."
            )
        self._probed.add(name)

    def _divides(self, temperature: float) -> bool:
        """Whether a temperature shows in the log-probabilities of the likeliest tokens."""
        plain, divided = self._spread(1.0), self._spread(temperature)
        return abs(divided - plain / temperature) <= abs(divided - plain)

    def _spread(self, temperature: float) -> float:
        """What lies between the log-probabilities of the likeliest tokens, nats."""
        answer = self._ask(_PROBE, {"stop_token_ids": [], "temperature": temperature}, _LIKELIEST)
        top = (_choice(answer).get("logprobs") or {}).get("top_logprobs")
        if not isinstance(top, list) or not top or not isinstance(top[0], dict) or len(top[0]) < _LIKELIEST:
            raise ValueError(
                f"{self.server.url}: the answer has no top_logprobs of {_LIKELIEST} tokens, wanted to see what the "
                "temperature does to them; leave temperature out."
            )
        values = sorted(top[0].values(), reverse=True)
        return values[0] - values[_LIKELIEST - 1]

    def _adds(self, vocabulary: int) -> bool:
        """Whether a bias shows in a log-probability."""
        changed = {"stop_token_ids": [], "temperature": 1.0, "logit_bias": {"0": _LARGEST_BIAS}}
        return read_answer(self._ask(_PROBE, changed), _PROBE, vocabulary, ()).log_probs[0] > -0.1


def listed_model(server: Server) -> dict[str, Any]:
    """What a server lists of its first model.

    Args:
        server: that is asked.

    Raises:
        ValueError: it lists none.
        ConnectionError: it cannot be reached.
    """
    found = server.ask("/v1/models")
    models = found.get("data") if isinstance(found, dict) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], dict) or "id" not in models[0]:
        raise ValueError(f"{server.url}/v1/models: it lists no model; give the address of a server with OpenAI's API.")
    return models[0]


def sampling_fields(request: Request) -> dict[str, Any]:
    """A request in the API's words.

    Args:
        request: of a sampler whose log-probabilities the learner can recompute from a token alone.

    Raises:
        ValueError: for one that cuts the vocabulary, or whatever else a server does not tell of.

    >>> sampling_fields(Request(Categorical(0.5, logit_bias=((7, -2.0),)), (1,), 4))
    {'temperature': 0.5, 'stop_token_ids': [1], 'logit_bias': {'7': -2.0}}
    >>> sampling_fields(Request(Categorical(top_p=0.9), (1,), 4))
    Traceback (most recent call last):
    ValueError: Served: a foreign sampler cannot have top_p: its server does not say what that left to draw from, and
    the learner could not recompute the log-probabilities; leave it out.
    """
    plain = Request(request.sampler, request.stop_ids, request.max_new_tokens, request.group_size)
    # How many tokens a pass draws is the server's own affair, and who says where they went: it changes none.
    _refuse(request._replace(speculation=None, routed=False), plain)
    temperature, bias = _temperature_and_bias(request.sampler)
    found: dict[str, Any] = {"temperature": float(temperature), "stop_token_ids": [int(x) for x in request.stop_ids]}
    if not bias:
        return found
    for token, value in bias:
        if not abs(value) <= _LARGEST_BIAS:
            raise ValueError(
                f"Served: a foreign sampler takes a bias from −{_LARGEST_BIAS:g} to {_LARGEST_BIAS:g}, got {value} of "
                f"token {token}; change logit_bias."
            )
    return found | {"logit_bias": {str(token): float(value) for token, value in bias}}


def _temperature_and_bias(sampler: Sampler) -> tuple[float, tuple[tuple[int, float], ...]]:
    if sampler is greedy:
        return 0.0, ()
    if isinstance(sampler, functools.partial) and sampler.func is greedy and set(sampler.keywords) <= {"logit_bias"}:
        return 0.0, tuple(sampler.keywords.get("logit_bias", ()))
    if not isinstance(sampler, Categorical):
        raise ValueError(
            f"Served: a foreign sampler cannot have the sampler {sampler!r}; wanted greedy, or Categorical with a "
            "temperature and a bias alone."
        )
    _refuse(sampler, Categorical(sampler.temperature, logit_bias=sampler.logit_bias))
    return sampler.temperature, sampler.logit_bias


def _refuse(given: Any, plain: Any) -> None:
    """Raise for what is given beyond what a server can be asked for."""
    names = Request._fields if isinstance(given, Request) else [field.name for field in fields(given)]
    for name in names:
        if getattr(given, name) != getattr(plain, name):
            raise ValueError(
                f"Served: a foreign sampler cannot have {name}: its server does not say what that left to draw from, "
                "and the learner could not recompute the log-probabilities; leave it out."
            )


def _asked(prompts: tuple[Any, Any], key: jax.Array, request: Request, limits: Any | None) -> list[Asked]:
    """Each completion's prompt, seed and limit."""
    count = len(prompts[0]) * request.group_size
    seeds = fetch(_seeds(row_keys(key, count))).tolist()
    most = [request.max_new_tokens] * count if limits is None else np.asarray(limits).tolist()
    tokens = [row[there].tolist() for row, there in zip(*map(np.asarray, prompts), strict=True)]
    repeated = [row for row in tokens for _ in range(request.group_size)]
    return [Asked(*row) for row in zip(repeated, seeds, most, strict=True)]


@jax.jit
def _seeds(keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.bits(key, (), "uint32") >> 1)(keys)


def read_answer(answer: Any, asked: Asked, vocabulary: int, stop_ids: Sequence[int]) -> Answered:
    """The completion in an answer, up to and with its first stop token.

    Args:
        answer: of ``/v1/completions``.
        asked: for what.
        vocabulary: the model's; ids are below it.
        stop_ids: that end a completion.

    Raises:
        ValueError: something is missing, or is not what was asked for.
    """
    choice = _choice(answer)
    _check_prompt(choice.get("prompt_token_ids", answer.get("prompt_token_ids")), asked.prompt)
    tokens = _ids(choice, vocabulary)
    log_probs = _log_probs(choice, len(tokens))
    stop = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    if stop is not None:
        return Answered(tokens[: stop + 1], log_probs[: stop + 1], False)
    reason = choice.get("finish_reason")
    if reason == "length" and len(tokens) == asked.limit:
        return Answered(tokens, log_probs, True)
    if reason == "length":
        raise ValueError(
            f"a completion ended after {len(tokens)} tokens by its length, wanted {asked.limit}; start the server with "
            "a larger context, or lower max_new_tokens."
        )
    raise ValueError(
        f"a completion ended by {reason!r} after token {tokens[-1]}, which is none of the model's stop tokens, "
        f"{list(stop_ids)}; start the server with the model that is trained."
    )


def _routes(answer: Any, asked: Asked, read: Answered, config: DecoderConfig) -> str:
    """Where prompt and tokens were sent; a server may have gone on behind a stop token."""
    choice, prompt = _choice(answer), len(asked.prompt)
    counts = prompt + len(choice["token_ids"]), prompt + len(read.tokens)
    return served_routes.read_routes(choice, counts, config)


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError("the answer does not hold one completion; give the address of a server with OpenAI's API.")
    return choices[0]


def _check_prompt(read: Any, sent: list[int]) -> None:
    """Raise where the server read other tokens; an older one does not say."""
    if read is not None and list(read) != sent:
        raise ValueError(
            f"the server read another prompt than was sent ({len(read)} tokens, and {len(sent)} were sent); start it "
            "with the model that is trained, and without what changes prompts."
        )


def _ids(choice: dict[str, Any], vocabulary: int) -> list[int]:
    tokens = choice.get("token_ids")
    if not isinstance(tokens, list):
        raise ValueError(
            "the answer has no token_ids, wanted the ids of the tokens that were drawn (return_token_ids); take a "
            "server that gives them, as vLLM and SGLang do."
        )
    if not tokens:
        raise ValueError("a completion has no token, wanted at least one, its stop token included; change the server.")
    beyond = [token for token in tokens if not isinstance(token, int) or not 0 <= token < vocabulary]
    if beyond:
        raise ValueError(
            f"the server drew token {beyond[0]}, and the model's vocabulary has {vocabulary}; start it with the model "
            "that is trained."
        )
    return tokens


def _log_probs(choice: dict[str, Any], count: int) -> list[float]:
    found = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(found, list) or len(found) != count:
        got = "none" if not isinstance(found, list) else str(len(found))
        raise ValueError(
            f"the answer has {got} of the log-probabilities of {count} tokens (logprobs); start the server so that it "
            "gives them."
        )
    for value in found:
        if not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-3:
            raise ValueError(f"a token's log-probability is {value}, wanted a number of at most 0; change the server.")
    return [float(value) for value in found]


def _completions(
    prompts: tuple[Any, Any], rows: Sequence[Answered], request: Request, version: int | None
) -> Completions:
    """The rows as arrays, each behind its prompt."""
    width, limit = prompts[0].shape[1], request.max_new_tokens
    tokens, there = (np.pad(np.repeat(x, request.group_size, 0), ((0, 0), (0, limit))) for x in prompts)
    mask, log_probs = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, np.float32)
    tokens[:, width:] = request.filler
    for index, row in enumerate(rows):
        drawn = slice(width, width + len(row.tokens))
        tokens[index, drawn], log_probs[index, drawn], mask[index, drawn] = row.tokens, row.log_probs, True
    truncated = np.array([row.truncated for row in rows], bool)
    found: Any = (tokens, there | mask, mask, log_probs, truncated)
    return Completions(*found, versions=_versions(len(rows), version))


def _with_routes(config: DecoderConfig, drawn: Completions, rows: Sequence[Answered]) -> Completions:
    """With where the tokens of each row were sent, from the first of its prompt on."""
    begins = np.asarray(drawn.valid).argmax(1).tolist()
    count, columns = drawn.tokens.shape
    placed = served_routes.placed_routes([row.routed for row in rows], begins, (count, columns), config)
    return drawn._replace(routed=placed)


def _versions(count: int, version: int | None) -> Any:
    return None if version is None else np.full(count, version, np.int32)
