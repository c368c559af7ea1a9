"""Pools smaller than the context: who is kept, that nothing remains of the others, and that the rest of the store knows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_check import check_step
from native_cache import NativeCache, config_bytes
from native_library import check, lib
from scenes import Scene, View
from tables import POLICIES
from tier_check import Diary, check_dead_rows_go_first, check_policy, check_rows, check_window

from mikv_cpp.reference.cache import ReferenceCache
from mikv_cpp.reference.layout import Config, Shape, rows_for

SHAPE = Shape(n_layer=1, n_head_kv=2, n_cells=200, n_stream=2, head_dim_k=32, head_dim_v=64)
POOL = Config(2, 2, 8, rows=0.25, refined_share=1.0, center_keys=False)  # of whole rows: all at 8 bits
LAYOUTS = (
    POOL,
    replace(POOL, refined_bits=16),
    replace(POOL, k_bits=3, v_bits=3, refined_bits=4, refined_share=0.0),
    replace(POOL, sinks=3, window=8),
    replace(POOL, sinks=3, window=8, refined_share=0.4),
    replace(POOL, sinks=3, window=8, refined_share=0.4, refined_bits=16),
    replace(POOL, rows=30.0, center_keys=True, refined_share=0.5),
)


@pytest.fixture(autouse=True)
def plain_kernel():
    check(lib.mikv_kernel_select(b"plain"))
    yield
    check(lib.mikv_kernel_select(b"auto"))


@pytest.mark.parametrize("batch", [9, 90])
@pytest.mark.parametrize("config", LAYOUTS)
def test_as_many_tokens_are_kept_as_there_are_rows(config, batch):
    """And sinks and window are among them; the others read as zeros, and are counted."""
    n_rows = rows_for(config, SHAPE)
    with NativeCache(config, SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        for fed in range(batch, 181, batch):
            diary.feed([0] * batch)
            kept = diary.bits() > 0
            assert (kept.sum(axis=1) == min(fed, n_rows)).all(), f"{kept.sum(axis=1)} of {fed} tokens are kept, rows: {n_rows}"
            assert kept[:, : min(config.sinks, fed)].all(), "a sink was dropped"
            assert kept[:, max(0, fed - config.window) : fed].all(), "a recent token was dropped"
        check_rows(diary)
        stats = cache.stats()
        assert stats.rows_dropped == 2 * (stats.tokens - min(fed, n_rows))
        assert stats.rows_exact + stats.rows_refined + stats.rows_base + stats.rows_dropped == stats.tokens * 2
        dropped = np.argwhere(~kept[:, :fed])
        assert not cache.read(0, 0, 0, 0, fed)[dropped[:, 1], dropped[:, 0]].any()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_decides_who_is_dropped(policy):
    with NativeCache(replace(POOL, policy=policy), SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE, View(gqa=3)))
        check_policy(diary, policy, [1] * 50 + [3, 1, 2, 1, 1, 5] * 4, rows_for(POOL, SHAPE))


@pytest.mark.parametrize("policy", ["h2o", "recent"])
def test_each_sequence_keeps_its_window(policy):
    with NativeCache(replace(POOL, sinks=2, window=6, policy=policy), SHAPE) as cache:
        rng = np.random.default_rng(0)
        batches = [[0] * 30, [1] * 9, [2]] + [list(rng.integers(0, 3, n)) for n in (1, 4, 20, 1, 1, 13, 2, 30, 5)]
        check_window(Diary(cache, Scene(SHAPE)), [[int(s) for s in batch] for batch in batches])


def test_dead_rows_are_dropped_first():
    with NativeCache(replace(POOL, rows=0.3), SHAPE) as cache:
        check_dead_rows_go_first(Diary(cache, Scene(SHAPE)), n_dead=40, n_alive=110, patience=64)


@pytest.mark.parametrize("config", LAYOUTS)
def test_what_is_kept_is_what_the_definition_keeps(config):
    reference = ReferenceCache(replace(config, center_keys=False), SHAPE)
    with NativeCache(replace(config, center_keys=False), SHAPE) as cache:
        scene = Scene(SHAPE, View(gqa=2), seed=3)
        for n in (12, 1, 9, 1, 1, 12, 5, 12, 12, 1, 3):
            step = scene.step([0] * n)
            assert np.allclose(cache.step(0, step), reference.step(0, step), rtol=1e-3, atol=1e-4)
            assert np.array_equal(cache.precision(0, 0), reference.precision(0, 0))
        for value in (0, 1):
            assert np.allclose(cache.read(0, value, 0, 0, 80), reference.read(0, value, 0, 0, 80), rtol=1e-6, atol=1e-6)
        assert cache.stats().demotions == reference.demotions


@pytest.mark.parametrize("config", LAYOUTS)
def test_overwritten_cells_give_their_rows_back(config):
    with NativeCache(config, SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        diary.feed([0] * 100)
        for n in (1, 30, 60, 100):
            diary.feed([0] * n, np.sort(diary.scene.rng.choice(100, n, replace=False))[None])
            stats = cache.stats()
            kept = (diary.bits() > 0).sum(axis=1)
            assert (kept <= rows_for(config, SHAPE)).all()
            assert stats.rows_exact + stats.rows_refined + stats.rows_base == kept.sum()
            assert stats.tokens == 100
        check_rows(diary)


@pytest.mark.parametrize("config", LAYOUTS)
def test_a_state_comes_back_as_it_was_read(config):
    with NativeCache(config, SHAPE) as cache, NativeCache(config, SHAPE) as other:
        diary = Diary(cache, Scene(SHAPE))
        for n in (90, 1, 1, 40, 1):
            diary.feed([0] * n)
        rows = [cache.read(0, value, 0, 0, 133) for value in (0, 1)]
        for value in (0, 1):
            other.write(0, value, 0, 0, rows[value])
        assert np.array_equal(other.precision(0, 0) > 0, cache.precision(0, 0) > 0), (
            "a dropped token came back, or a kept one did not"
        )
        sinks = other.precision(0, 0) == 16
        back = other.read(0, 1, 0, 0, 133)
        assert np.array_equal(back[sinks.T[:133]], rows[1][sinks.T[:133]])
        assert np.abs(back - rows[1]).max() < 4, "values of the scene lie within some standard deviations"


def test_a_longer_state_than_the_pool_keeps_its_sinks_and_its_end():
    config = replace(POOL, sinks=2, window=4)
    rng = np.random.default_rng(0)
    with NativeCache(config, SHAPE) as cache:
        for value, dim in ((0, 32), (1, 64)):
            cache.write(0, value, 0, 0, rng.normal(size=(120, 2, dim)).astype(np.float32))
        kept = cache.precision(0, 0)[0] > 0
        assert np.array_equal(np.flatnonzero(kept), [0, 1, *range(72, 120)])


@pytest.mark.parametrize("config", LAYOUTS)
def test_streams_are_copied_and_live_on(config):
    with NativeCache(config, SHAPE) as cache:
        scene = Scene(SHAPE, View(gqa=2))
        for n in (60, 1, 20):
            cache.step(0, scene.step([0] * n))
        cache.copy_stream(0, 1)
        assert np.array_equal(cache.precision(0, 0), cache.precision(0, 1))
        scene.sequence[1], scene.position[1] = scene.sequence[0], scene.position[0]
        before = cache.precision(0, 0)
        for n in (1, 30, 1):
            check_step(cache, 0, scene.step([0] * n, first_stream=1), "plain")
        assert np.array_equal(cache.precision(0, 0), before)


def test_a_cleared_pool_is_empty():
    with NativeCache(POOL, SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        diary.feed([0] * 100)
        cache.clear()
        assert not diary.bits().any()
        assert (cache.stats().tokens, cache.stats().rows_dropped, cache.stats().demotions) == (0, 0, 0)
        diary = Diary(cache, Scene(SHAPE, seed=1))
        diary.feed([0] * 40)
        assert (diary.bits() == 8).sum() == 80


def test_as_many_rows_as_cells_are_no_pool():
    shape = Shape(n_head_kv=1, n_cells=300)
    assert config_bytes(Config(rows=300.0), shape) == config_bytes(Config(), shape)
    assert config_bytes(Config(rows=299.0), shape) != config_bytes(Config(), shape)


def test_a_long_context_takes_the_bytes_of_a_short_one():
    """A pool of 4096 rows over 32768 cells, against 4096 cells: only the tables of cells grow, 13 bytes for each."""
    short, long = (Shape(8, 4, n, 1, 128, 128) for n in (4096, 32768))
    whole = config_bytes(Config(4, 2, 5, sinks=4, window=64, refined_share=0.12), short)
    pool = config_bytes(Config(4, 2, 5, sinks=4, window=64, refined_share=0.12, rows=4096.0), long)
    maps = 8 * 4 * 4096 * 8
    exact = 8 * 4 * 8 * 512  # two sequences more have exact sinks
    assert pool == whole + maps + exact + 13 * (32768 - 4096)


@pytest.mark.parametrize("refined_bits", [2, 4, 8, 16])
def test_a_budget_buys_rows(refined_bits):
    """The same bytes hold one token at 16 bits, or about two at 8, four at 4, eight at 2."""
    shape = Shape(4, 2, 8192, 1, 128, 128)
    config = replace(POOL, refined_bits=refined_bits, sinks=4, window=32)
    budget = int(0.125 * 2 * 4 * 8192 * 2 * 256)
    with NativeCache(config, shape, budget_bytes=budget) as cache:
        stats = cache.stats()
        assert 0.98 * budget < config_bytes(config, shape, budget) <= budget
        rows = stats.config.rows * 8192
        tables = 13 * 8192 + 512 * 2 * 256 * 2  # of cells, and staging
        bits = 16 if refined_bits == 16 else refined_bits + 0.25  # a scale and a minimum for each 64 values
        each = 4 * 2 * (256 * bits / 8 + 2 + 8)  # and of the mean key; and whose row it is, and its score
        assert rows == pytest.approx((budget - tables) / each, rel=0.03), rows
