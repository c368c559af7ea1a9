"""Bytes of an allocation at the context of use, as the native library counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mikv_cpp.calibrate.allocation import Allocation, Band, cut_bands, numbered
from mikv_cpp.config import BASE_BITS, KVConfig, parse_budget
from mikv_cpp.engine import Engine
from mikv_cpp.errors import BudgetError, ConfigError
from mikv_cpp.fragile import fragile_heads, protected
from mikv_cpp.model_file import ModelFile
from mikv_cpp.native import Library, Shape
from mikv_cpp.plan import in_mib, n_cells
from mikv_cpp.plugin import native_library


class Sizes:
    """The caches that a model gets, at the context of use.

    Windowed layers are counted as if they held the whole context, which is what a share of f16 needs.

    Layers whose keys break at few bits have what mikv_cpp.fragile gives them, in every allocation, and are in no band.

    Attributes:
        n_ctx: the context of use, in cells.
        layers: llama.cpp's numbers of the layers that are kept in mixed precision.
        f16_bytes: what these take in f16.
    """

    def __init__(self, library: Library, model: ModelFile, parts: Sequence[tuple[Shape, list[int]]], n_ctx: int) -> None:
        self._library, self._model = library, model
        self.n_ctx = n_cells(n_ctx)
        self._parts = [(replace(shape, n_cells=self.n_ctx, n_stream=1), layers) for shape, layers in parts]
        self.layers = sorted(layer for _, layers in parts for layer in layers)
        self.f16_bytes = sum(
            2 * self.n_ctx * shape.n_layer * shape.n_head_kv * (shape.head_dim_k + shape.head_dim_v) for shape, _ in parts
        )

    @classmethod
    def of(cls, model: ModelFile, engine: Engine, n_ctx: int) -> Sizes:
        """Of the caches that a context on the MIKV device has, were they n_ctx tokens long."""
        assert engine.kv is not None, "a context on the MIKV device"
        library, parts = native_library(), []
        for cache in engine.kv.ids:
            shape: Shape = library.stats(cache)["shape"]
            parts.append((shape, [int(library.layer_stats(cache, index)["layer"]) for index in range(shape.n_layer)]))
        return cls(library, model, parts, n_ctx)

    def bytes_of(self, allocation: Allocation) -> int:
        """Bytes of the caches, metadata included."""
        return self._config_bytes(protected(allocation.config(), self._model, self._config_bytes))

    def _config_bytes(self, config: KVConfig) -> int:
        return sum(self._library.config_bytes(numbered(config, layers), shape) for shape, layers in self._parts)

    def bits_of(self, allocation: Allocation) -> float:
        """Bits for each value."""
        return 16 * self.bytes_of(allocation) / self.f16_bytes

    def bands(self, most: int, start: KVConfig) -> list[Band]:
        """The layers that may differ, in at most `most` bands; start: whether fragile ones are protected."""
        heads = fragile_heads(self._model, BASE_BITS[0], start.center_keys) if start.protect else {}
        fragile = {layer for layer, _ in heads}
        shapes = {layer: shape for shape, layers in self._parts for layer in layers}

        def values_of(layer: int) -> tuple[int, int]:
            shape = shapes[layer]
            return shape.n_head_kv * shape.head_dim_k, shape.n_head_kv * shape.head_dim_v

        return cut_bands([layer for layer in self.layers if layer not in fragile], values_of, most)

    def budget_bytes(self, budget: str, least: Allocation) -> int:
        """Bytes of a budget.

        Raises:
            ConfigError: it cannot be read.
            BudgetError: `least`, the smallest allocation there is, takes more.
        """
        wanted, needed = parse_budget(budget).of(self.f16_bytes), self.bytes_of(least)
        if wanted < needed:
            raise BudgetError(
                f"budget {budget!r} is {in_mib(wanted)} of {self.n_ctx} tokens, too little: the smallest plan, {least.name}, "
                f'takes {in_mib(needed)}, "{-(-1000 * needed // self.f16_bytes) / 10}%": give that much or a longer --ctx-size'
            )
        return wanted


def check_context(n_ctx: int) -> int:
    """The context of use, if a cache can be that long.

    Raises:
        ConfigError: it cannot.
    """
    if not 1 <= n_ctx < 2**31:
        raise ConfigError(f"--ctx-size {n_ctx} is no context: give the tokens that the cache is to hold, such as 8192")
    return n_ctx
