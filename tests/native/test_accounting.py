"""Bytes: every one that is reported is an array of FORMAT.md, and budgets hold."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from native_cache import NativeCache, config_bytes
from native_layout import head_bytes, head_count, table_bytes
from native_library import NativeError, lib
from scenes import Scene

from mikv_cpp.reference.layout import Config, Shape, exact_for, slots_for

PAPER = Config(2, 2, 8, group=64, sinks=4, window=64, refined_share=0.2)

LAYOUTS = (
    (PAPER, Shape(3, 2, 1000, 2, 64, 64)),
    (Config(3, 2, 5, sinks=4, window=64, refined_share=0.28), Shape(2, 3, 777, 1, 128, 128)),
    (Config(4, 4, 8, group=32, refined_share=0.0), Shape(1, 1, 128, 1, 96, 64)),
    (Config(2, 4, 4, sinks=64, refined_share=1.0), Shape(1, 8, 20000, 1, 32, 256)),
    (Config(4, 3, 6, sinks=1, window=300, refined_share=0.1), Shape(1, 2, 200, 4, 192, 128)),
    (Config(4, 2, 5, sinks=4, window=64, policy="expected"), Shape(2, 2, 500, 2, 64, 64)),
    (Config(2, 2, 16, sinks=4, window=64, refined_share=0.2), Shape(2, 2, 900, 1, 128, 128)),
    (Config(4, 2, 5, sinks=4, window=64, rows=0.25), Shape(2, 2, 5000, 2, 64, 64)),
    (Config(2, 2, 8, sinks=4, window=64, rows=1000, refined_share=1.0), Shape(2, 2, 3000, 1, 64, 96)),
    (Config(2, 2, 16, sinks=4, window=64, rows=1000, refined_share=1.0), Shape(2, 2, 3000, 1, 64, 96)),
    (Config(2, 3, 8, sinks=4, window=64, lead_share=0.25), Shape(2, 2, 900, 2, 128, 64)),
    (Config(0, 2, 4, lead_share=0.5, lead_bits=3, group=64, balance="basis"), Shape(1, 2, 700, 1, 128, 128)),
    (Config(3, 2, 16, window=9, lead_share=0.6, balance="salience", rows=300), Shape(1, 2, 700, 1, 96, 96)),
    (Config(4, 2, 5, sinks=4, window=64, policy="rdkv*v", balance="alike"), Shape(2, 2, 500, 2, 64, 64)),
)


def head_state_bytes(config: Config, shape: Shape) -> int:
    """Room for what a head remembers besides FORMAT.md's arrays: counters, sums of keys and of queries."""
    n_sums = 3 if config.policy == "expected" else 1
    dim = shape.head_dim_k
    settled = {"off": 0, "basis": 4 * dim * dim}.get(config.balance, 2 * dim)
    return 128 + 4 * n_sums * dim + -(-shape.n_cells // 128) + settled


@pytest.mark.parametrize(("config", "shape"), LAYOUTS)
def test_total_is_the_sum_of_the_arrays(config, shape):
    with NativeCache(config, shape) as cache:
        stats = cache.stats()
        assert cache.n_slots == slots_for(config, shape)
        head = head_bytes(config, shape, cache.n_slots, exact_for(config, shape))
        n_heads = head_count(shape)
        assert stats.bytes_base == n_heads * head["base"]
        assert stats.bytes_refined == n_heads * head["refined"]
        arrays = n_heads * head["metadata"] + table_bytes(shape)
        assert arrays <= stats.bytes_metadata <= arrays + n_heads * head_state_bytes(config, shape)
        parts = stats.bytes_base + stats.bytes_refined + stats.bytes_metadata + stats.bytes_staging
        assert stats.bytes_total == parts
        f16 = 2 * shape.n_cells * shape.n_stream * shape.n_layer * shape.n_head_kv
        assert stats.bytes_f16 == f16 * (shape.head_dim_k + shape.head_dim_v)


@pytest.mark.parametrize(("config", "shape"), LAYOUTS)
def test_layers_add_up(config, shape):
    with NativeCache(config, shape) as cache:
        layers = [cache.layer_stats(i) for i in range(shape.n_layer)]
        head = head_bytes(config, shape, cache.n_slots, exact_for(config, shape))
        for layer in layers:
            assert layer.bytes_total >= sum(head.values()) * shape.n_stream * shape.n_head_kv
        assert sum(layer.bytes_total for layer in layers) <= cache.stats().bytes_total


@pytest.mark.parametrize(
    ("shape", "most"), [(Shape(30, 3, 8192, 1, 64, 64), 0.230), (Shape(28, 2, 8192, 1, 128, 128), 0.227)], ids=("64", "128")
)
def test_a_fifth_refined_takes_less_than_a_quarter_of_f16(shape, most):
    """20 % refined to 8 bits, the rest at 2: all metadata and the staging of 512 tokens included."""
    with NativeCache(PAPER, shape) as cache:
        cache.step(0, Scene(shape).step([0] * 512))
        stats = cache.stats()
        assert stats.bytes_staging > 0
        assert stats.bytes_total <= most * stats.bytes_f16, f"{stats.bytes_total / stats.bytes_f16:.2%} of f16"


@pytest.mark.parametrize(("config", "shape"), LAYOUTS)
def test_config_bytes_foretells_what_a_working_cache_takes(config, shape):
    said = config_bytes(config, shape)
    with NativeCache(config, shape) as cache:
        scene = Scene(shape)
        cache.step(0, scene.step([0] * min(512, shape.n_cells)))
        for stream in range(shape.n_stream):
            cache.step(0, scene.step([1], cells=np.array([[0]]), first_stream=stream))
        took = cache.stats().bytes_total
        # a stream that saw fewer than 512 tokens at once has a shorter list of them, four bytes each
        assert took <= said <= took + 64 * shape.n_layer * shape.n_stream + 4 * 512 * shape.n_stream


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="skipped: the sanitizer keeps memory of its own")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_the_memory_is_really_that_small():
    """Resident memory of a full cache against what it reports, in a process of its own, where no freed memory waits."""
    done = subprocess.run([sys.executable, "-c", FILL], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    grown, said = map(int, done.stdout.split())
    assert said > 30e6
    assert 0.95 * said <= grown <= 1.05 * said + 2e6, (grown, said)


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

#: Filled by mikv_cache_write, so that no working memory of attention grows beside it.
FILL = """
import os
import numpy as np
from native_cache import NativeCache
from mikv_cpp.reference.layout import Config, Shape

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

rows = np.random.default_rng(0).normal(size=(4096, 4, 128)).astype(np.float32)
before = resident()
cache = NativeCache(Config(2, 2, 8, sinks=4, window=64, refined_share=0.2), Shape(16, 4, 4096, 1, 128, 128))
for layer in range(16):
    for value in (0, 1):
        for first in range(0, 4096, 512):
            cache.write(layer, value, 0, first, rows[first : first + 512])
print(resident() - before, cache.stats().bytes_total)
"""


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [Shape(4, 2, 2048, 1, 64, 64), Shape(2, 3, 1500, 2, 96, 128)])
def test_a_budget_is_kept_and_used(share, shape):
    config = Config(2, 2, 8, sinks=4, window=16)
    least, most = config_bytes(Config(2, 2, 8, sinks=4, window=16, refined_share=0), shape), 0
    most = config_bytes(Config(2, 2, 8, sinks=4, window=16, refined_share=1), shape)
    budget = int(least + share * (most - least))
    with NativeCache(config, shape, budget_bytes=budget) as cache:
        cache.step(0, Scene(shape).step([0] * 512))
        took = cache.stats().bytes_total
        slot = (most - least) / shape.n_cells
        assert took <= budget
        assert config_bytes(config, shape, budget) > budget - 2 * slot - 2048 * shape.n_layer, "the budget is not used"


