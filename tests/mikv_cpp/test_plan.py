"""Bytes and memory, decided before anything is loaded. The stand-in library charges a byte for each value and refined value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mikv_cpp import BudgetError, KVConfig, plan
from mikv_cpp.model_file import read_model_file
from mikv_cpp.native import Shape
from mikv_cpp.plan import check_memory, largest_context, n_cells, plan_cache

Writer = Callable[..., Path]


class FakeLibrary:
    """A quarter of f16 for the base, another quarter when all is refined, and 1000 bytes however many layers there are."""

    def config_bytes(self, config: KVConfig, shape: Shape, budget_bytes: int = 0) -> int:
        assert budget_bytes == 0
        values = shape.n_layer * shape.n_head_kv * shape.n_cells * (shape.head_dim_k + shape.head_dim_v)
        return int(values * 0.5 * (1 + config.refined_share)) + 1000


LIBRARY: Any = FakeLibrary()


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def have(size_bytes: int) -> None:
        monkeypatch.setattr(plan, "available_bytes", lambda: size_bytes)

    have(1 << 40)
    return have


def test_cells_are_rounded_as_llama_cpp_rounds_them() -> None:
    assert [n_cells(n) for n in (1, 256, 257, 4096)] == [256, 256, 512, 4096]


def test_shape_is_passed_on(tiny_model: Writer) -> None:
    made = plan_cache(LIBRARY, read_model_file(tiny_model(head_dim=128, n_head=8, n_head_kv=2, n_layer=3)), KVConfig(), 1000)
    assert made.shape == Shape(3, 2, 1024, 1, 128, 128)
    assert (made.budget_bytes, made.size_bytes) == (0, LIBRARY.config_bytes(KVConfig(), made.shape))


def test_a_share_is_of_the_f16_cache(tiny_model: Writer) -> None:
    model = read_model_file(tiny_model())
    made = plan_cache(LIBRARY, model, KVConfig(budget="40%"), 1024)
    assert made.budget_bytes == int(0.4 * model.f16_bytes(1024))
    assert made.config.budget is None


def test_bytes_are_passed_on(tiny_model: Writer) -> None:
    assert plan_cache(LIBRARY, read_model_file(tiny_model()), KVConfig(budget="1MiB"), 1024).budget_bytes == 1 << 20


def test_with_sliding_windows_a_share_becomes_a_share_of_refined_tokens(tiny_model: Writer) -> None:
    model = read_model_file(tiny_model(arch="gemma3", n_layer=6))
    made = plan_cache(LIBRARY, model, KVConfig(budget="40%"), 1024)
    assert made.budget_bytes == 0
    assert made.shape is not None
    assert made.config.refined_share == pytest.approx(0.6, abs=0.01)
    full, windowed = (LIBRARY.config_bytes(made.config, Shape(n_layer, 2, 1024, 1, 64, 64)) for n_layer in (1, 5))
    assert full + windowed == pytest.approx(0.4 * model.f16_bytes(1024), rel=0.002)


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("is_known", [True, False])
def test_windowed_layers_of_any_number_stay_within_a_share(tiny_model: Writer, is_known: bool, swa_full: bool) -> None:
    model = read_model_file(tiny_model(arch="gemma3", n_layer=6))
    if not is_known:
        fields = {name.replace("gemma3.", "other."): value for name, value in model.fields.items()}
        model = replace(model, fields={**fields, "general.architecture": "other"})
    made = plan_cache(LIBRARY, model, KVConfig(budget="40%"), 4096, swa_full)
    length = 4096 if swa_full else 768
    for n_full in (1,) if is_known else range(1, 6):
        caches = (Shape(n_full, 2, 4096, 1, 64, 64), Shape(6 - n_full, 2, length, 1, 64, 64))
        f16_bytes = sum(2 * shape.n_layer * 2 * shape.n_cells * 128 for shape in caches)
        assert 0.39 * f16_bytes < sum(LIBRARY.config_bytes(made.config, shape) for shape in caches) <= 0.4 * f16_bytes


@pytest.mark.parametrize("budget", ["20%", "100KB", 5])
def test_a_budget_too_small_names_the_smallest_that_works(tiny_model: Writer, budget: Any) -> None:
    model = read_model_file(tiny_model())
    with pytest.raises(BudgetError) as caught:
        plan_cache(LIBRARY, model, KVConfig(budget=budget), 1024)
    assert "smallest that works is 1MiB" in str(caught.value)
    percent = str(caught.value).split('"')[1]
    plan_cache(LIBRARY, model, KVConfig(budget=percent), 1024)  # and so it does


def test_a_context_larger_than_the_memory_names_one_that_fits(tiny_model: Writer, memory: Callable[[int], None]) -> None:
    model = read_model_file(tiny_model())
    memory(1 << 20)
    with pytest.raises(
        BudgetError, match=r"1000000 tokens needs .* but 1\.0 MiB of memory are free: ask for at most (\d+)"
    ) as caught:
        plan_cache(LIBRARY, model, KVConfig(), 1_000_000)
    fits = int(str(caught.value).split("at most ")[1].split()[0])
    assert fits > 1000
    plan_cache(LIBRARY, model, KVConfig(), fits)


def test_unknown_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "available_bytes", lambda: None)
    check_memory(1 << 62, 1 << 40)


@pytest.mark.parametrize("head_dim", [80, 112, 40])
def test_any_head_size_is_served(tiny_model: Writer, head_dim: int) -> None:
    made = plan_cache(LIBRARY, read_model_file(tiny_model(head_dim=head_dim)), KVConfig(), 1024)
    assert made.shape == Shape(2, 2, 1024, 1, head_dim, head_dim)
    assert made.logical_type == "f16"


@pytest.mark.parametrize(
    ("changes", "logical"),
    [({}, "q8_0"), ({"balance": "max"}, "f16"), ({"rotate": False}, "f16"), ({"end_points": True, "group": "half"}, "q8_0")],
)
def test_rows_that_are_balanced_or_not_rotated_arrive_as_f16(tiny_model: Writer, changes: dict[str, Any], logical: str) -> None:
    assert plan_cache(LIBRARY, read_model_file(tiny_model()), KVConfig(**changes), 1024).logical_type == logical


def test_default_context_is_the_models_as_far_as_memory_allows(tiny_model: Writer, memory: Callable[[int], None]) -> None:
    model = read_model_file(tiny_model())
    assert largest_context(LIBRARY, model, KVConfig(), 32768) == 32768
    memory(8 << 20)
    bounded = largest_context(LIBRARY, model, KVConfig(), 32768)
    assert 256 <= bounded < 32768
    assert bounded % 256 == 0
    assert LIBRARY.config_bytes(KVConfig(), Shape(2, 2, bounded, 1, 64, 64)) <= 4 << 20
    assert largest_context(None, model, None, 32768) < bounded
