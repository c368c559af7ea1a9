"""Caches to bytes and back: nothing is lost in an equal one, little in another, and nothing happens to a cache that refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_cache import NativeCache
from native_library import NativeError, check, lib
from scenes import Scene, View
from tables import POLICIES, pool_cases, precision_cases, shape_cases

from mikv_cpp.reference.layout import Config, Shape

CASES = precision_cases() + shape_cases() + pool_cases()
SHAPE = Shape(n_layer=2, n_head_kv=2, n_cells=300, n_stream=2, head_dim_k=64, head_dim_v=32)
CONFIG = Config(3, 2, 8, sinks=2, window=5, policy="normalized")
VIEW = View(gqa=2)


def feed(cache: NativeCache, scene: Scene, n: int) -> list[np.ndarray]:
    """n tokens in all streams and layers; what attention gave."""
    step = scene.step([0] * n, n_stream=cache.shape.n_stream)
    return [cache.step(layer, step) for layer in range(cache.shape.n_layer)]


def filled(config: Config, shape: Shape, view: View = VIEW, batches=(100, 57, 1, 1, 3)) -> tuple[NativeCache, Scene]:
    cache, scene = NativeCache(config, shape), Scene(shape, view)
    for n in batches:
        feed(cache, scene, n)
    return cache, scene


def held(scene: Scene) -> np.ndarray:
    """The cells that hold a token, all streams."""
    return np.flatnonzero((scene.sequence >= 0).ravel())


def snapshot(cache: NativeCache) -> list[np.ndarray]:
    """Everything that can be asked of the cells."""
    out = []
    for layer in range(cache.shape.n_layer):
        for stream in range(cache.shape.n_stream):
            out += [cache.read(layer, value, stream, 0, cache.shape.n_cells) for value in (0, 1)]
            out += [cache.precision(layer, stream), cache.scores(layer, stream)]
    return out


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_round_trip_changes_no_bit(case):
    """Nor does what is stored and attended after it."""
    cache, scene = filled(case.config, case.shape, case.view, case.batches)
    other = NativeCache(case.config, case.shape)
    with cache, other:
        state = cache.write_state(held(scene))
        other.read_state(state)
        assert same(snapshot(cache), snapshot(other))
        assert other.write_state(held(scene)) == state
        counts = ("tokens", "bytes_used", "rows_exact", "rows_refined", "rows_base", "rows_dropped", "demotions")
        counts += ("mass_exact", "mass_refined", "mass_base")
        assert all(getattr(cache.stats(), name) == getattr(other.stats(), name) for name in counts)
        for n in (1, 4, 1):
            step = scene.step([0] * n, n_stream=case.shape.n_stream)
            assert np.array_equal(cache.step(0, step), other.step(0, step))
        assert cache.write_state(held(scene)) == other.write_state(held(scene))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_goes_on_as_if_nothing_had_happened(policy):
    config = replace(CONFIG, policy=policy, refined_share=0.1)
    cache, scene = filled(config, SHAPE)
    other = NativeCache(config, SHAPE)
    with cache, other:
        other.read_state(cache.write_state(held(scene)))
        for n in (1, 1, 40, 1, 1):
            step = scene.step([0] * n, n_stream=2)
            for layer in range(2):
                assert np.array_equal(cache.step(layer, step), other.step(layer, step))
        assert same(snapshot(cache), snapshot(other))


@pytest.mark.parametrize("balance", ["off", "max", "rms"])
@pytest.mark.parametrize("rotate", [False, True])
def test_spaces_of_their_own_come_along(balance, rotate):
    config, shape = replace(CONFIG, balance=balance, rotate=rotate), replace(SHAPE, head_dim_k=80, head_dim_v=48)
    cache, scene = filled(config, shape)
    with cache, NativeCache(config, shape) as other:
        other.read_state(cache.write_state(held(scene)))
        assert same(snapshot(cache), snapshot(other))
        step = scene.step([0], n_stream=2)
        assert np.array_equal(cache.step(1, step), other.step(1, step))


def test_an_empty_cache_is_a_state_too():
    cache, _ = filled(CONFIG, SHAPE)
    with cache, NativeCache(CONFIG, SHAPE) as empty:
        state = empty.write_state(np.zeros(0, np.int64))
        cache.read_state(state)
        assert cache.stats().tokens == 0
        assert same(snapshot(cache), snapshot(empty))


def test_a_larger_context_takes_the_same_bytes():
    cache, scene = filled(CONFIG, SHAPE)
    larger = replace(SHAPE, n_cells=1000)
    with cache, NativeCache(CONFIG, larger) as other:
        other.read_state(cache.write_state(held(scene)))
        for layer in range(2):
            for value in (0, 1):
                got, want = (c.read(layer, value, 0, 0, 162) for c in (other, cache))
                assert np.array_equal(got, want)
            assert np.array_equal(other.precision(layer, 1)[:, :162], cache.precision(layer, 1)[:, :162])


def test_fewer_slots_demote_and_round_nothing():
    """Rows that keep their tier keep their bytes; the window and the sinks keep theirs."""
    config = replace(CONFIG, refined_share=1.0, center_keys=False)
    cache, scene = filled(config, SHAPE)
    with cache, NativeCache(replace(config, refined_share=0.1), SHAPE) as other:
        other.read_state(cache.write_state(held(scene)))
        bits, before = other.precision(0, 0)[:, :162], cache.precision(0, 0)[:, :162]
        assert ((bits == 8).sum(axis=1) == 30).all()
        assert (bits[:, -5:] == 8).all()
        assert (bits[:, :2] == 16).all()
        kept = (bits == before).T
        assert np.array_equal(other.read(0, 0, 0, 0, 162)[kept], cache.read(0, 0, 0, 0, 162)[kept])
        apart = np.abs(other.read(0, 0, 0, 0, 162) - cache.read(0, 0, 0, 0, 162))
        assert apart[~kept].max() > 0


CONVERSIONS = {
    "more bits": (Config(2, 2, 8, sinks=2, window=5), Config(4, 4, 8, sinks=2, window=5, refined_share=0.5)),
    "fewer bits": (Config(4, 4, 8, sinks=2, window=5), Config(2, 3, 5, sinks=2, window=5)),
    "uncentred": (Config(3, 3, 8, sinks=2), Config(3, 3, 8, sinks=2, center_keys=False)),
    "centred": (Config(3, 3, 8, sinks=2, center_keys=False), Config(3, 3, 8, sinks=2)),
    "to f16": (Config(3, 2, 8, sinks=2), Config(3, 2, 16, sinks=2)),
    "from f16": (Config(3, 2, 16, sinks=2), Config(3, 2, 8, sinks=2)),
    "other group": (Config(4, 4, 8, sinks=2, group=32), Config(4, 4, 8, sinks=2, group=0)),
    "rotated": (Config(4, 4, 8, sinks=2), Config(4, 4, 8, sinks=2, rotate=True)),
    "balanced": (Config(4, 4, 8, sinks=2, balance="rms", rotate=True), Config(4, 4, 8, sinks=2)),
    "fewer sinks": (Config(4, 4, 8, sinks=4), Config(4, 4, 8, sinks=1)),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_another_configuration_costs_one_rounding(name):
    """A row is off by no more than its new codec may be: half a bin of the group's range, and exact rows stay exact.

    A group of G values spans at most 2 max |x| (of keys: of x minus a mean of such, twice that), 17/16 of it after the rounding
    of `range`; where either space is rotated or balanced the bound is in that space, sqrt(64) times the largest value at most.
    """
    old, new = CONVERSIONS[name]
    shape = Shape(n_layer=1, n_head_kv=2, n_cells=300, head_dim_k=64, head_dim_v=64)
    cache, scene = filled(old, shape)
    with cache, NativeCache(new, shape) as other:
        other.read_state(cache.write_state(held(scene)))
        bits, stats = other.precision(0, 0)[:, :162], other.stats()
        assert stats.tokens == 162
        n_exact = min(old.sinks, new.sinks)
        atol = 2**-11 * 8 * np.abs(cache.read(0, 0, 0, 0, 4)).max() if new.rotate or old.balance != "off" else 1e-6
        for value, base in ((0, new.k_bits), (1, new.v_bits)):
            before, after = cache.read(0, value, 0, 0, 162), other.read(0, value, 0, 0, 162)
            apart = np.abs(after - before).max(axis=2).T
            largest = np.abs(before).max() * (1 if value else 2) * (8 if new.rotate or old.balance != "off" else 1)
            refined = 11 if new.refined_bits == 16 else new.refined_bits
            bound = 2 * largest * 17 / 16 / 2 ** (np.where(bits == new.k_bits, base, refined) + 1)
            assert (apart[bits != 16] <= bound[bits != 16]).all()
            assert np.allclose(after[:n_exact], before[:n_exact], rtol=2**-10, atol=atol)
        assert np.isfinite(feed(other, scene, 3)[0]).all()


def test_cells_that_close_ranks_keep_their_rows():
    """llama.cpp puts a state's cells one behind the other: keys come into other blocks and are stored again."""
    cache, scene = filled(CONFIG, SHAPE)
    scene.forget(0, np.arange(20, 150))
    with cache, NativeCache(CONFIG, SHAPE) as other:
        cells = held(scene)
        other.read_state(cache.write_state(cells))
        old = cells[cells < 300]
        assert other.stats().tokens == cells.size
        for value in (0, 1):
            before, after = cache.read(0, value, 0, 0, 300)[old], other.read(0, value, 0, 0, len(old))
            assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9
            assert np.array_equal(after[:2], before[:2])  # sinks
        assert np.array_equal(other.read(0, 1, 1, 0, 300), cache.read(0, 1, 1, 0, 300))  # the other stream did not move


