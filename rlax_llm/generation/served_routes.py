"""The experts that a server's tokens were sent to, as vLLM and SGLang tell them (``--enable-return-routed-experts``).

Both give one array ``[n − 1, L, k]`` for the n tokens of prompt and completion, since nothing is drawn behind the last:
as the text of a ``.npy`` file (vLLM: ``routed_experts`` of a choice), or of int32 alone (SGLang: in its ``sgl_ext``).
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np

from rlax_llm.models.config import DecoderConfig, Experts

ASKED = {"return_routed_experts": True}
"""What SGLang wants to be asked; vLLM says it of every request, once it was started so."""
_FLAG = "--enable-return-routed-experts"
_NPY = b"\x93NUMPY"


def read_routes(choice: dict[str, Any], counts: tuple[int, int], config: DecoderConfig) -> str:
    """Where the tokens of a choice were sent, as text: unsigned integers ``[n − 1, L·k]``, numbers plus 1, in base64.

    0 stands where a server says -1: of that token it does not know.

    Args:
        choice: of an answer.
        counts: tokens of prompt and completion that were drawn, and of these the n that are read.
        config: the model's.

    Raises:
        ValueError: the server does not say it, or says it of another model.

    >>> from rlax_llm.models.config import Experts
    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, experts=Experts(3, 2, 3))
    >>> told = base64.b64encode(np.array([[[2, 0]], [[1, 2]]], "<i4")).decode()
    >>> placed_routes([read_routes({"sgl_ext": {"routed_experts": told}}, (3, 3), config)], [0], (1, 4), config)
    array([[[3, 1],
            [2, 3],
            [0, 0],
            [0, 0]]], dtype=uint8)
    """
    experts, (drawn, read) = _experts(config), counts
    found = _decoded(choice.get("routed_experts") or (choice.get("sgl_ext") or {}).get("routed_experts"), config)
    if found.shape[1:] != (config.num_layers, experts.per_token) or found.max(initial=0) >= experts.count:
        raise ValueError(
            f"the answer's routed_experts have {found.shape[1:]} layers and experts of a token, and numbers up to "
            f"{found.max(initial=0)}, wanted {(config.num_layers, experts.per_token)} and less than {experts.count}; "
            "start the server with the model that is trained."
        )
    if len(found) not in (drawn - 1, drawn):
        raise ValueError(
            f"the answer's routed_experts are of {len(found)} tokens, wanted {drawn - 1} of the {drawn} of prompt and "
            "completion; start the server so that it keeps those of all."
        )
    numbers = np.maximum(found[: read - 1].astype(np.int64) + 1, 0).astype(_type(experts))
    return base64.b64encode(numbers.tobytes()).decode()


def _decoded(said: Any, config: DecoderConfig) -> np.ndarray:
    """``[n, L, k]`` integers."""
    if not isinstance(said, str):
        raise ValueError(
            f"the answer has no routed_experts, wanted the experts that each token was sent to, in base64; start the "
            f"server with {_FLAG} (vLLM from 0.22 on, SGLang), or leave router_replay out."
        )
    try:
        data = base64.b64decode(said, validate=True)
        if data.startswith(_NPY):
            found = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            found = np.frombuffer(data, "<i4").reshape(-1, config.num_layers, _experts(config).per_token)
    except (binascii.Error, ValueError, EOFError) as error:
        raise ValueError(
            f"the answer's routed_experts are no array of integers in base64 ({error}); take a server that gives them "
            "as vLLM and SGLang do."
        ) from None
    if found.ndim != 3 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"the answer's routed_experts are {found.dtype} of {found.ndim} axes, wanted integers [tokens, layers, "
            "experts]; take a server that gives them as vLLM and SGLang do."
        )
    return found


def placed_routes(told: list[str], begins: list[int], shape: tuple[int, int], config: DecoderConfig) -> np.ndarray:
    """Of whole rows, as ``Completions.routed``: 0 on padding and on the last token of each.

    Args:
        told: of each row, by ``read_routes``.
        begins: the column of each row's first token.
        shape: ``[B, T]``.
        config: the model's.
    """
    experts = _experts(config)
    numbers = config.num_layers * experts.per_token
    found = np.zeros((*shape, numbers), _type(experts))
    for row, (text, begin) in enumerate(zip(told, begins, strict=True)):
        own = np.frombuffer(base64.b64decode(text), found.dtype).reshape(-1, numbers)
        found[row, begin : begin + len(own)] = own
    return found


def _type(experts: Experts) -> np.dtype:
    return np.min_scalar_type(experts.count)


def _experts(config: DecoderConfig) -> Experts:
    assert config.experts is not None  # check_request
    return config.experts
