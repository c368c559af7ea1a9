"""Attention: every kernel set, on every precision, head shape and kind of mask, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from attention_check import check_scene, check_step
from native_cache import NativeCache
from native_library import check, kernel_names, lib
from scenes import NEVER, Scene, View
from tables import Case, leading_cases, pool_cases, precision_cases, shape_cases, view_cases

from mikv_cpp.reference.layout import Config, Shape

CASES = precision_cases() + shape_cases() + view_cases() + pool_cases() + leading_cases()


@pytest.fixture(params=kernel_names(), autouse=True)
def kernel(request):
    check(lib.mikv_kernel_select(request.param.encode()))
    yield request.param
    check(lib.mikv_kernel_select(b"auto"))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_attention(case: Case, kernel: str):
    with NativeCache(case.config, case.shape, n_threads=2) as cache:
        check_scene(cache, Scene(case.shape, case.view), case.batches, kernel, case.name)


@pytest.mark.parametrize("center_keys", [False, True])
def test_interleaved_sequences_in_scattered_cells(kernel: str, center_keys: bool):
    shape = Shape(n_head_kv=2, n_cells=300)
    scene = Scene(shape, View(gqa=3), seed=1)
    with NativeCache(Config(sinks=2, window=4, center_keys=center_keys), shape) as cache:
        for n in (40, 17, 1, 3, 60, 2, 1):
            sequences = list(scene.rng.integers(0, 4, n))
            check_step(cache, 0, scene.step(sequences, scene.free_cells(0, n, scattered=True)[None]), kernel)


def test_two_streams_from_the_second_on(kernel: str):
    shape = Shape(n_head_kv=2, n_cells=200, n_stream=3)
    scene = Scene(shape, View(gqa=2), seed=2)
    with NativeCache(Config(3, 2, 5, sinks=1, window=3), shape, n_threads=2) as cache:
        for n in (20, 1, 5, 1):
            check_step(cache, 0, scene.step([0] * n, n_stream=2, first_stream=1), kernel)
        assert not cache.precision(0, 0).any(), "stream 0 was never written"


def test_overwritten_cells_show_the_new_row(kernel: str):
    shape = Shape(n_head_kv=1, n_cells=64)
    scene = Scene(shape, View(gqa=2), seed=3)
    with NativeCache(Config(sinks=2, window=2, refined_share=0.3), shape) as cache:
        check_step(cache, 0, scene.step([0] * 40), kernel)
        for n in (1, 7, 1, 12):
            cells = np.sort(scene.rng.choice(40, n, replace=False))[None]
            check_step(cache, 0, scene.step([0] * n, cells), kernel)


def test_rows_that_are_not_finite_do_not_leak(kernel: str):
    """A row of NaN that nobody sees, committed or of this step, changes nothing."""
    shape = Shape(n_head_kv=2, n_cells=96)
    scene = Scene(shape, seed=4)
    with NativeCache(Config(sinks=1, window=2), shape) as cache:
        check_step(cache, 0, scene.step([0] * 30), kernel)
        step = scene.step([1, 0, 1])
        step.k[0, [0, 2]], step.v[0, [0, 2]] = np.nan, np.nan
        step.mask[:, [0, 2]] = NEVER
        step.mask[:, 1, step.cells[0, [0, 2]]] = NEVER
        out = check_step(cache, 0, step, kernel)
        assert not out[0, [0, 2]].any(), "a query that sees nothing gives 0"
        scene.forget(0, step.cells[0, [0, 2]])
        for _ in range(3):
            check_step(cache, 0, scene.step([0]), kernel)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_a_query_that_sees_nothing_gives_zero(kernel: str, n: int):
    shape = Shape(n_head_kv=2, n_cells=100)
    scene = Scene(shape, View(gqa=2, sinks=True), seed=5)
    with NativeCache(Config(), shape) as cache:
        check_step(cache, 0, scene.step([0] * 50), kernel)
        step = scene.step([0] * n)
        step.mask[:] = NEVER
        assert not check_step(cache, 0, step, kernel).any()


def test_padding_after_a_clear_is_never_read(kernel: str):
    shape = Shape(n_head_kv=1, n_cells=128)
    with NativeCache(Config(center_keys=False), shape) as cache:
        scene = Scene(shape, seed=6)
        step = scene.step([0] * 100)
        step.k[:], step.v[:] = np.inf, np.nan
        cache.step(0, step)
        cache.clear()
        scene = Scene(shape, seed=7)
        for n in (3, 1, 1):
            check_step(cache, 0, scene.step([0] * n, n_kv=128), kernel)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_threads_do_not_change_the_answer(kernel: str, n_threads: int):
    shape = Shape(n_head_kv=2, n_cells=700, head_dim_k=64, head_dim_v=64)
    with NativeCache(Config(sinks=4, window=16), shape, n_threads=n_threads) as cache:
        scene = Scene(shape, View(gqa=2), seed=8)
        cache.step(0, scene.step([0] * 512))
        check_scene(cache, scene, (70, 1, 1, 4), kernel)
