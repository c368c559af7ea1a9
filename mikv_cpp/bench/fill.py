"""Deep caches without a deep prefill: what a prefill left is repeated to the depth that is wanted.

llama.cpp's caches get the same rows again and again, through the state of a sequence. That is all to them: what a decoded token
costs does not depend on what the rows hold. For ours it depends on how many rows are refined, and where they lie, and a state
brings neither back. So every row is stored once more as a token's row is, in an order drawn at random: the policy, which sees
each row attend to the first tile and to the few stored with it, has filled all slots in the end, and refined rows lie scattered
over the whole context. That is the slowest they can lie, for a kernel meets a few of them in every tile.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mikv_cpp.engine import Engine
from mikv_cpp.errors import MikvError
from mikv_cpp.native import Library, Shape
from mikv_cpp.plugin import native_library

STRETCH = 1024  # tokens that are really prefilled before they are repeated
_STEP = 24  # tokens stored at once: as many queries as the decode kernel takes
_FIRST = 64  # cells that every token sees, sinks among them; stored in their order
_HEAD = struct.Struct("<IiII")  # magic number, sequence, streams, cells
_CELL = np.dtype([("position", "<i4"), ("n_sequences", "<u4"), ("sequence", "<i4")])
_LAYERS = struct.Struct("<II")  # are values transposed, layers
_ROWS = struct.Struct("<iQ")  # type, bytes of a row

Bytes = npt.NDArray[np.uint8]


def repeat_state(state: Bytes, n_tokens: int) -> Bytes:
    """The state of one sequence whose rows are those of `state`, repeated to n_tokens; positions count on.

    Raises:
        MikvError: a state of another form: several caches, values transposed, or positions in more than one dimension.
    """
    refused = MikvError("this model's cache cannot be repeated, for its state has another form: use --fill prefill")
    if len(state) < _HEAD.size:
        raise refused
    magic, sequence, n_stream, n_cells = _HEAD.unpack_from(state.data)
    at = _HEAD.size + n_cells * _CELL.itemsize
    if n_stream != 1 or n_cells == 0 or len(state) < at + _LAYERS.size:
        raise refused
    transposed, n_layer = _LAYERS.unpack_from(state.data, at)
    cells = np.zeros(n_tokens, _CELL)
    cells["position"], cells["n_sequences"], cells["sequence"] = np.arange(n_tokens), 1, sequence
    parts = [_HEAD.pack(magic, sequence, 1, n_tokens), cells.tobytes(), _LAYERS.pack(transposed, n_layer)]
    at += _LAYERS.size
    for _ in range(2 * n_layer):
        if transposed or len(state) < at + _ROWS.size:
            raise refused
        row_bytes = _ROWS.unpack_from(state.data, at)[1]
        rows = state[at + _ROWS.size : at + _ROWS.size + n_cells * row_bytes]
        if len(rows) != n_cells * row_bytes:
            raise refused
        parts += [state[at : at + _ROWS.size].tobytes(), np.resize(rows, n_tokens * row_bytes).tobytes()]
        at += _ROWS.size + n_cells * row_bytes
    if at != len(state):
        raise refused
    return np.frombuffer(b"".join(parts), np.uint8)


def store_scattered(
    library: Library, cache: int, index: int, shape: Shape, rows: Sequence[npt.NDArray[np.float32]], n: int, first: int = 0
) -> None:
    """Store keys and values, float32 [any, n_head_kv, head_dim], repeated to n, in the cells from `first` to n of a layer.

    The first 64 go into their cells in order, the others in an order drawn at random.
    """
    draw = np.random.default_rng(n)
    order = np.concatenate([np.arange(min(n, _FIRST)), _FIRST + draw.permutation(max(0, n - _FIRST))])[first:].astype(np.int64)
    mask = np.full((_STEP, n), -np.inf, np.float16)
    queries = draw.standard_normal((_STEP, shape.n_head_kv, shape.head_dim_k), np.float32)
    out = np.empty((_STEP, shape.n_head_kv, shape.head_dim_v), np.float32)
    for start in range(0, len(order), _STEP):
        cells = order[start : start + _STEP]
        for i, cell in enumerate(cells):
            mask[i, cells[: i + 1]] = 0
            mask[i, : min(_FIRST, cell + 1)] = 0
        k, v = (x[cells % len(x)] for x in rows)
        arrays: dict[str, npt.NDArray[Any]] = {"k": k, "v": v, "q": queries, "out": out, "mask": mask, "cells": cells}
        numbers = {"n_tokens": len(cells), "n_stream": 1, "n_kv": n, "n_head": shape.n_head_kv, "scale": shape.head_dim_k**-0.5}
        library.prepare_step(cache, arrays, numbers, index)(1)
        mask[:, cells] = -np.inf


def repeat_to(engine: Engine, depth: int) -> None:
    """Repeat what an engine's cache holds until it holds `depth` tokens."""
    library, ids, rows = native_library(), [] if engine.kv is None else engine.kv.ids, []
    if len(ids) > 1:
        raise MikvError("this model has two caches, which cannot be repeated: use --fill prefill")
    for cache in ids:
        shape = library.stats(cache)["shape"]
        n = engine.n_past
        rows = [[library.read_rows(cache, i, value, n, shape) for value in (False, True)] for i in range(shape.n_layer)]
    engine.load_state(repeat_state(engine.state(), depth), depth)
    for index, pair in enumerate(rows):
        store_scattered(library, ids[0], index, shape, pair, depth, first=_FIRST)
