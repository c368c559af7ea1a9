"""The refinement pool: who is exact, who is refined, who is demoted, and that demotion loses nothing but refinement."""

from __future__ import annotations

import numpy as np
import pytest
from native_cache import NativeCache
from native_library import check, ffi, lib
from scenes import Scene, View
from tables import POLICIES
from tier_check import (
    Diary,
    check_dead_rows_go_first,
    check_policy,
    check_pool_fills_first,
    check_rows,
    check_scores,
    check_window,
)

from mikv_cpp.reference.layout import Config, Shape

SHAPE = Shape(n_head_kv=2, n_cells=160, head_dim_k=32, head_dim_v=64)


@pytest.fixture(autouse=True)
def plain_kernel():
    check(lib.mikv_kernel_select(b"plain"))
    yield
    check(lib.mikv_kernel_select(b"auto"))


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize(("sinks", "window"), [(0, 0), (3, 0), (0, 5), (4, 8)])
@pytest.mark.parametrize("policy", POLICIES)
def test_everything_is_refined_until_the_pool_is_full(policy, sinks, window, batch):
    config = Config(sinks=sinks, window=window, refined_share=0.25, policy=policy)
    with NativeCache(config, SHAPE) as cache:
        assert cache.n_slots == 40
        check_pool_fills_first(Diary(cache, Scene(SHAPE)), 40, batch)
        stats = cache.stats()
        assert stats.rows_refined == 40 * 2
        assert stats.rows_exact == sinks * 2
        assert stats.rows_exact + stats.rows_refined + stats.rows_base == stats.tokens * 2


def test_nothing_is_demoted_while_the_pool_has_room():
    with NativeCache(Config(refined_share=1.0), SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        for _ in range(4):
            diary.feed([0] * 40)
        assert cache.stats().demotions == 0
        assert (diary.bits() == 8).all()


@pytest.mark.parametrize(
    ("k_bits", "v_bits", "refined_bits"), [(2, 2, 8), (3, 2, 5), (2, 4, 4), (3, 4, 6), (4, 3, 8), (2, 3, 8)]
)
def test_rows_read_back_as_their_precision_promises(k_bits, v_bits, refined_bits):
    """Refined, demoted and base rows alike: so a demoted row's base is what it was when the row was stored."""
    config = Config(k_bits, v_bits, refined_bits, sinks=3, window=6, center_keys=False)
    with NativeCache(config, SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        for n in (30, 1, 1, 50, 1, 7, 20):
            diary.feed([0] * n)
            check_rows(diary)
        assert cache.stats().demotions > 0


def test_one_share_of_zero_leaves_all_at_base():
    with NativeCache(Config(4, 4, 8, refined_share=0.0, center_keys=False), SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        diary.feed([0] * 50)
        assert (diary.bits()[:, :50] == 4).all()
        check_rows(diary)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_sequence_keeps_its_window(policy):
    config = Config(sinks=2, window=6, refined_share=0.3, policy=policy)
    with NativeCache(config, SHAPE) as cache:
        rng = np.random.default_rng(0)
        batches = [[0] * 30, [1] * 9, [2]] + [list(rng.integers(0, 3, n)) for n in (1, 4, 20, 1, 1, 13, 2, 30, 5)]
        check_window(Diary(cache, Scene(SHAPE)), [[int(s) for s in batch] for batch in batches])


def test_sinks_of_the_first_sequence_are_exact_for_good():
    with NativeCache(Config(sinks=4, window=4, refined_share=0.1, center_keys=False), SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        for n in (2, 1, 30, 1, 90):
            diary.feed([0] * n)
            check_rows(diary)
            assert (diary.bits()[:, : min(4, diary.now[0])] == 16).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_decides(policy):
    config = Config(refined_share=0.2, policy=policy, center_keys=False)
    with NativeCache(config, SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE, View(gqa=3)))
        check_policy(diary, policy, [1] * 60 + [3, 1, 2, 1, 1, 5] * 6, cache.n_slots)


def test_scores_are_the_attention_mass():
    with NativeCache(Config(refined_share=1.0), SHAPE) as cache:
        check_scores(Diary(cache, Scene(SHAPE, View(gqa=2))), [10, 1, 1, 5, 1, 1, 1])


def test_shares_of_mass_add_up():
    with NativeCache(Config(sinks=2, window=4), SHAPE) as cache:
        stats = cache.stats()
        assert (stats.mass_exact, stats.mass_refined, stats.mass_base) == (0, 0, 0)
        diary = Diary(cache, Scene(SHAPE, View(gqa=2)))
        for n in [60] + [1] * 30:
            diary.feed([0] * n)
        for stats in (cache.stats(), cache.layer_stats(0)):
            assert stats.mass_exact + stats.mass_refined + stats.mass_base == pytest.approx(1, abs=1e-6)
            assert min(stats.mass_exact, stats.mass_refined, stats.mass_base) > 0


@pytest.mark.parametrize(("sinks", "window"), [(0, 0), (0, 8), (2, 8)])
@pytest.mark.parametrize("policy", POLICIES)
def test_dead_rows_lose_their_refinement_first(policy, sinks, window):
    config = Config(sinks=sinks, window=window, refined_share=0.3, policy=policy)
    with NativeCache(config, SHAPE) as cache:
        check_dead_rows_go_first(Diary(cache, Scene(SHAPE)), n_dead=40, n_alive=110, patience=64)


def test_overwritten_cells_give_their_slots_back():
    with NativeCache(Config(sinks=2, window=4, refined_share=0.3, center_keys=False), SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        diary.feed([0] * 100)
        rng = diary.scene.rng
        for n in (1, 5, 30, 1, 60, 100):
            diary.feed([0] * n, np.sort(rng.choice(100, n, replace=False))[None])
            bits = diary.bits()
            stats = cache.stats()
            assert (bits == 8).sum() == stats.rows_refined <= 2 * cache.n_slots
            assert (bits == 16).sum() == stats.rows_exact
            assert stats.tokens == 100
            check_rows(diary)


def test_a_registered_policy_is_asked_and_obeyed():
    asked = []

    @ffi.callback("mikv_policy_fn")
    def lowest_cells(_user, query, priority):
        asked.append((query.layer, query.head, query.n, query.now))
        for i in range(query.n):
            assert 1 <= query.born[i] <= query.now
            priority[i] = -float(query.cell[i])

    check(lib.mikv_policy_register(b"lowest cells", lowest_cells, ffi.NULL))
    with NativeCache(Config(refined_share=0.25, policy="lowest cells"), SHAPE) as cache:
        diary = Diary(cache, Scene(SHAPE))
        for n in (30, 1, 40, 1, 20):
            diary.feed([0] * n)
        assert np.array_equal(np.flatnonzero((diary.bits() == 8).all(axis=0)), np.arange(40))
    assert {head for _, head, _, _ in asked} == {0, 1}
    assert asked[-1][3] == 92


@pytest.mark.parametrize("name", [b"h2o", b"", b"a name that is longer than any policy may have"])
def test_a_policy_name_that_cannot_be_used_is_refused(name):
    @ffi.callback("mikv_policy_fn")
    def nothing(_user, _query, _priority):
        return None

    assert lib.mikv_policy_register(name, nothing, ffi.NULL) == lib.MIKV_ERROR_ARGUMENT