def test_a_budget_too_small_names_the_smallest_that_works():
    shape, config = Shape(4, 2, 2048, 1, 64, 64), Config(2, 2, 8, sinks=4, window=64)
    with pytest.raises(NativeError) as error:
        NativeCache(config, shape, budget_bytes=1000)
    assert error.value.status == lib.MIKV_ERROR_BUDGET
    numbers = [int(word) for word in str(error.value).replace(":", " ").split() if word.isdigit()]
    assert numbers[0] == 1000
    smallest = numbers[-1]
    with NativeCache(config, shape, budget_bytes=smallest) as cache:
        assert cache.n_slots >= 64
        cache.step(0, Scene(shape).step([0] * 512))
        assert cache.stats().bytes_total <= smallest
    with pytest.raises(NativeError) as error:
        NativeCache(config, shape, budget_bytes=smallest - 1)
    assert error.value.status == lib.MIKV_ERROR_BUDGET


def test_what_is_used_grows_with_the_tokens():
    shape = Shape(1, 2, 512, 1, 64, 64)
    with NativeCache(PAPER, shape) as cache:
        scene = Scene(shape)
        used = [cache.stats().bytes_used]
        for _ in range(4):
            cache.step(0, scene.step([0] * 100))
            stats = cache.stats()
            used.append(stats.bytes_used)
            assert stats.bytes_used_f16 == stats.tokens * 2 * 2 * 2 * 64
            assert stats.bytes_used <= stats.bytes_base + stats.bytes_refined + stats.bytes_metadata
        assert used[0] == 0
        assert used == sorted(set(used))
