"""The store as a whole: clear, copies of streams, rows in and out, centring, layers side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_cache import NativeCache
from native_library import NativeError, check, ffi, lib, text
from scenes import Scene, View
from tier_check import Diary, check_rows

from mikv_cpp.reference import codec
from mikv_cpp.reference.layout import Config, Shape

SHAPE = Shape(n_layer=2, n_head_kv=2, n_cells=150, n_stream=3, head_dim_k=64, head_dim_v=32)
CONFIG = Config(3, 2, 8, sinks=2, window=5, center_keys=False)


def snapshot(cache: NativeCache, stream: int) -> list[np.ndarray]:
    """Everything that can be read of a stream."""
    layers = range(cache.shape.n_layer)
    rows = [cache.read(i, value, stream, 0, cache.shape.n_cells) for i in layers for value in (0, 1)]
    return rows + [cache.precision(i, stream) for i in layers] + [cache.scores(i, stream) for i in layers]


def fill(cache: NativeCache, stream: int = 0, seed: int = 0) -> Scene:
    """80 tokens of one sequence in every layer."""
    scene = Scene(cache.shape, View(gqa=2), seed)
    for n in (50, 1, 1, 27, 1):
        step = scene.step([0] * n, first_stream=stream)
        for layer in range(cache.shape.n_layer):
            cache.step(layer, step)
    return scene


def test_layers_do_not_touch_each_other():
    with NativeCache(CONFIG, SHAPE) as cache:
        scene = Scene(SHAPE)
        step, other = scene.step([0] * 40), None
        cache.step(0, step)
        before = cache.read(0, 0, 0, 0, 40)
        other = Scene(SHAPE, seed=1).step([0] * 40)
        cache.step(1, other)
        assert np.array_equal(cache.read(0, 0, 0, 0, 40), before)
        assert np.abs(cache.read(1, 0, 0, 0, 40) - other.k[0]).max() < 1


def test_tokens_are_counted_once_for_all_layers():
    with NativeCache(CONFIG, SHAPE) as cache:
        fill(cache)
        stats = cache.stats()
        assert stats.tokens == 80
        assert stats.rows_exact + stats.rows_refined + stats.rows_base == 80 * 2 * 2


def test_clear_forgets_everything():
    with NativeCache(CONFIG, SHAPE) as cache:
        empty = snapshot(cache, 0)
        fill(cache)
        assert cache.stats().tokens == 80
        cache.clear()
        stats = cache.stats()
        assert all(np.array_equal(a, b) for a, b in zip(snapshot(cache, 0), empty))
        assert (stats.tokens, stats.rows_exact, stats.rows_refined, stats.rows_base, stats.demotions) == (0, 0, 0, 0, 0)
        assert (stats.bytes_used, stats.mass_exact, stats.mass_refined, stats.mass_base) == (0, 0, 0, 0)
        diary = Diary(cache, Scene(SHAPE, seed=9))
        for n in (60, 1, 30):
            diary.feed([0] * n)
            check_rows(diary)


def test_a_copied_stream_is_the_same_to_the_bit():
    with NativeCache(CONFIG, SHAPE) as cache:
        fill(cache, 1)
        source = snapshot(cache, 1)
        cache.copy_stream(1, 2)
        assert all(np.array_equal(a, b) for a, b in zip(snapshot(cache, 2), source))
        assert all(np.array_equal(a, b) for a, b in zip(snapshot(cache, 1), source))
        assert not cache.precision(0, 0).any(), "stream 0 was not asked for"


def test_a_copied_stream_lives_its_own_life():
    with NativeCache(CONFIG, SHAPE) as cache:
        scene = fill(cache, 0)
        cache.copy_stream(0, 1)
        source = snapshot(cache, 0)
        scene.sequence[1], scene.position[1] = scene.sequence[0], scene.position[0]
        for n in (1, 20, 1):
            step = scene.step([0] * n, first_stream=1)
            for layer in range(2):
                cache.step(layer, step)
        assert all(np.array_equal(a, b) for a, b in zip(snapshot(cache, 0), source))
        assert cache.stats().tokens == 80 + 102
        assert np.array_equal(cache.read(0, 1, 1, 0, 2), cache.read(0, 1, 0, 0, 2)), "the copied sinks stay"


@pytest.mark.parametrize("center_keys", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_rows_written_come_back_within_the_codecs_bound(share, center_keys):
    config = Config(3, 2, 8, refined_share=share, center_keys=center_keys)
    shape = Shape(1, 2, 300, 1, 64, 128)
    rng = np.random.default_rng(0)
    k = (rng.normal(size=(300, 2, 64)) + 40 * rng.normal(size=(2, 64))).astype(np.float32)
    v = rng.normal(size=(300, 2, 128)).astype(np.float32)
    with NativeCache(config, shape) as cache:
        for first, n in ((0, 130), (130, 170)):
            cache.write(0, 0, 0, first, k[first : first + n])
            cache.write(0, 1, 0, first, v[first : first + n])
        bits = cache.precision(0, 0).T
        assert (bits > 0).all()
        assert (bits == 8).sum(axis=0).tolist() == [round(300 * share)] * 2
        got_k, got_v = cache.read(0, 0, 0, 0, 300), cache.read(0, 1, 0, 0, 300)
    for rows, got, base in ((k, got_k, 3), (v, got_v, 2)):
        n_bits = np.where(bits == 8, 8, base)
        centred = center_keys and rows is k
        for n in (8, base):
            some = n_bits == n
            if not some.any():
                continue
            params = codec.encode(rows[some], 64, base, 8).params
            bound = codec.error_bound(params, 64, n)
            if centred:  # the rest of a row after any mean of such rows spans at most 12 standard deviations
                bound = np.full_like(bound, 12 / 2 ** (n + 1))
            assert (np.abs(got[some] - rows[some]) <= bound).all(), (n, np.abs(got[some] - rows[some]).max())


def test_writing_what_was_read_changes_nothing_much():
    """A state that is saved and loaded: each row moves by no more than its own bin, and not at all if refined."""
    with NativeCache(CONFIG, SHAPE) as cache:
        fill(cache)
        k, v, bits = cache.read(0, 0, 0, 0, 80), cache.read(0, 1, 0, 0, 80), cache.precision(0, 0)[:, :80]
        with NativeCache(CONFIG, SHAPE) as other:
            other.write(0, 0, 0, 0, k)
            other.write(0, 1, 0, 0, v)
            again = other.precision(0, 0)[:, :80]
            assert (again > 0).all()
            assert (again == 8).sum() <= 2 * other.n_slots
            back = other.read(0, 1, 0, 0, 80)
            n_bits = np.where(again.T == 16, 8, np.where(again.T == 8, 8, 2))
            for head, cell in np.ndindex(bits.shape):
                bound = codec.error_bound(codec.encode(v[cell, head], 32, 2, 8).params, 32, int(n_bits[cell, head]))
                assert (np.abs(back[cell, head] - v[cell, head]) <= bound).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_are_attended_and_stored_as_f16_would_hold_them(share):
    """The scenes' rows are f16 numbers already; these are not: they are rounded to the nearest, once."""
    shape = Shape(n_head_kv=2, n_cells=64)
    scene = Scene(shape, seed=12)
    step = scene.step([0] * 40)
    step.k, step.v = (scene.rng.normal(size=step.k.shape).astype(np.float32) for _ in range(2))
    rounded = replace(step, **{name: getattr(step, name).astype(np.float16).astype(np.float32) for name in ("k", "v")})
    assert (rounded.k != step.k).mean() > 0.9
    config = Config(3, 2, 8, refined_share=share, center_keys=False)
    with NativeCache(config, shape) as cache, NativeCache(config, shape) as other:
        assert np.array_equal(cache.step(0, step), other.step(0, rounded))
        assert all(np.array_equal(a, b) for a, b in zip(snapshot(cache, 0), snapshot(other, 0)))


