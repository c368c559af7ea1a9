"""The cache's own space: rotation, padding and channel balancer, against the NumPy reference and plain attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_check import check_scene, check_step
from leading_check import EXACT, check_leading
from leading_check import SHAPE as LEADING_SHAPE
from native_cache import NativeCache, config_bytes
from native_library import check, kernel_names, lib
from scenes import Scene, View

from mikv_cpp.reference import transform
from mikv_cpp.reference.cache import ReferenceCache
from mikv_cpp.reference.layout import Config, Shape

SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 256)
BALANCES = ("off", "max", "rms", "salience", "range", "alike")
SHAPE = Shape(n_head_kv=2, n_cells=261)
EIGHT_BITS = Config(2, 2, 8, refined_share=1.0, center_keys=False)


@pytest.mark.parametrize("dim", SIZES)
def test_h_is_orthonormal_symmetric_and_greedy(dim):
    h = transform.hadamard(transform.row_dim(dim))
    assert np.allclose(h @ h.T, np.eye(len(h)), atol=1e-12)
    assert np.array_equal(h, h.T)
    blocks = {80: [64, 32], 96: [64, 32], 112: [128], 160: [128, 32], 192: [128, 64]}.get(dim, [dim])
    begin = 0
    for block in blocks:
        own = h[begin : begin + block, begin : begin + block]
        assert np.allclose(np.abs(own), block**-0.5)
        assert np.count_nonzero(h[begin : begin + block]) == block * block
        begin += block
    assert begin == len(h)


@pytest.mark.parametrize("balance", ["max", "rms"])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("dim", SIZES)
def test_dot_products_and_rows_are_what_they_were(dim, rotate, balance):
    rng = np.random.default_rng(dim)
    q, k = rng.normal(size=(40, dim)) * rng.lognormal(0, 1, dim), rng.normal(size=(40, dim)) * rng.lognormal(0, 1, dim)
    b = transform.balancer(balance, q, k)
    assert (b != 1).any(), "channels that differ so much are balanced"
    inside_q, inside_k = transform.enter_query(q, rotate, b), transform.enter(k, rotate, b)
    assert inside_k.shape[-1] == transform.row_dim(dim)
    assert np.allclose(inside_q @ inside_k.T, q @ k.T, rtol=1e-12)
    assert np.allclose(transform.leave(inside_k, dim, rotate, b), k, rtol=1e-12)


def test_max_balances_what_channels_reach():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(50, 8)), rng.normal(size=(50, 8)) * np.array([100, 1, 1, 1, 1, 1, 1, 0])
    b = transform.balancer("max", q, k)
    reach = np.abs(q / b).max(axis=0)[:7], np.abs(k * b).max(axis=0)[:7]
    assert np.allclose(*reach, rtol=2e-3), "f16 holds b to half a thousandth"
    assert b[7] == 1, "a channel without keys says nothing"


def test_rms_is_off_where_channels_are_alike():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(500, 64)), rng.normal(size=(500, 64))
    assert (transform.balancer("rms", q, k) == 1).all()
    k[:, 5] *= 8
    b = transform.balancer("rms", q, k * 0.01)
    assert b.argmin() == 5
    assert np.log(b).mean() == pytest.approx(0, abs=1e-3), "the scale as a whole stays"


def first_batches(scene: Scene, n: int = 40):
    """A micro-batch with channels of unlike reach, so that balancing does something."""
    step = scene.step([0] * n)
    reach = np.random.default_rng(9).lognormal(0, 1, step.k.shape[-1]).astype(np.float32)
    step.k[:] = (step.k * reach).astype(np.float16)
    return step


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("dim", SIZES)
def test_rows_read_back_as_the_reference_reads_them(dim, rotate, balance):
    """At eight bits, where a different rounding of the transform moves a value by a bin, of range / 256, at most."""
    shape = replace(SHAPE, head_dim_k=dim, head_dim_v=dim)
    config = replace(EIGHT_BITS, rotate=rotate, balance=balance)
    with NativeCache(config, shape) as cache:
        reference = ReferenceCache(config, shape)
        scene = Scene(shape, View(gqa=2))
        for step in (first_batches(scene), scene.step([0]), scene.step([0] * 7)):
            cache.step(0, step)
            reference.step(0, step)
        for value in (0, 1):
            got, want = cache.read(0, value, 0, 0, 48), reference.read(0, value, 0, 0, 48)
            # in the cache's space a value may fall into the neighbouring bin: a 256th of what the row spans, at most
            for h, head in enumerate(reference.heads[0][0]):
                b = None if value else head.balancer
                inside = transform.enter(got[:, h], rotate, b) - transform.enter(want[:, h], rotate, b)
                spans = np.ptp(transform.enter(want[:, h], rotate, b), axis=-1, keepdims=True)
                assert (np.abs(inside) <= spans * (1.3 / 256) + 1e-5).all(), np.abs(inside).max()
                assert (np.abs(inside) > spans * 0.3 / 256).mean() < 0.01, "and hardly ever does"


@pytest.fixture(params=kernel_names())
def kernel(request):
    check(lib.mikv_kernel_select(request.param.encode()))
    yield request.param
    check(lib.mikv_kernel_select(b"auto"))


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(("dim_k", "dim_v", "group"), [(64, 64, -1), (80, 80, 0), (112, 40, 0)])
def test_attention_in_the_caches_space(dim_k, dim_v, group, rotate, balance, kernel):
    shape = replace(SHAPE, head_dim_k=dim_k, head_dim_v=dim_v)
    config = Config(3, 2, 8, group=group, sinks=2, window=3, rotate=rotate, balance=balance, end_points=rotate)
    with NativeCache(config, shape, n_threads=2) as cache:
        scene = Scene(shape, View(gqa=3))
        check_step(cache, 0, first_batches(scene), kernel)
        check_scene(cache, scene, (37, 1, 1, 3, 70, 1), kernel)


@pytest.mark.parametrize("n", [31, 32])
def test_a_first_micro_batch_of_32_tokens_balances(n):
    config, plain = (replace(EIGHT_BITS, balance=balance, refined_bits=8) for balance in ("max", "off"))
    with NativeCache(config, SHAPE) as cache, NativeCache(plain, SHAPE) as other:
        scene = Scene(SHAPE)
        for step in (first_batches(scene, n), first_batches(scene, 50)):
            cache.step(0, step)
            other.step(0, step)
        same = np.array_equal(cache.read(0, 0, 0, 0, n + 50), other.read(0, 0, 0, 0, n + 50))
        assert same == (n < 32), "later micro-batches change nothing"
        cache.clear()
        other.clear()
        step = first_batches(Scene(SHAPE), 40)
        cache.step(0, step)
        other.step(0, step)
        assert not np.array_equal(cache.read(0, 0, 0, 0, 40), other.read(0, 0, 0, 0, 40)), "a cleared cache decides anew"


def test_a_copied_stream_keeps_its_balancer():
    shape = replace(SHAPE, n_stream=2)
    with NativeCache(replace(EIGHT_BITS, balance="max", rotate=True), shape) as cache:
        scene = Scene(shape)
        cache.step(0, first_batches(scene))
        cache.copy_stream(0, 1)
        assert np.array_equal(cache.read(0, 0, 0, 0, 40), cache.read(0, 0, 1, 0, 40))
        assert cache.read(0, 0, 1, 0, 40).any()


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("dim", [64, 80])
def test_rows_that_are_written_come_back(dim, balance):
    shape = replace(SHAPE, head_dim_k=dim, head_dim_v=dim)
    rows = np.random.default_rng(0).normal(size=(60, 2, dim)).astype(np.float32)
    with NativeCache(replace(EIGHT_BITS, rotate=True, balance=balance), shape) as cache:
        for value in (0, 1):
            cache.write(0, value, 0, 0, rows)
            got = cache.read(0, value, 0, 0, 60)
            # half a bin of range / 256 for each of the row's values, which the rotation mixes: as norms
            spans = np.ptp(transform.enter(rows, True), axis=-1)
            apart = np.linalg.norm(got - rows, axis=-1)
            assert (apart <= np.sqrt(transform.row_dim(dim)) * spans * (1 + 1 / 16 + 1 / 32) / 512).all()
            cache.write(0, value, 0, 0, got)
            again = cache.read(0, value, 0, 0, 60)
            assert np.linalg.norm(again - got, axis=-1).max() <= apart.max(), "and again, nothing drifts"


@pytest.mark.parametrize(("dim", "row"), [(80, 96), (112, 128), (64, 64), (40, 64)])
def test_padding_and_balancers_are_counted(dim, row):
    shape = Shape(2, 3, 512, 2, dim, dim)
    config = Config(3, 2, 8, sinks=4, window=16, rotate=True)
    padded = replace(shape, head_dim_k=row, head_dim_v=row)
    staging = 512 * 3 * 2 * 2
    assert config_bytes(config, padded) - config_bytes(config, shape) == staging * (row - dim), "only staging is not padded"
    balanced = replace(config, balance="max")
    assert config_bytes(balanced, shape) - config_bytes(config, shape) == 2 * 3 * 2 * 2 * dim
    with NativeCache(config, shape) as cache, NativeCache(balanced, shape) as other:
        stats, more = cache.stats(), other.stats()
        assert more.bytes_metadata - stats.bytes_metadata == 2 * 3 * 2 * 2 * dim
        assert stats.bytes_f16 == 2 * 512 * 2 * 2 * 3 * 2 * dim, "of the model's own head size"
        assert (stats.shape.head_dim_k, stats.shape.head_dim_v) == (dim, dim)


@pytest.mark.parametrize(("dim", "group"), [(64, 32), (128, 64), (96, 32), (256, 64), (80, 32)])
def test_half_the_head_size_where_there_is_such_a_group(dim, group):
    shape = replace(SHAPE, head_dim_k=dim, head_dim_v=dim)
    with NativeCache(Config(group=-1), shape) as cache:
        assert cache.stats().config.group == group
    assert config_bytes(Config(group=-1), shape) == config_bytes(Config(group=group), shape)


@pytest.mark.parametrize(("window", "share", "recent"), [(0, 0.5, 26), (30, 0.5, 30), (0, 0.0, 0), (0, 1.0, 52)])
def test_a_share_of_the_slots_is_for_the_most_recent(window, share, recent):
    config = Config(window=window, recent_share=share, refined_share=0.2)
    with NativeCache(config, SHAPE) as cache:
        assert cache.n_slots == 52
        assert cache.stats().config.window == recent == ReferenceCache(config, SHAPE).window
        scene = Scene(SHAPE)
        for _ in range(5):
            cache.step(0, scene.step([0] * 40))
        bits = cache.precision(0, 0)[:, :200]
        assert (bits[:, 200 - recent :] == 8).all()
        assert (bits == 8).sum() == 2 * 52


def test_a_recent_share_is_not_held_to_the_largest_window():
    with NativeCache(Config(recent_share=0.5, refined_share=0.5), replace(SHAPE, n_cells=40000)) as cache:
        assert cache.stats().config.window == 10000


def test_heads_that_are_kept_whole_do_not_widen_the_window():
    shape = replace(SHAPE, n_layer=2)
    with NativeCache(Config(recent_share=0.5, refined_share=0.2), shape, layers="0:s1") as cache:
        assert cache.stats().config.window == 26
    with NativeCache(Config(recent_share=0.5, refined_share=1.0, window=3), shape) as cache:
        assert cache.stats().config.window == 3


# --- orders, bases and leading channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0, 32])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("kind", ["salience", "range", "basis"])
def test_orders_and_bases_leave_dot_products_alone(kind, rotate, lead):
    rng = np.random.default_rng(1)
    q, k = rng.normal(size=(200, 80)), rng.normal(size=(200, 80)) * rng.lognormal(0, 1, 80)
    b = transform.settle(kind, q, k)
    inside_q, inside_k = transform.enter_query(q, rotate, b, lead), transform.enter(k, rotate, b, lead)
    assert np.allclose(inside_q @ inside_k.T, q @ k.T, rtol=1e-10, atol=1e-10)
    assert np.allclose(transform.leave(inside_k, 80, rotate, b, lead), k, atol=1e-10)
    norms = np.linalg.norm(inside_k[:, :32], axis=1), np.linalg.norm(transform.enter(k, False, b)[:, :32], axis=1)
    assert lead == 0 or np.allclose(*norms), "the leading channels stay apart"


def test_salience_is_what_queries_and_keys_make_of_a_channel():
    q, k = np.ones((40, 4)), np.linspace(-1, 1, 40)[:, None] * np.array([1, 3, 2, 4])
    q[:, 3] = 0.1
    assert transform.order("range", q, k).tolist() == [3, 1, 2, 0]
    assert transform.order("salience", q, k).tolist() == [1, 2, 0, 3]


def test_alike_gives_channels_one_range():
    k = np.random.default_rng(0).normal(size=(50, 8)) * np.array([100, 1, 1, 1, 0.01, 1, 1, 0])
    b = transform.alike(k)
    assert np.allclose(np.ptp(k * b, axis=0)[:7], np.ptp(k * b, axis=0)[0], rtol=2e-3), "f16 holds b to half a thousandth"
    assert np.isfinite(b).all()


def energies(cache, step, first: int, n: int) -> tuple[float, float]:
    """Squared error and squared deviation from the mean of the keys of a step's rows that read back from the base alone."""
    got, want = cache.read(0, 0, 0, first, n), step.k[0]
    return float(((got - want) ** 2).sum()), float(((want - want.mean(axis=0)) ** 2).sum())


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("k_bits", [0, 2, 3])
@pytest.mark.parametrize("balance", ["off", "salience", "range"])
def test_leading_rows_read_back_as_the_definition_says(balance, k_bits):
    config = replace(EXACT, balance=balance, k_bits=k_bits)
    with NativeCache(config, LEADING_SHAPE) as cache:
        check_leading(cache, config)


