"""Layers whose keys break at few bits, found in the model file; those keys are kept at more.

Some models (Qwen2 above all) add a large bias to queries and keys. RoPE turns the bias with the position, so subtracting a
block's mean key removes only what turns little within the block. The rest widens the range that the codes must span, and
rounding then shifts the logits. Both biases stand in the GGUF file, so the shift can be predicted before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.bisection import largest
from mikv_cpp.config import BASE_BITS, REFINED_BITS, KVConfig
from mikv_cpp.model_file import ModelFile

BLOCK = 128  # cells that share a mean key
RANGE_IN_DEVIATIONS = 4.7  # of 64 values of a normal distribution, on average
WORST_SHIFT = 1.0  # of a logit, in nats, that is let pass: its attention weight is off by a factor of e
SHARE_STEPS = 1024  # in which a share is looked for that fits

#: Bytes of a cache with this configuration.
BytesOf = Callable[[KVConfig], int]


def protected(config: KVConfig, model: ModelFile, bytes_of: BytesOf) -> KVConfig:
    """The config with a row in `layers` for each fragile KV head; what the config itself says of a layer goes first.

    Without a budget the others pay: their share is lowered until the cache takes no more bytes than without the rows, or is 0.
    """
    if not config.protect or (config.refined_share >= 1 and config.refined_bits >= 8 and config.budget is None):
        return config
    heads = fragile_heads(model, config.k_bits, config.center_keys)
    if not heads:
        return config
    rows = [f"{layer}.{head}:{kept(bits, config.v_bits)}" for (layer, head), bits in heads.items()]
    wanted = config.with_layers(rows)
    return wanted if config.budget is not None else _within(wanted, bytes_of, bytes_of(config))


def kept(k_bits: int, v_bits: int) -> str:
    """What a fragile head gets: all keys at k_bits; all values at a bit more than the base, about what the others' cost."""
    v_bits = min(v_bits + 1, max(BASE_BITS))
    return f"k{min(k_bits, max(BASE_BITS))}v{v_bits}rk{k_bits}rv{v_bits}s1"


def fragile_heads(model: ModelFile, k_bits: int, center_keys: bool) -> dict[tuple[int, int], int]:
    """KV heads (layer, head) whose logits rounding of the biased keys to k_bits shifts by more than WORST_SHIFT.

    With each, the least bits that do not, or 8.
    """
    heads = {}
    for layer in range(model.n_layer):
        for head, shift in enumerate(predicted_shifts(model, layer, k_bits, center_keys)):
            if shift > WORST_SHIFT:
                enough = (bits for bits in REFINED_BITS if bits > k_bits and shift <= WORST_SHIFT * 2 ** (bits - k_bits))
                heads[layer, head] = next(enough, max(REFINED_BITS))
    return heads


def predicted_shifts(model: ModelFile, layer: int, k_bits: int, center_keys: bool) -> list[float]:
    """Standard deviation of the shift of an attention logit, in nats, from the biases alone, of each KV head; [] without.

    llama.cpp's rotation spreads what centring leaves of the bias, of norm r, evenly over the head's D values. Rounding errs by
    step / sqrt(12) in each, and the query's bias of norm q, over sqrt(D), weighs the errors.
    """
    key, query = (model.biases.get(f"blk.{layer}.attn_{kind}.bias") for kind in ("k", "q"))
    shape = next(iter(model.attention_layers()), None)
    if key is None or query is None or shape is None:
        return []
    if key.size != shape.n_head_kv * shape.head_dim_k or query.size % key.size:
        return []
    dim, frequencies = shape.head_dim_k, model.rope_frequencies(shape.head_dim_k)
    keys = key.reshape(-1, dim)
    queries = query.reshape(len(keys), -1, dim)  # those of each KV head
    widths = [
        (_left_by_centring(head, frequencies) if center_keys else _norm(head)) * max(map(_norm, group))
        for head, group in zip(keys, queries)
    ]
    return [float(RANGE_IN_DEVIATIONS * width / (dim * math.sqrt(12) * 2**k_bits)) for width in widths]


def _within(config: KVConfig, bytes_of: BytesOf, size_bytes: int) -> KVConfig:
    """The config with the largest refined_share, not above its own, that takes at most size_bytes, or with 0."""

    def refining(steps: int) -> KVConfig:
        return replace(config, refined_share=steps / SHARE_STEPS)

    most = int(config.refined_share * SHARE_STEPS)
    return refining(largest(most, lambda steps: bytes_of(refining(steps)) <= size_bytes))


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