def test_a_smaller_pool_keeps_the_best():
    config = Config(3, 2, 8, sinks=2, window=5, rows=120, policy="h2o", refined_share=0.5)
    cache, scene = filled(config, SHAPE)
    with cache, NativeCache(replace(config, rows=40), SHAPE) as other:
        other.read_state(cache.write_state(held(scene)))
        bits = other.precision(0, 0)[:, :162]
        assert ((bits > 0).sum(axis=1) == 40).all()
        assert (bits[:, :2] == 16).all()
        assert (bits[:, -5:] > 0).all()


REFUSALS = {
    "another head size": (replace(SHAPE, head_dim_k=128), CONFIG, "2 layers with 2 heads of 64 and 32"),
    "another number of layers": (replace(SHAPE, n_layer=1), CONFIG, "load it into the same model"),
    "another number of streams": (replace(SHAPE, n_stream=1), CONFIG, "as many sequences"),
    "a smaller context": (replace(SHAPE, n_cells=100), CONFIG, "162 tokens, and this cache has 100"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused(name):
    shape, config, words = REFUSALS[name]
    cache, scene = filled(CONFIG, SHAPE)
    with cache, NativeCache(config, shape) as other:
        with pytest.raises(NativeError, match=words) as refused:
            other.read_state(cache.write_state(held(scene)))
        assert refused.value.status == lib.MIKV_ERROR_STATE
        assert other.stats().tokens == 0


def test_tokens_that_were_dropped_do_not_come_back():
    cache, scene = filled(replace(CONFIG, rows=0.2), SHAPE)
    with cache, NativeCache(CONFIG, SHAPE) as other, pytest.raises(NativeError, match="tokens were dropped from the state"):
        other.read_state(cache.write_state(held(scene)))


def test_a_damaged_state_leaves_the_cache_alone():
    cache, scene = filled(CONFIG, SHAPE)
    with cache:
        state = cache.write_state(held(scene))
        before = snapshot(cache)
        for damaged in (state[:-1], state + b"\0", state[:100], b"", b"\xff" * 200):
            with pytest.raises(NativeError, match="the state is"):
                cache.read_state(damaged)
        assert same(snapshot(cache), before)
        assert cache.write_state(held(scene)) == state


def test_arguments_are_checked():
    cache, scene = filled(CONFIG, SHAPE)
    with cache, NativeCache(CONFIG, SHAPE) as stranger:
        with pytest.raises(NativeError, match="in ascending order"):
            cache.write_state(np.array([3, 3]))
        with pytest.raises(NativeError, match="in ascending order"):
            cache.write_state(np.array([600]))
        with pytest.raises(NativeError, match="2 cells for a state"):
            cache.read_state(cache.write_state(held(scene)), np.array([0, 1]))
        with pytest.raises(NativeError, match="not of one layout"):
            check(lib.mikv_state_swap(cache.id, stranger.id))


def test_a_state_is_as_large_as_what_the_tokens_take():
    """Within 5 %, of the sizes of a real model: SmolLM2-135M's heads, a few of its layers, a thousand tokens."""
    shape = Shape(n_layer=6, n_head_kv=3, n_cells=4096)
    config = Config(4, 2, 5, sinks=4, window=32, refined_share=0.12, policy="normalized")
    cache, scene = filled(config, shape, View(gqa=3), (512, 512, 1))
    with cache:
        size, used = len(cache.write_state(held(scene))), cache.stats().bytes_used
        assert 1.0 <= size / used <= 1.05
