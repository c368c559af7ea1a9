"""What is done with a context on a GPU, or an emulated one, and beside it on the CPU's device; for the tests of both."""

from __future__ import annotations

import os

import numpy as np
import pytest
from llama_contexts import Context, quiet

from mikv_cpp.cache import KVCache
from mikv_cpp.config import KVConfig
from mikv_cpp.errors import ConfigError
from mikv_cpp.plugin import native_library, use_device

MIXED = KVConfig(k_bits=3, v_bits=2, refined_bits=6, refined_share=0.1, sinks=3, window=8, policy="h2o")
# Logits have a standard deviation near 2. Sums in another order: some millionths. One row in another place or at other bits:
# a hundredth and more.
MOST_APART = 1e-3
MOST_OF_QUANTIZING = 0.1
# scripts/gpu_check.py names a real one, which multiplies the model's matrices in its own way: rows then differ before they are
# quantized, and only the size of the difference can be bounded.
MOST_APART_ON_HARDWARE = 0.2  # root mean square
DEVICE, HOME = os.environ.get("MIKV_TEST_DEVICE", "MIKVE0"), os.environ.get("MIKV_TEST_HOME", "emulated")
FEW, MANY = 6, 64  # tokens of a micro-batch: of 4 query heads of a KV head, 24 rows are few

MODELS = {
    "llama": {"arch": "llama", "head_dim": 64, "n_head": 4, "n_head_kv": 2},
    "multi-query 128": {"arch": "llama", "head_dim": 128, "n_head": 4, "n_head_kv": 1},
    "gemma2": {"arch": "gemma2", "head_dim": 64, "n_head": 4, "n_head_kv": 2},
    "mpt": {"arch": "mpt", "head_dim": 64, "n_head": 4, "n_head_kv": 4},
}


def there() -> bool:
    """Does the library have the emulated device?"""
    try:
        use_device(DEVICE)
    except ConfigError:
        return False
    finally:
        os.environ.pop("MIKV_DEVICE", None)
    return True


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """Of the CPU and of the devices: the fast ones round, and a code of two bits that then falls on the other side is far off.

    For a module that imports it. The device that a test chose is forgotten at its end.
    """
    quiet()
    monkeypatch.setenv("MIKV_GPU", "plain")
    before = native_library().kernel()
    native_library().select_kernel("plain")
    yield
    native_library().select_kernel(before)
    os.environ.pop("MIKV_DEVICE", None)


def homes(context: Context) -> set[str]:
    return {native_library().home(cache) for cache in context.caches}


def greedy(context: Context, prompt: list[int], n: int) -> tuple[list[int], np.ndarray]:
    """The tokens that follow the prompt, and all logits."""
    rows = []
    for start in range(0, len(prompt), MANY):
        part = prompt[start : start + MANY]
        status, logits = context.decode([(token, start + i, 0) for i, token in enumerate(part)])
        assert status == 0
        rows.append(logits)
    tokens = []
    for i in range(n):
        tokens.append(int(np.argmax(rows[-1][-1])))
        status, logits = context.decode([(tokens[-1], len(prompt) + i, 0)])
        assert status == 0
        rows.append(logits)
    return tokens, np.concatenate(rows)


def check_near(ours: np.ndarray, logits: np.ndarray, most: float = MOST_APART) -> None:
    if DEVICE == "MIKVE0":
        assert np.abs(ours - logits).max() < most
    assert np.sqrt(((ours - logits).astype(np.float64) ** 2).mean()) < MOST_APART_ON_HARDWARE


def held(context: Context) -> KVCache:
    return KVCache(native_library(), context.caches, "")


def check_same(cpu: Context, gpu: Context, most_other: float = 0.0) -> None:
    """Statistics and the precision of each row, but a share of them."""
    most_other = most_other if DEVICE == "MIKVE0" else max(most_other, 0.05)
    a, b = held(cpu).stats(), held(gpu).stats()
    counts = ("demotions",) if DEVICE == "MIKVE0" else ()
    for name in ("tokens", "tokens_exact", "tokens_refined", "tokens_base", "bytes_base", "bytes_refined", *counts):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("mass_exact", "mass_refined", "mass_base"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=2e-3 if DEVICE == "MIKVE0" else 2e-2), name
    for row in a.by_layer:
        maps = [held(context).precision_map(row.layer) for context in (cpu, gpu)]
        assert (maps[0] != maps[1]).mean() <= most_other, f"layer {row.layer}: rows of another precision"


PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, 256, 110)]
