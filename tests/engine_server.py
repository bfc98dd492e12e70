"""A server with the part of OpenAI's API that a foreign sampler has, and the library's own engine behind it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import numpy as np

from rlax_llm.core.types import Completions
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.models.loading import LanguageModel, load_model
from rlax_llm.models.scoring import group_log_probs, group_logits

Answer = Callable[[str, Any], tuple[int, Any]]
"""``(path, body) → (status, what is answered)``: text as it is, all else as JSON."""


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server on loopback that answers so."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, said = answer(self.path, body)
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _do

        def log_message(self, *_: Any) -> None:
            pass

    class Many(ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128

        def handle_error(self, *_: Any) -> None:
            """Whoever asked has not waited for the answer."""

    server = Many(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


Routes = Callable[[np.ndarray], dict[str, Any]]
"""``experts of tokens [n − 1, L, k] → fields of a choice``."""


def as_npy(sent: np.ndarray) -> dict[str, Any]:
    """vLLM's."""
    file = io.BytesIO()
    np.save(file, sent)
    return {"routed_experts": base64.b64encode(file.getvalue()).decode()}


def as_numbers(sent: np.ndarray) -> dict[str, Any]:
    """SGLang's."""
    return {"sgl_ext": {"routed_experts": base64.b64encode(sent.astype("<i4").tobytes()).decode()}}


class EngineServer:
    """Answers as vLLM does: it draws by the engine, and reads the weights of a directory when it is told to.

    Args:
        model: at the start; without one the first weights have to be handed over.
        raw: log-probabilities are those of the logits before temperature and bias.
        routes: how it says which experts tokens were sent to; None does not say it.

    Attributes:
        asked: paths, in order.
    """

    def __init__(self, model: LanguageModel | None = None, raw: bool = False, routes: Routes | None = None):
        self.model, self.raw, self.routes, self.asked = model, raw, routes, []
        self._lock = threading.Lock()  # one row at a time: which thread comes first then changes nothing

    def __call__(self, path: str, body: Any) -> tuple[int, Any]:
        with self._lock:
            self.asked.append(path)
            if path == "/v1/models":
                return 200, {"data": [{"id": "policy", "owned_by": "vllm"}]}
            if path == "/collective_rpc":
                self.model = load_model(body["kwargs"]["weights_path"])
                return 200, {"results": [None]}
            if path == "/reset_prefix_cache":
                return 200, {"success": True}
            return 200, self._completion(body)

    def _completion(self, body: Any) -> Any:
        assert self.model is not None
        assert 0 <= body["temperature"] <= 2  # vLLM takes no other
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
        tokenizer, config = self.model.tokenizer, self.model.config
        bias = tuple((int(token), value) for token, value in body.get("logit_bias", {}).items())
        sampler = Categorical(body["temperature"], logit_bias=bias) if body["temperature"] else greedy
        asked = self.routes is not None and body.get("return_routed_experts", False)
        request = Request(sampler, tuple(body["stop_token_ids"]), body["max_tokens"], routed=asked)
        prompts = pad_prompts([body["prompt"]], tokenizer.pad_id, config.vocab_size)
        drawn = jax.device_get(generate(config, self.model.params, prompts, jax.random.key(body["seed"]), request))
        mask = np.asarray(drawn.mask)[0]
        log_probs = drawn.log_probs
        if self.raw:
            log_probs, _ = group_log_probs(config, (1, prompts[0].shape[1]))(self.model.params, drawn)
        log_probs = np.asarray(log_probs)[0][mask]
        told: dict[str, Any] = {"token_logprobs": log_probs.tolist()}
        if body["logprobs"] > 1:
            tempered = (1.0, False, ()) if self.raw else (body["temperature"], False, bias)
            logits = group_logits(config, (1, prompts[0].shape[1]), *tempered)(self.model.params, drawn)
            first = np.asarray(jax.nn.log_softmax(logits))[0, -request.max_new_tokens]
            told["top_logprobs"] = [{str(token): float(first[token]) for token in np.argsort(-first)[:5]}]
        choice = {
            "token_ids": drawn.tokens[0][mask].tolist(),
            "prompt_token_ids": body["prompt"],
            "logprobs": told,
            "finish_reason": "length" if drawn.truncated[0] else "stop",
        }
        return {"choices": [choice | self._routes(drawn)]}

    def _routes(self, drawn: Completions) -> dict[str, Any]:
        """Of the one row that was drawn: of its tokens, but the last, behind which nothing was."""
        if self.routes is None or drawn.routed is None:
            return {}
        assert self.model is not None and self.model.config.experts is not None
        sent = np.asarray(drawn.routed)[0][np.asarray(drawn.valid)[0]][:-1]
        shape = len(sent), self.model.config.num_layers, self.model.config.experts.per_token
        return self.routes(sent.reshape(shape).astype(np.int16) - 1)
