"""Tables of layers: a layer or head with a choice of its own is, bit for bit, what it is in a cache where all are so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_cache import NativeCache, config_bytes, native_config, native_shape
from native_layout import head_bytes
from native_library import NativeError, check, ffi, lib
from scenes import Scene, View

from mikv_cpp.reference.layout import Config, Shape, exact_for

SHAPE = Shape(n_layer=3, n_head_kv=2, n_cells=150, head_dim_k=64, head_dim_v=32)
CONFIG = Config(k_bits=3, v_bits=2, refined_bits=5, sinks=2, window=8, refined_share=0.2)


def run(caches: list[NativeCache]) -> list[np.ndarray]:
    """The same traffic through all layers of every cache; [n_cache] of outputs [n_layer, tokens, n_head, head_dim_v]."""
    scene = Scene(SHAPE, View(gqa=2))
    outputs: list[list[np.ndarray]] = [[] for _ in caches]
    for n in (40, 3, 40, 1, 1, 30):
        step = scene.step([0] * n)
        for cache, own in zip(caches, outputs):
            own.append(np.stack([cache.step(layer, step)[0] for layer in range(SHAPE.n_layer)]))
    return [np.concatenate(own, axis=1) for own in outputs]


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("1:k4v4r8s0.5", {"k_bits": 4, "v_bits": 4, "refined_bits": 8, "refined_share": 0.5}),
        ("1:s0.6", {"refined_share": 0.6}),
        ("0:k2,1:k2,1:k4", {"k_bits": 4}),  # the last choice counts
    ],
)
def test_a_layer_with_a_choice_is_as_in_a_cache_where_all_are_so(table, changes):
    other = replace(CONFIG, **changes)
    with (
        NativeCache(CONFIG, SHAPE, layers=table) as mixed,
        NativeCache(other, SHAPE) as all_so,
        NativeCache(CONFIG, SHAPE) as plain,
    ):
        got, want, rest = run([mixed, all_so, plain])
        assert np.array_equal(got[1], want[1])
        assert not np.array_equal(got[1], rest[1])
        assert np.array_equal(got[2], rest[2])
        assert np.array_equal(mixed.precision(1, 0), all_so.precision(1, 0))
        assert np.array_equal(mixed.precision(2, 0), plain.precision(2, 0))
        assert mixed.layer_stats(1).bytes_total == all_so.layer_stats(1).bytes_total


def test_keys_and_values_are_refined_to_bits_of_their_own():
    config = replace(CONFIG, v_bits=3, policy="recent")  # who is refined hangs on no attention
    others = (replace(config, refined_bits=8), replace(config, refined_bits=4), replace(config, refined_share=0.0))
    with (
        NativeCache(config, SHAPE, layers="1:rk8rv4,2:rv3,0:rv2") as mixed,  # a base of 3 bits is not refined to fewer
        NativeCache(others[0], SHAPE) as eight,
        NativeCache(others[1], SHAPE) as four,
        NativeCache(config, SHAPE) as plain,
    ):
        run([mixed, eight, four, plain])
        refined = mixed.precision(1, 0) == 8
        assert refined.any()
        assert np.array_equal(mixed.read(1, 0, 0, 0, SHAPE.n_cells), eight.read(1, 0, 0, 0, SHAPE.n_cells))
        assert np.array_equal(mixed.read(1, 1, 0, 0, SHAPE.n_cells), four.read(1, 1, 0, 0, SHAPE.n_cells))
        assert np.array_equal(mixed.read(2, 0, 0, 0, SHAPE.n_cells), plain.read(2, 0, 0, 0, SHAPE.n_cells))
        for layer in (0, 2):  # the values' base alone
            assert np.array_equal(mixed.read(layer, 1, 0, 0, SHAPE.n_cells), mixed.read(2, 1, 0, 0, SHAPE.n_cells))
            assert not np.array_equal(mixed.read(layer, 1, 0, 0, SHAPE.n_cells), plain.read(2, 1, 0, 0, SHAPE.n_cells))


def test_a_head_has_its_own_bits_and_share():
    with NativeCache(CONFIG, SHAPE, layers="1.0:k4s0.4") as mixed, NativeCache(CONFIG, SHAPE) as plain:
        other = NativeCache(replace(CONFIG, k_bits=4, refined_share=0.4), SHAPE)
        got, rest, want = run([mixed, plain, other])
        heads = [slice(0, 2), slice(2, 4)]  # query heads of each KV head
        assert np.array_equal(got[1][:, heads[0]], want[1][:, heads[0]])
        assert np.array_equal(got[1][:, heads[1]], rest[1][:, heads[1]])
        refined = (mixed.precision(1, 0) == 5).sum(axis=1)
        assert refined.tolist() == [60, 30]
        other.close()


def test_bytes_are_those_of_the_choices():
    table = "0:k4v4r8s0.5,2.1:s0"
    with NativeCache(CONFIG, SHAPE, layers=table) as cache:
        first = replace(CONFIG, k_bits=4, v_bits=4, refined_bits=8)
        n_exact = exact_for(CONFIG, SHAPE)
        heads = [(first, 75)] * 2 + [(CONFIG, 30)] * 3 + [(CONFIG, 10)]  # a share of 0 leaves sinks and window
        assert [cache.layer_stats(i).n_slots for i in range(3)] == [150, 60, 40]
        assert [cache.layer_stats(i).k_bits for i in range(3)] == [4, 3, 3]
        parts = [head_bytes(config, SHAPE, n_slots, n_exact) for config, n_slots in heads]
        assert cache.stats().bytes_base == sum(part["base"] for part in parts)
        assert cache.stats().bytes_refined == sum(part["refined"] for part in parts)


def test_a_budget_is_spent_in_proportion_to_the_shares():
    shape = Shape(n_layer=3, n_head_kv=2, n_cells=2000, head_dim_k=64, head_dim_v=64)
    budget = config_bytes(replace(CONFIG, refined_share=0.3), shape)
    with NativeCache(CONFIG, shape, budget_bytes=budget, layers="0:s0.6,1:s0.3,2:s0.15") as cache:
        slots = [cache.layer_stats(i).n_slots for i in range(3)]
        assert slots[0] == pytest.approx(2 * slots[1], rel=0.01)
        assert slots[1] == pytest.approx(2 * slots[2], rel=0.01)
        size = ffi.new("int64_t *")
        config = native_config(CONFIG, budget, "0:s0.6,1:s0.3,2:s0.15")
        check(lib.mikv_config_bytes(config, native_shape(shape), size))
        assert 0.995 * budget < size[0] <= budget


def test_a_share_of_one_is_kept_whatever_the_budget():
    shape = Shape(n_layer=3, n_head_kv=2, n_cells=2000, head_dim_k=64, head_dim_v=64)
    budget = config_bytes(replace(CONFIG, refined_share=0.45), shape)
    with NativeCache(CONFIG, shape, budget_bytes=budget, layers="0:s1") as cache:
        slots = [cache.layer_stats(i).n_slots // 2 for i in range(3)]
        assert slots[0] == 2000
        assert slots[1] == slots[2]
        assert 300 < slots[1] < 400  # what is left of 3 x 45 %


def test_too_small_a_budget_is_refused_with_the_least_that_does():
    with pytest.raises(NativeError) as error:
        NativeCache(CONFIG, SHAPE, budget_bytes=1000, layers="1:k4")
    assert error.value.status == lib.MIKV_ERROR_BUDGET
    least = int(str(error.value).rsplit("at least ", 1)[1].split()[0])
    NativeCache(CONFIG, SHAPE, budget_bytes=least, layers="1:k4").close()
    with pytest.raises(NativeError):
        NativeCache(CONFIG, SHAPE, budget_bytes=least - 1, layers="1:k4")


@pytest.mark.parametrize(
    "table",
    [
        "1",
        "1:",
        ":k4",
        "1:k5",
        "1:r7",
        "1:rk7",
        "1:rq4",
        "1:rv1",
        "1:s1.5",
        "-1:k4",
        "1.:k4",
        "1.-1:k4",
        "1:k4;2:k3",
        "1:k2.5",
        "a:k4",
        "1:q4",
        ",1:k4",
    ],
)
def test_a_table_that_cannot_be_read_is_refused(table):
    with pytest.raises(NativeError) as error:
        check(lib.mikv_layers_register(b"test", table.encode()))
    assert error.value.status == lib.MIKV_ERROR_ARGUMENT
    assert "0:k4v4r8s0.5" in str(error.value)


def test_an_unknown_table_is_refused():
    config = native_config(CONFIG)
    config.layers = b"nobody"
    assert lib.mikv_config_check(config) == lib.MIKV_ERROR_NOT_FOUND