@pytest.mark.parametrize("dim", [64, 96, 128])
def test_keys_of_a_few_dimensions_need_only_the_leading_axes(dim):
    """Keys that span 16 dimensions: of a base without the rest almost all is there; of channels as they come, not half."""
    shape = Shape(n_cells=261, head_dim_k=dim, head_dim_v=dim)
    rng = np.random.default_rng(dim)
    plane = rng.normal(size=(16, dim)).astype(np.float32)
    errors = {}
    for balance in ("basis", "off"):
        config = Config(0, 2, 4, refined_share=0.0, lead_share=0.5, lead_bits=4, balance=balance, rotate=True)
        with NativeCache(config, shape) as cache:
            scene = Scene(shape)
            step = scene.step([0] * 128)
            step.k[0, :, 0] = (np.random.default_rng(0).normal(size=(128, 16)) @ plane).astype(np.float16)
            cache.step(0, step)
            reference = ReferenceCache(config, shape)
            reference.step(0, step)
            error, energy = energies(cache, step, 0, 128)
            errors[balance] = error / energy
            assert error == pytest.approx(energies(reference, step, 0, 128)[0], rel=0.05)
    assert errors["basis"] < 0.02, "4 bits, and nothing behind the leading axes"
    assert errors["off"] > 0.2


