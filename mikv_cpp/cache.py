"""What a model's KV cache holds now: `llm.kv`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import ConfigError
from mikv_cpp.native import Library, Shape


@dataclass(frozen=True)
class LayerStats:
    """One layer's part of KVStats. `n_slots`: refined tokens that fit; tokens are averaged over KV heads.

    The bits are those of the layer's first KV head.
    """

    layer: int
    k_bits: int
    v_bits: int
    refined_bits: int
    n_slots: float
    bytes_total: int
    tokens_exact: float
    tokens_refined: float
    tokens_base: float
    demotions: int
    mass_exact: float
    mass_refined: float
    mass_base: float


@dataclass(frozen=True)
class KVStats:
    """What the cache holds and takes.

    Attributes:
        bytes_total: memory allocated for the cache, all metadata included.
        bytes_f16: what llama.cpp's f16 cache of the same cells takes.
        bytes_base: of bytes_total, codes, scales and minima of every cell at base precision.
        bytes_refined: of bytes_total, refinement and exact rows.
        bytes_metadata: of bytes_total, block means, slot maps, scores and cell tables.
        bytes_staging: of bytes_total, the micro-batch at work, shared by all layers.
        bytes_used: of bytes_total, what the tokens held now take.
        bytes_used_f16: the tokens held now, in f16.
        bits_per_value: bytes_total in bits, for each value that the cache can hold.
        tokens: tokens held now.
        tokens_exact: of these, kept in f16; averaged over layers and heads, as the next two.
        tokens_refined: at refined_bits.
        tokens_base: at k_bits and v_bits.
        tokens_dropped: those that a pool has no rows for.
        demotions: rows (token, layer, KV head) that lost their refinement, or were dropped, since the cache was made or
            cleared.
        mass_exact: share of attention that fell on exact tokens since then; with the next two it adds up to 1 (0 before
            any attention was measured).
        mass_refined: the same for refined tokens.
        mass_base: the same for base tokens.
        by_layer: the same by layer.
        note: what these numbers leave out, "" if nothing.
    """

    bytes_total: int
    bytes_f16: int
    bytes_base: int
    bytes_refined: int
    bytes_metadata: int
    bytes_staging: int
    bytes_used: int
    bytes_used_f16: int
    bits_per_value: float
    tokens: int
    tokens_exact: float
    tokens_refined: float
    tokens_base: float
    demotions: int
    mass_exact: float
    mass_refined: float
    mass_base: float
    by_layer: list[LayerStats] = field(default_factory=list)
    note: str = ""
    tokens_dropped: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The fields, nested, ready for JSON."""
        return asdict(self)


def plain_stats(bytes_total: int, n_cells: int, n_tokens: int, note: str) -> KVStats:
    """Stats of llama.cpp's own f16 cache."""
    used = bytes_total * min(n_tokens, n_cells) // max(n_cells, 1)
    return KVStats(
        bytes_total=bytes_total,
        bytes_f16=bytes_total,
        bytes_base=0,
        bytes_refined=bytes_total,
        bytes_metadata=0,
        bytes_staging=0,
        bytes_used=used,
        bytes_used_f16=used,
        bits_per_value=16.0,
        tokens=n_tokens,
        tokens_exact=float(n_tokens),
        tokens_refined=0.0,
        tokens_base=0.0,
        demotions=0,
        mass_exact=0.0,
        mass_refined=0.0,
        mass_base=0.0,
        note=note,
    )


