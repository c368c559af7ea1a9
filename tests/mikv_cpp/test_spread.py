"""Spreads of refined tokens over the layers: means, order, who goes first, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mikv_cpp import ConfigError, KVConfig
from mikv_cpp.model_file import read_model_file
from mikv_cpp.plan import cache_shapes, plan_cache
from mikv_cpp.plugin import native_library
from mikv_cpp.spread import SPREADS

Writer = Callable[..., Path]


def shares(rows: list[str]) -> list[float]:
    return [float(row.rpartition("s")[2]) for row in rows]


@given(st.integers(1, 130), st.floats(0, 1))
def test_a_pyramid_falls_and_keeps_its_mean(n_layer: int, share: float) -> None:
    found = shares(SPREADS["pyramid"](n_layer, share))
    assert len(found) == n_layer
    assert sum(found) / n_layer == pytest.approx(share, abs=1e-4)
    assert found == sorted(found, reverse=True)
    assert 0 <= found[-1] <= found[0] <= 1
    if n_layer > 1 and 0.05 < share < 0.5:
        assert found[-1] == pytest.approx(share / 20, abs=1e-4)


@given(st.integers(1, 130), st.floats(0, 1))
def test_ends_are_kept_and_the_others_pay(n_layer: int, share: float) -> None:
    rows = SPREADS["ends"](n_layer, share)
    kept = [layer for layer, row in enumerate(rows) if row.endswith("k4v4r8s1")]
    assert kept == [layer for layer in range(n_layer) if layer < 2 or layer >= n_layer - 2]
    if n_layer > 4 and share * n_layer >= 4:
        assert sum(shares(rows)) / n_layer == pytest.approx(share, abs=1e-4)


@given(st.sampled_from(list(SPREADS)), st.integers(1, 130), st.floats(0, 1))
@example("pyramid", 4, 5e-324)  # the last share came to -0
def test_rows_are_what_layers_takes(name: str, n_layer: int, share: float) -> None:
    KVConfig(layers=",".join(SPREADS[name](n_layer, share)))


def test_an_unknown_spread_is_refused() -> None:
    with pytest.raises(ConfigError, match="uniform, ends, pyramid"):
        KVConfig(spread="cone")


def test_the_users_rows_go_first(tiny_model: Writer) -> None:
    config = KVConfig(spread="pyramid", layers="1:s0.5")
    made = plan_cache(native_library(), read_model_file(tiny_model(n_layer=3)), config, 1024)
    assert made.config.layers == "0:s0.2340,1:s0.1200,2:s0.0060,1:s0.5"
    assert made.config.spread == "uniform"  # what it asked for stands in `layers` now


@pytest.mark.parametrize("budget", [None, "33%"])
def test_a_pyramid_takes_the_bytes_of_a_uniform_cache(tiny_model: Writer, budget: str) -> None:
    model = read_model_file(tiny_model(n_layer=3))
    sizes = []
    for spread in ("uniform", "pyramid"):
        config = KVConfig(refined_share=0.3, window=0, sinks=0, spread=spread, budget=budget)
        made = plan_cache(native_library(), model, config, 2048)
        (shape,) = cache_shapes(model, 2048)
        sizes.append(native_library().config_bytes(made.config, shape, made.budget_bytes))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.002)
