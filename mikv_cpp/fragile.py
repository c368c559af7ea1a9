"""Layers whose keys break at few bits, found in the model file; they are kept at 8 bits.

Some models (Qwen2 above all) add a large bias to queries and keys. RoPE turns the bias with the position, so subtracting a
block's mean key removes only what turns little within the block. The rest widens the range that the codes must span, and
rounding then shifts the logits. Both biases stand in the GGUF file, so the shift can be predicted before anything is loaded.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.config import KVConfig
from mikv_cpp.model_file import ModelFile

BLOCK = 128  # cells that share a mean key
RANGE_IN_DEVIATIONS = 4.7  # of 64 values of a normal distribution, on average
WORST_SHIFT = 1.0  # of a logit, in nats, that is let pass: its attention weight is off by a factor of e
KEPT = "k4v4r8s1"  # what a fragile layer gets: every token at 8 bits


def protected(config: KVConfig, model: ModelFile) -> KVConfig:
    """The config with a row in `layers` for each fragile layer; what the config itself says of a layer goes first."""
    if not config.protect or (config.refined_share >= 1 and config.refined_bits == 8 and config.budget is None):
        return config
    rows = [f"{layer}:{KEPT}" for layer in fragile_layers(model, config.k_bits, config.center_keys)]
    return replace(config, layers=",".join([*rows, config.layers] if config.layers else rows)) if rows else config


def fragile_layers(model: ModelFile, k_bits: int, center_keys: bool) -> list[int]:
    """Numbers of the layers whose logits rounding of the biased keys to k_bits shifts by more than WORST_SHIFT."""
    shifts = {layer: predicted_shift(model, layer, k_bits, center_keys) for layer in range(model.n_layer)}
    return [layer for layer, shift in shifts.items() if shift > WORST_SHIFT]


def predicted_shift(model: ModelFile, layer: int, k_bits: int, center_keys: bool) -> float:
    """Standard deviation of the shift of an attention logit, in nats, from the biases alone; 0 where there are none.

    llama.cpp's rotation spreads what centring leaves of the bias, of norm r, evenly over the head's D values. Rounding errs by
    step / sqrt(12) in each, and the query's bias of norm q, over sqrt(D), weighs the errors.
    """
    key, query = (model.biases.get(f"blk.{layer}.attn_{kind}.bias") for kind in ("k", "q"))
    shape = next(iter(model.attention_layers()), None)
    if key is None or query is None or shape is None:
        return 0.0
    if key.size != shape.n_head_kv * shape.head_dim_k or query.size % key.size:
        return 0.0
    dim, frequencies = shape.head_dim_k, model.rope_frequencies(shape.head_dim_k)
    keys = key.reshape(-1, dim)
    queries = query.reshape(len(keys), -1, dim)  # those of each KV head
    widths = [
        (_left_by_centring(head, frequencies) if center_keys else _norm(head)) * max(map(_norm, group))
        for head, group in zip(keys, queries)
    ]
    return float(RANGE_IN_DEVIATIONS * max(widths) / (dim * math.sqrt(12) * 2**k_bits))


def _left_by_centring(bias: NDArray[np.float32], frequencies: NDArray[np.float64]) -> float:
    """Norm of what a turning bias [dim] keeps after its mean over a block is subtracted.

    frequencies: radians per token of the turning pairs. Values i and i + n are a pair, as in all models of llama.cpp that have
    these biases.
    """
    n = len(frequencies)
    kept = 1 - np.sinc(frequencies * BLOCK / 2 / np.pi) ** 2
    turning = bias[: 2 * n].astype(np.float64)
    return float(math.sqrt(((turning[:n] ** 2 + turning[n:] ** 2) * kept).sum()))


def _norm(values: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