class KVCache:
    """The mixed-precision caches of one model context. Made by `Llama`; not to be asked while llama_decode works."""

    def __init__(self, library: Library, ids: Sequence[int], note: str = "") -> None:
        self._library = library
        self._ids = list(ids)
        self._places: dict[int, tuple[int, int, Shape]] = {}  # by layer: cache id, index in it, shape
        for cache in self._ids:
            shape: Shape = library.stats(cache)["shape"]
            for index in range(shape.n_layer):
                self._places[library.layer_stats(cache, index)["layer"]] = (cache, index, shape)
        self.note = note
        self._owner: Optional[object] = None

    def held_by(self, owner: object) -> KVCache:
        """The same cache, keeping `owner` alive: `Llama(...).kv.stats()` needs its model after `.kv`."""
        held = copy.copy(self)
        held._owner = owner
        return held

    @property
    def ids(self) -> list[int]:
        """The native library's names of these caches: none if everything was passed through to llama.cpp."""
        return list(self._ids)

    @property
    def layers(self) -> list[int]:
        """llama.cpp's numbers of the layers that are kept in mixed precision."""
        return sorted(self._places)

    @property
    def bytes_scratch(self) -> int:
        """Working memory of the kernels: not cache, shared by all layers."""
        return sum(int(self._library.stats(cache)["bytes_scratch"]) for cache in self._ids)

    def stats(self) -> KVStats:
        """What the cache holds and takes now."""
        parts = [self._library.stats(cache) for cache in self._ids]
        rows_per_token = sum(part["shape"].n_layer * part["shape"].n_head_kv for part in parts)
        bytes_total, bytes_f16 = _total(parts, "bytes_total"), _total(parts, "bytes_f16")
        return KVStats(
            bytes_total=bytes_total,
            bytes_f16=bytes_f16,
            bytes_base=_total(parts, "bytes_base"),
            bytes_refined=_total(parts, "bytes_refined"),
            bytes_metadata=_total(parts, "bytes_metadata"),
            bytes_staging=_total(parts, "bytes_staging"),
            bytes_used=_total(parts, "bytes_used"),
            bytes_used_f16=_total(parts, "bytes_used_f16"),
            bits_per_value=16.0 * bytes_total / bytes_f16 if bytes_f16 else 0.0,
            tokens=max((part["tokens"] for part in parts), default=0),
            tokens_exact=_total(parts, "rows_exact") / max(rows_per_token, 1),
            tokens_refined=_total(parts, "rows_refined") / max(rows_per_token, 1),
            tokens_base=_total(parts, "rows_base") / max(rows_per_token, 1),
            demotions=_total(parts, "demotions"),
            mass_exact=_mean_mass(parts, "mass_exact"),
            mass_refined=_mean_mass(parts, "mass_refined"),
            mass_base=_mean_mass(parts, "mass_base"),
            by_layer=[self._layer_stats(layer) for layer in self.layers],
            note=self.note,
            tokens_dropped=_total(parts, "rows_dropped") / max(rows_per_token, 1),
        )

    def precision_map(self, layer: int, stream: int = 0) -> NDArray[np.uint8]:
        """uint8 [n_head_kv, n_tokens]: bits of each token's key, 16 where exact, 0 where the cell is empty.

        n_tokens is the highest cell that holds a token, plus one. Columns are cells: a windowed layer uses its cells again.

        Raises:
            ConfigError: the layer or stream is not in the cache.
        """
        cache, index, shape = self._place(layer, stream)
        bits = self._library.precision(cache, index, stream, shape)
        return bits[:, : _filled(bits)]

    def scores(self, layer: int, stream: int = 0) -> NDArray[np.float32]:
        """float32 [n_head_kv, n_tokens]: accumulated attention mass of refined tokens, 0 elsewhere.

        Tokens that are not refined keep no score. n_tokens is as in precision_map.

        Raises:
            ConfigError: the layer or stream is not in the cache.
        """
        cache, index, shape = self._place(layer, stream)
        n_tokens = _filled(self._library.precision(cache, index, stream, shape))
        return self._library.scores(cache, index, stream, shape)[:, :n_tokens]

    def _place(self, layer: int, stream: int) -> tuple[int, int, Shape]:
        if layer not in self._places:
            there = f"{self.layers[0]} to {self.layers[-1]}" if self._places else "no layers"
            raise ConfigError(f"layer {layer} is not in the mixed-precision cache: it has {there}")
        place = self._places[layer]
        if not 0 <= stream < place[2].n_stream:
            raise ConfigError(f"stream {stream} is not in the cache: it has 0 to {place[2].n_stream - 1}")
        return place

    def _layer_stats(self, layer: int) -> LayerStats:
        cache, index, shape = self._places[layer]
        part = self._library.layer_stats(cache, index)
        tokens = {f"tokens_{tier}": part.pop(f"rows_{tier}") / shape.n_head_kv for tier in ("exact", "refined", "base")}
        n_slots = part.pop("n_slots") / shape.n_head_kv
        return LayerStats(**part, **tokens, n_slots=n_slots)


def _total(parts: Sequence[dict[str, Any]], name: str) -> int:
    return sum(int(part[name]) for part in parts)


def _mean_mass(parts: Sequence[dict[str, Any]], name: str) -> float:
    """Mean over the caches that measured attention, each weighted with its layers."""
    weights = [part["shape"].n_layer for part in parts if part["mass_exact"] + part["mass_refined"] + part["mass_base"] > 0]
    if not weights:
        return 0.0
    return float(sum(part[name] * part["shape"].n_layer for part in parts) / sum(weights))


def _filled(bits: NDArray[np.uint8]) -> int:
    """The highest cell that is not empty, plus one."""
    cells = np.flatnonzero(bits.any(axis=0))
    return int(cells[-1]) + 1 if cells.size else 0