def test_a_large_constant_in_the_keys_costs_nothing():
    """The reason for centring: a constant of 300 per channel, and keys as good as without it."""
    shape = Shape(n_head_kv=1, n_cells=400)
    errors = []
    for offset in (0.0, 300.0):
        with NativeCache(Config(2, 2, 8, sinks=2, refined_share=0), shape) as cache:
            diary = Diary(cache, Scene(shape, View(k_offset=offset)))
            for n in (150, 100, 1, 1, 128):
                diary.feed([0] * n)
            apart = cache.read(0, 0, 0, 2, 378) - diary.k[0, 2:380]
            errors.append(float(np.sqrt((apart.astype(np.float64) ** 2).mean())))
    # A mean of 300 is rounded to f16 steps of 0.25, the same for all rows of a block: nothing is lost by it.
    assert errors[1] < 1.1 * errors[0] + 0.02, errors


def test_n_tokens_of_a_step_may_lie_beyond_n_kv_and_order_does_not_matter():
    shape = Shape(n_head_kv=1, n_cells=64, head_dim_k=32, head_dim_v=32)
    with NativeCache(Config(center_keys=False), shape) as cache:
        diary = Diary(cache, Scene(shape))
        diary.feed([0] * 9, np.array([[50, 3, 63, 0, 17, 4, 41, 1, 30]]))
        check_rows(diary)