def test_more_bits_for_salient_channels_lessen_the_error_of_logits():
    """Keys whose channels are much alike and queries whose channels are not: what queries reach decides."""
    shape = Shape(n_cells=300, head_dim_k=128, head_dim_v=32)
    rng = np.random.default_rng(3)
    reach_q, reach_k = rng.lognormal(0, 1, 128), rng.lognormal(0, 0.05, 128)
    errors = {}
    for balance in ("salience", "range"):
        config = Config(2, 2, 8, refined_share=0.0, lead_share=0.25, balance=balance, rotate=True, center_keys=False)
        with NativeCache(config, shape) as cache:
            step = Scene(shape, View(k_offset=0.0)).step([0] * 256)
            step.k[:], step.q[:] = (step.k * reach_k).astype(np.float16), step.q * reach_q
            cache.step(0, step)
            off = cache.read(0, 0, 0, 0, 256)[:, 0] - step.k[0, :, 0]
            errors[balance] = float(((step.q[0, :, 0] @ off.T) ** 2).mean())
    assert errors["salience"] < 0.8 * errors["range"]


@pytest.mark.parametrize(("balance", "size"), [("salience", 2 * 64), ("range", 2 * 64), ("basis", 4 * 64 * 64)])
def test_orders_bases_and_leading_channels_are_counted(balance, size):
    shape = Shape(2, 3, 512, 2, 64, 64)
    plain = Config(2, 2, 2, group=32, refined_share=0.0)
    leading = replace(plain, lead_share=0.5, group=0)
    more = config_bytes(leading, shape) - config_bytes(plain, shape)
    assert more == 2 * 3 * 2 * (512 * 32 * 2 // 8 + 0), "2 more bits for half of the channels"
    nothing = config_bytes(replace(leading, k_bits=0), shape) - config_bytes(leading, shape)
    assert nothing == 2 * 3 * 2 * (512 * 32 * -2 // 8)
    assert config_bytes(replace(leading, balance=balance), shape) - config_bytes(leading, shape) == 2 * 3 * 2 * size
    with NativeCache(replace(leading, balance=balance), shape) as cache:
        assert cache.stats().bytes_total <= config_bytes(replace(leading, balance=balance), shape)
        cache.step(0, Scene(shape).step([0] * 40, n_stream=2))
        assert (cache.precision(0, 0)[:, :40] == 3).all(), "bits on average"
