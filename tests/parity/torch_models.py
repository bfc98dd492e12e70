"""Models of transformers on torch, and what they compute; without padding, whatever ours are given."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from families import CAUSAL, SHAPE
from transformers import AutoModelForCausalLM

from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import logits

# Its threads wait for each other by spinning: on cores that are shared, one is five times as fast as two.
torch.set_num_threads(1)


def torch_model(family: str, fields: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | fields)
    model = getattr(transformers, CAUSAL.get(family, f"{family}ForCausalLM"))(config).eval()
    with torch.no_grad():  # larger than at initialization: biases and norms are to matter, attention to be sharp
        for name, parameter in model.named_parameters():
            small = parameter.ndim == 1 or name.endswith("_bias")
            parameter.add_(0.1 * torch.randn_like(parameter)) if small else parameter.mul_(5.0)
    return model


def padded(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Four rows: whole, padded on the left, on the right, on both sides."""
    tokens = np.random.default_rng(0).integers(3, vocab_size, (4, 24)).astype(np.int32)
    valid = np.ones_like(tokens, bool)
    valid[1, :7] = valid[2, -5:] = valid[3, :3] = valid[3, -4:] = False
    return np.where(valid, tokens, 0), valid


def torch_logits(model: torch.nn.Module, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Row by row and without padding, which leaves nothing to the treatment of masks."""
    out = np.zeros((*tokens.shape, model.config.vocab_size), np.float32)
    with torch.no_grad():
        for row, keep, result in zip(tokens, valid, out):
            result[keep] = model(torch.tensor(row[keep][None], dtype=torch.long)).logits[0].float().numpy()
    return out


def assert_same_logits(model: torch.nn.Module, config: DecoderConfig, params: dict, atol: float) -> None:
    tokens, valid = padded(config.vocab_size)
    ours = np.asarray(logits(config, params, jnp.asarray(tokens), jnp.asarray(valid)))
    np.testing.assert_allclose(ours[valid], torch_logits(model, tokens, valid)[valid], rtol=0, atol=atol)


def reloaded(directory: Path) -> torch.nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not {name: found for name, found in report.items() if found}
    return model.eval()
