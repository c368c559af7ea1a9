"""KV heads whose keys break at few bits: the prediction from the biases, against rounding done for real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from numpy.typing import NDArray

from mikv_cpp.config import REFINED_BITS, KVConfig
from mikv_cpp.fragile import WORST_SHIFT, fragile_heads, predicted_shifts, protected
from mikv_cpp.model_file import ModelFile, read_model_file
from mikv_cpp.reference import codec

Writer = Callable[..., Path]
DIM, N_KV, GROUP = 64, 2, 3


def model(keys: dict[int, NDArray[Any]], query: float = 20.0, **fields: Any) -> ModelFile:
    """Two layers with 2 KV heads of 64 and 6 query heads; the key biases of some layers, queries of that norm."""
    header = {
        "general.architecture": "qwen2",
        "qwen2.block_count": 2,
        "qwen2.embedding_length": DIM * N_KV * GROUP,
        "qwen2.attention.head_count": N_KV * GROUP,
        "qwen2.attention.head_count_kv": N_KV,
        "qwen2.rope.freq_base": 1e6,
        **fields,
    }
    biases = {}
    for layer, key in keys.items():
        biases[f"blk.{layer}.attn_k.bias"] = key.astype(np.float32).ravel()
        biases[f"blk.{layer}.attn_q.bias"] = np.full(DIM * N_KV * GROUP, query / np.sqrt(DIM), np.float32)
    return ModelFile(Path("model.gguf"), 1, header, biases)


def bias(pair: int, size: float, head: int = 0) -> NDArray[Any]:
    """Keys whose only bias is that of one turning pair of one head."""
    out = np.zeros((N_KV, DIM))
    out[head, pair] = size
    return out


def measured_shift(size: float, pair: int, k_bits: int, center: bool, query: float) -> float:
    """Standard deviation of the logits' shift: turned keys, centred, rotated, coded; random queries of that norm."""
    rng = np.random.default_rng(1)
    angle = np.arange(128) * 1e6 ** (-2.0 * pair / DIM)
    keys = rng.normal(size=(128, DIM)) * 1e-3
    keys[:, pair] += size * np.cos(angle)
    keys[:, pair + DIM // 2] += size * np.sin(angle)
    if center:
        keys -= keys.mean(axis=0)
    hadamard = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(DIM)] for i in range(DIM)]) / np.sqrt(DIM)
    rotated = (keys @ hadamard).astype(np.float32)
    encoded = codec.encode(rotated, 64, k_bits, 8)
    back = codec.decode(encoded.params, encoded.base, None, 64, k_bits, 8)
    queries = rng.normal(size=(500, DIM))
    queries *= query / np.linalg.norm(queries, axis=1, keepdims=True)
    return float(((back - rotated) @ queries.T / np.sqrt(DIM)).std())


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("k_bits", [2, 3, 4])
@pytest.mark.parametrize("pair", [2, 6, 10, 20])
def test_the_prediction_is_near_what_rounding_does(pair: int, k_bits: int, center: bool) -> None:
    predicted = max(predicted_shifts(model({0: bias(pair, 100.0)}), 0, k_bits, center))
    measured = measured_shift(100.0, pair, k_bits, center, 20.0)
    if predicted > 0.05:  # below, the other channels' noise decides
        assert measured / 3 < predicted < measured * 3


def test_a_turning_bias_is_fragile_and_a_still_one_is_centred_away() -> None:
    turning, still = bias(8, 150.0), bias(31, 150.0)
    assert list(fragile_heads(model({0: turning, 1: still}), 4, True)) == [(0, 0)]
    assert list(fragile_heads(model({0: turning, 1: still}), 4, False)) == [(0, 0), (1, 0)]
    assert fragile_heads(model({0: turning / 100}), 2, True) == {}
    assert fragile_heads(model({}), 2, True) == {}


@pytest.mark.parametrize("size", [60.0, 120.0, 400.0, 1e5])
@pytest.mark.parametrize("k_bits", [2, 3, 4])
def test_a_head_gets_the_least_bits_that_will_do(size: float, k_bits: int) -> None:
    file = model({1: bias(8, size, head=1)})
    ((head, bits),) = fragile_heads(file, k_bits, True).items()
    assert head == (1, 1)
    assert max(predicted_shifts(file, 1, bits, True)) <= WORST_SHIFT or bits == 8
    fewer = max([k_bits, *(fewer for fewer in REFINED_BITS if fewer < bits)])
    assert max(predicted_shifts(file, 1, fewer, True)) > WORST_SHIFT


def test_a_query_of_another_kv_head_does_no_harm() -> None:
    file = model({0: bias(8, 150.0, head=0)})
    queries = file.biases["blk.0.attn_q.bias"].reshape(N_KV, -1)
    queries[0] = 0
    assert fragile_heads(file, 4, True) == {}


def test_the_users_word_goes_first() -> None:
    file = model({0: bias(8, 150.0)})
    assert protected(KVConfig(), file, bytes_of).layers == "0.0:k4v3rk6rv3s1"
    assert protected(KVConfig(layers="0:k3,1:k3"), file, bytes_of).layers == "0.0:k4v3rk6rv3s1,0:k3,1:k3"
    assert protected(KVConfig(protect=False), file, bytes_of).layers == ""
    assert protected(KVConfig.preset("q8"), file, bytes_of).layers == ""


def bytes_of(config: KVConfig) -> int:
    """Of a cache of 1000 cells: a row of `layers` takes 20 bytes, and each refined cell one."""
    return int(1000 * config.refined_share) + 20 * len(config.layers.split(",") if config.layers else [])


def test_the_others_pay() -> None:
    file = model({0: bias(8, 150.0)})
    plain = KVConfig(refined_share=0.3)
    made = protected(plain, file, bytes_of)
    assert bytes_of(plain) - 2 <= bytes_of(made) <= bytes_of(plain)
    assert protected(KVConfig(refined_share=0.01), file, bytes_of).refined_share == 0  # as far as they can
    assert protected(KVConfig(refined_share=0.3, budget="20%"), file, bytes_of).refined_share == 0.3  # the budget decides


@pytest.mark.parametrize("sizes", [(DIM * 3,), (DIM * N_KV + 1,), (0,)])
def test_biases_of_an_odd_size_are_no_prediction(sizes: tuple[int, ...]) -> None:
    file = model({0: bias(8, 150.0)})
    file.biases["blk.0.attn_k.bias"] = np.ones(sizes, np.float32) * 100
    assert fragile_heads(file, 2, True) == {}


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_biases_are_read_from_the_file(tmp_path: Path, kind: Any) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "biased.gguf"
    want = {"blk.0.attn_k.bias": np.arange(8), "blk.1.attn_q.bias": np.arange(4) - 2}
    writer = gguf.GGUFWriter(path, "qwen2")
    for name, values in want.items():
        writer.add_tensor(name, values.astype(kind))
    writer.add_tensor("blk.0.attn_v.bias", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    biases = read_model_file(path).biases
    assert {name: values.tolist() for name, values in biases.items()} == {
        name: values.tolist() for name, values in want.items()
    }
    assert all(values.dtype == np.float32 for values in biases.values())


@pytest.mark.parametrize("k_bits", [2, 3, 4])
def test_models_without_biases_are_left_alone(tiny_model: Writer, k_bits: int, smollm: Optional[Path]) -> None:
    for path in (tiny_model(), smollm):
        assert path is not None
        config = KVConfig(k_bits=k_bits)
        assert protected(config, read_model_file(path), bytes_of) is config