UNKNOWN = (
    ("mikv_cache_stats", lambda: lib.mikv_cache_stats(987654, ffi.new("mikv_stats *"))),
    ("mikv_cache_layer_stats", lambda: lib.mikv_cache_layer_stats(987654, 0, ffi.new("mikv_layer_stats *"))),
    ("mikv_cache_precision", lambda: lib.mikv_cache_precision(987654, 0, 0, ffi.new("uint8_t[9]"))),
    ("mikv_cache_scores", lambda: lib.mikv_cache_scores(987654, 0, 0, ffi.new("float[9]"))),
    ("mikv_cache_free", lambda: lib.mikv_cache_free(987654)),
    ("mikv_cache_clear", lambda: lib.mikv_cache_clear(987654)),
    ("mikv_cache_copy_stream", lambda: lib.mikv_cache_copy_stream(987654, 0, 0)),
    ("mikv_cache_read", lambda: lib.mikv_cache_read(987654, 0, 0, 0, 0, 1, ffi.new("float[64]"))),
    ("mikv_cache_write", lambda: lib.mikv_cache_write(987654, 0, 0, 0, 0, 1, ffi.new("float[64]"))),
    ("mikv_cache_step", lambda: lib.mikv_cache_step(987654, 0, ffi.new("mikv_step *"), 1)),
)


@pytest.mark.parametrize("call", [call for _, call in UNKNOWN], ids=[name for name, _ in UNKNOWN])
def test_an_id_that_names_nothing_is_an_error_not_a_crash(call):
    assert call() == lib.MIKV_ERROR_NOT_FOUND
    assert "987654" in text(lib.mikv_last_error())


def test_a_freed_cache_is_gone():
    cache = NativeCache(CONFIG, SHAPE)
    cache.close()
    with pytest.raises(NativeError) as error:
        cache.stats()
    assert error.value.status == lib.MIKV_ERROR_NOT_FOUND


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.read(2, 0, 0, 0, 1),
        lambda c: c.read(-1, 0, 0, 0, 1),
        lambda c: c.read(0, 0, 3, 0, 1),
        lambda c: c.read(0, 0, 0, 149, 2),
        lambda c: c.read(0, 0, 0, -1, 1),
        lambda c: c.write(0, 0, 0, 150, np.zeros((1, 2, 64))),
        lambda c: c.precision(0, 3),
        lambda c: c.precision(2, 0),
        lambda c: c.scores(0, -1),
        lambda c: c.copy_stream(0, 3),
        lambda c: c.copy_stream(-1, 0),
        lambda c: c.layer_stats(2),
    ],
)
def test_a_place_outside_the_cache_is_refused(call):
    with NativeCache(CONFIG, SHAPE) as cache:
        with pytest.raises(NativeError) as error:
            call(cache)
        assert error.value.status in (lib.MIKV_ERROR_ARGUMENT, lib.MIKV_ERROR_NOT_FOUND)
        assert str(error.value)


def bad(step, **fields):
    """The step with other fields."""
    for name, value in fields.items():
        setattr(step, name, value)
    return step


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: bad(s, cells=s.cells + 150),
        lambda s: bad(s, cells=s.cells - 1),
        lambda s: bad(s, first_stream=3),
        lambda s: bad(s, first_stream=-1),
        lambda s: bad(s, mask=np.zeros((1, 5, 151), np.float16)),
        lambda s: bad(s, q=s.q[:, :, :3]),
    ],
    ids=("cell", "negative cell", "stream", "negative stream", "n_kv", "n_head"),
)
def test_a_step_that_cannot_be_is_refused_and_changes_nothing(spoil):
    with NativeCache(CONFIG, SHAPE) as cache:
        scene = Scene(SHAPE, View(gqa=2))
        step = spoil(scene.step([0] * 5))
        with pytest.raises(NativeError) as error:
            cache.step(0, step)
        assert error.value.status == lib.MIKV_ERROR_ARGUMENT
        assert str(error.value)
        assert cache.stats().tokens == 0


def test_the_kernel_set_can_be_chosen():
    for i in range(lib.mikv_kernel_count()):
        name = text(lib.mikv_kernel_name(i))
        check(lib.mikv_kernel_select(name.encode()))
        assert text(lib.mikv_kernel_selected()) == name
    assert lib.mikv_kernel_name(lib.mikv_kernel_count()) == ffi.NULL
    assert lib.mikv_kernel_select(b"abacus") == lib.MIKV_ERROR_NOT_FOUND
    assert "abacus" in text(lib.mikv_last_error())
    check(lib.mikv_kernel_select(b"auto"))
