"""Numbers of `llm.kv`, from a library that says what it is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mikv_cpp import ConfigError
from mikv_cpp.cache import KVCache, plain_stats
from mikv_cpp.native import Shape

SHAPES = {7: Shape(2, 2, 8, 2, 64, 64), 9: Shape(1, 2, 8, 2, 64, 64)}
LAYERS = {7: [0, 2], 9: [5]}


class FakeLibrary:
    """Two caches of two streams: 7 holds layers 0 and 2, 9 holds layer 5; each KV head 2, each stream 8 cells, 5 tokens."""

    def stats(self, cache: int) -> dict[str, Any]:
        n = SHAPES[cache].n_layer
        rows = {"rows_exact": 2 * n, "rows_refined": 4 * n, "rows_base": 4 * n, "rows_dropped": 3 * n}
        mass = {"mass_exact": 0.5, "mass_refined": 0.3, "mass_base": 0.2} if cache == 7 else dict.fromkeys(
            ("mass_exact", "mass_refined", "mass_base"), 0.0
        )  # fmt: skip
        sizes = {
            "bytes_total": 100 * n,
            "bytes_f16": 400 * n,
            "bytes_base": 60 * n,
            "bytes_refined": 30 * n,
            "bytes_metadata": 7 * n,
            "bytes_staging": 3 * n,
            "bytes_used": 50 * n,
            "bytes_used_f16": 250 * n,
            "bytes_scratch": 7,
        }
        return {"shape": SHAPES[cache], "tokens": 5, "demotions": n, **rows, **mass, **sizes}

    def layer_stats(self, cache: int, index: int) -> dict[str, Any]:
        return {
            "layer": LAYERS[cache][index], "n_slots": 4, "bytes_total": 100, "demotions": 1,
            "k_bits": 3, "v_bits": 2, "refined_bits": 5,
            "rows_exact": 2, "rows_refined": 4, "rows_base": 4, "mass_exact": 0.5, "mass_refined": 0.3, "mass_base": 0.2,
        }  # fmt: skip

    def precision(self, cache: int, index: int, stream: int, shape: Shape) -> NDArray[np.uint8]:
        bits = np.zeros((shape.n_head_kv, shape.n_cells), dtype=np.uint8)
        bits[:, :5] = 10 * cache + index
        bits[0, 5] = stream
        return bits

    def scores(self, cache: int, index: int, _stream: int, shape: Shape) -> NDArray[np.float32]:
        return np.full((shape.n_head_kv, shape.n_cells), cache + index, dtype=np.float32)


@pytest.fixture
def kv() -> KVCache:
    library: Any = FakeLibrary()
    return KVCache(library, [7, 9], "the second cache was passed through")


def test_stats_of_several_caches_add_up(kv: KVCache) -> None:
    stats = kv.stats()
    assert (stats.bytes_total, stats.bytes_f16, stats.bytes_used, stats.bytes_used_f16) == (300, 1200, 150, 750)
    assert (stats.bytes_base, stats.bytes_refined, stats.bytes_metadata, stats.bytes_staging) == (180, 90, 21, 9)
    assert stats.bits_per_value == 4.0
    assert (stats.tokens, stats.tokens_exact, stats.tokens_refined, stats.tokens_base) == (5, 1.0, 2.0, 2.0)
    assert stats.demotions == 3
    assert stats.tokens_dropped == 1.5
    assert (stats.mass_exact, stats.mass_refined, stats.mass_base) == (0.5, 0.3, 0.2)  # of the cache that measured any
    assert stats.note == "the second cache was passed through"
    assert kv.bytes_scratch == 14


def test_layers_by_llama_cpps_numbers(kv: KVCache) -> None:
    assert kv.layers == [0, 2, 5]
    rows = kv.stats().by_layer
    assert [row.layer for row in rows] == [0, 2, 5]
    assert (rows[0].tokens_exact, rows[0].tokens_refined, rows[0].tokens_base) == (1.0, 2.0, 2.0)


def test_stats_are_json(kv: KVCache) -> None:
    plain = json.loads(json.dumps(kv.stats().to_dict()))
    assert plain["bytes_total"] == 300
    assert plain["by_layer"][1]["layer"] == 2


def test_maps_end_at_the_highest_cell_that_holds_a_token(kv: KVCache) -> None:
    assert kv.precision_map(2).tolist() == [[71] * 5] * 2
    assert kv.precision_map(5, stream=1).shape == (2, 6)
    assert kv.scores(5).shape == (2, 5)
    assert kv.scores(5).dtype == np.float32


@pytest.mark.parametrize(("layer", "stream", "words"), [(1, 0, "layer 1 .* has 0 to 5"), (0, 2, "stream 2 .* has 0 to 1")])
def test_layers_and_streams_that_are_not_there(kv: KVCache, layer: int, stream: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kv.precision_map(layer, stream)


def test_nothing_in_mixed_precision() -> None:
    library: Any = FakeLibrary()
    kv = KVCache(library, [], "MLA is passed through")
    stats = kv.stats()
    assert (stats.bytes_total, stats.bits_per_value, stats.tokens, stats.by_layer) == (0, 0.0, 0, [])
    with pytest.raises(ConfigError, match="no layers"):
        kv.scores(0)


def test_llama_cpps_own_cache() -> None:
    stats = plain_stats(1000, 100, 25, "own")
    assert (stats.bytes_total, stats.bytes_f16, stats.bytes_used, stats.bits_per_value) == (1000, 1000, 250, 16.0)
