"""The native library through cffi: loading, refusing, and that both sides say the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mikv_cpp import BudgetError, ConfigError, KVConfig, LibraryError
from mikv_cpp.config import POLICIES, PRESETS
from mikv_cpp.native import Library, Shape, find_library
from mikv_cpp.plugin import native_library

SHAPE = Shape(n_layer=2, n_head_kv=2, n_cells=1024, n_stream=1, head_dim_k=64, head_dim_v=64)


@pytest.fixture(scope="module")
def library() -> Library:
    return native_library()


@pytest.fixture
def no_installed_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MIKV_LIBRARY", raising=False)
    monkeypatch.setattr("mikv_cpp.native._package_folders", lambda: [Path("/nowhere/mikv_cpp")])
    return


@pytest.mark.usefixtures("no_installed_library")
def test_not_installed_says_what_to_do() -> None:
    with pytest.raises(LibraryError, match=r"not found in .*nowhere.*reinstall mikv-cpp .* or set MIKV_LIBRARY"):
        find_library()


def test_mikv_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIKV_LIBRARY", "/nowhere/libggml-mikv.so")
    with pytest.raises(LibraryError, match=r"MIKV_LIBRARY names '/nowhere/libggml-mikv\.so'.*correct or unset it"):
        find_library()


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libggml-mikv.so").write_text("no library")
    monkeypatch.setenv("MIKV_LIBRARY", str(tmp_path / "libggml-mikv.so"))
    with pytest.raises(LibraryError, match="cannot be loaded"):
        Library("0.25.3")


@pytest.mark.usefixtures("library")
def test_another_ggml_is_refused_naming_both() -> None:
    with pytest.raises(LibraryError, match=r"built for ggml \d+\.\d+\.\d+, but llama-cpp-python brought ggml 9\.9\.9"):
        Library("9.9.9")


def test_policies_are_the_ones_that_config_knows(library: Library) -> None:
    assert library.policies()[:11] == POLICIES[:11]


def test_a_kernel_set_is_chosen_among_those_there(library: Library) -> None:
    assert library.kernel() in library.kernels()
    assert "plain" in library.kernels()


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_cost_less_than_f16(library: Library, name: str) -> None:
    shape = Shape(30, 3, 8192, 1, 64, 64)
    f16_bytes = 2 * shape.n_layer * shape.n_head_kv * shape.n_cells * (shape.head_dim_k + shape.head_dim_v)
    bits = 16 * library.config_bytes(PRESETS[name], shape) / f16_bytes
    most = {"mikv": 3.8, "mikv-tight": 3.1, "mikv-pool": 2.6, "mikv-safe": 4.6, "mikv-2bit": 3.8, "paper": 4.0}
    most |= {"zipcache": 4.0, "qpruning": 1.3, **dict.fromkeys(("streaming", "h2o", "snapkv", "pyramidkv"), 4.3)}
    most |= {"sinks": 4.6, "q8": 9.0, "kvmix": 3.3, "mixkvq": 4.0, "kivi": 3.0, "mixeddim": 3.6, "rdkv": 3.6}
    assert most[name] >= bits > (1.0 if PRESETS[name].is_pool else 2.5)


def test_more_refined_costs_more(library: Library) -> None:
    sizes = [library.config_bytes(KVConfig(refined_share=share), SHAPE) for share in (0.0, 0.2, 0.5, 1.0)]
    assert sizes == sorted(set(sizes))


def test_a_budget_too_small_is_a_budget_error(library: Library) -> None:
    with pytest.raises(BudgetError):
        library.config_bytes(KVConfig(), SHAPE, budget_bytes=1000)


def test_a_shape_that_no_codec_serves_is_a_config_error(library: Library) -> None:
    with pytest.raises(ConfigError) as caught:
        library.config_bytes(KVConfig(group=64), Shape(2, 2, 1024, 1, 80, 80))
    assert "64 does not divide head sizes 96" in str(caught.value)


def test_unknown_cache_is_an_error_not_a_crash(library: Library) -> None:
    with pytest.raises(ConfigError):
        library.stats(2**63)


@pytest.mark.parametrize("name", ["h2o", "", "x" * 32])
def test_policy_names_that_are_taken_or_unusable(library: Library, name: str) -> None:
    with pytest.raises(ConfigError):
        library.register_policy(name, lambda query: query.mass)
