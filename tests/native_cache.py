"""A native cache with the interface of mikv_cpp.reference.cache.ReferenceCache, so that one check serves both."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np
from native_library import check, ffi, lib

from mikv_cpp.reference.cache import Step
from mikv_cpp.reference.layout import Config, Shape


def native_config(config: Config, budget_bytes: int = 0, layers: str = ""):
    """mikv_config with the fields of a reference Config; the others at their defaults. layers: a table."""
    c = ffi.new("mikv_config *")
    lib.mikv_config_default(c)
    c.budget_bytes = budget_bytes
    shares = ("refined_share", "recent_share", "rows", "lead_share")
    for name in ("k_bits", "v_bits", "lead_bits", "refined_bits", "group", "sinks", "window", *shares):
        setattr(c, name, getattr(config, name))
    c.center_keys, c.rotate, c.end_points = int(config.center_keys), int(config.rotate), int(config.end_points)
    c.balance = ("off", "max", "rms", "salience", "range", "basis", "alike").index(config.balance)
    c.policy = config.policy.encode()
    if layers:
        c.layers = b"test"
        check(lib.mikv_layers_register(b"test", layers.encode()))
    return c


def native_shape(shape: Shape):
    """mikv_shape of a reference Shape."""
    s = ffi.new("mikv_shape *")
    for name, value in vars(shape).items():
        setattr(s, name, value)
    return s


def config_bytes(config: Config, shape: Shape, budget_bytes: int = 0) -> int:
    """What mikv_config_bytes says."""
    size = ffi.new("int64_t *")
    check(lib.mikv_config_bytes(native_config(config, budget_bytes), native_shape(shape), size))
    return size[0]


class NativeCache:
    """A cache without llama.cpp, on the kernel set that is selected while it works."""

    def __init__(self, config: Config, shape: Shape, budget_bytes: int = 0, n_threads: int = 1, layers: str = ""):
        self.config, self.shape, self.n_threads = config, shape, n_threads
        self._id = ffi.new("uint64_t *")
        check(lib.mikv_cache_create(native_config(config, budget_bytes, layers), native_shape(shape), self._id))

    @property
    def id(self) -> int:
        return self._id[0]

    def close(self) -> None:
        check(lib.mikv_cache_free(self.id))

    def __enter__(self) -> NativeCache:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def step(self, layer: int, step: Step) -> np.ndarray:
        """As ReferenceCache.step; float32."""
        n_stream, n, n_head, _ = step.q.shape
        streams = step.first_stream + np.arange(n_stream)[:, None]
        arrays = {
            "cells": np.ascontiguousarray(step.cells + streams * self.shape.n_cells, np.int64),
            "k": np.ascontiguousarray(step.k, np.float32),
            "v": np.ascontiguousarray(step.v, np.float32),
            "q": np.ascontiguousarray(step.q, np.float32),
            "mask": np.ascontiguousarray(step.mask, np.float16),
            "out": np.full((n_stream, n, n_head, self.shape.head_dim_v), np.nan, np.float32),
        }
        if step.sinks is not None:
            arrays["sinks"] = np.ascontiguousarray(step.sinks, np.float32)
        s = ffi.new("mikv_step *")
        s.n_tokens, s.n_stream, s.first_stream = n_stream * n, n_stream, step.first_stream
        s.n_kv, s.n_head = step.mask.shape[-1], n_head
        s.scale, s.max_bias, s.logit_softcap = step.scale, step.max_bias, step.logit_softcap
        for name, array in arrays.items():
            setattr(s, name, ffi.cast(f"{_POINTER[name]} *", array.ctypes.data))
        check(lib.mikv_cache_step(self.id, layer, s, self.n_threads))
        return arrays["out"]

    def read(self, layer: int, value: int, stream: int, first_cell: int, n: int) -> np.ndarray:
        s = self.shape
        out = np.full((n, s.n_head_kv, s.head_dim_v if value else s.head_dim_k), np.nan, np.float32)
        check(lib.mikv_cache_read(self.id, layer, value, stream, first_cell, n, ffi.from_buffer("float[]", out)))
        return out

    def write(self, layer: int, value: int, stream: int, first_cell: int, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows, np.float32)
        buffer = ffi.from_buffer("float[]", rows)
        check(lib.mikv_cache_write(self.id, layer, value, stream, first_cell, len(rows), buffer))

    def precision(self, layer: int, stream: int) -> np.ndarray:
        out = np.zeros((self.shape.n_head_kv, self.shape.n_cells), np.uint8)
        check(lib.mikv_cache_precision(self.id, layer, stream, ffi.from_buffer("uint8_t[]", out)))
        return out

    def scores(self, layer: int, stream: int) -> np.ndarray:
        out = np.zeros((self.shape.n_head_kv, self.shape.n_cells), np.float32)
        check(lib.mikv_cache_scores(self.id, layer, stream, ffi.from_buffer("float[]", out)))
        return out

    def clear(self) -> None:
        check(lib.mikv_cache_clear(self.id))

    def copy_stream(self, source: int, target: int) -> None:
        check(lib.mikv_cache_copy_stream(self.id, source, target))

    def write_state(self, cells: Optional[np.ndarray] = None) -> bytes:
        """A state of these cells, stream * n_cells + cell; default: all of them."""
        if cells is None:
            cells = np.arange(self.shape.n_stream * self.shape.n_cells)
        cells, size = np.ascontiguousarray(cells, np.int64), ffi.new("int64_t *")
        pointer = ffi.from_buffer("int64_t[]", cells)
        check(lib.mikv_state_write(self.id, pointer, len(cells), ffi.NULL, 0, size))
        out = bytearray(size[0])
        check(lib.mikv_state_write(self.id, pointer, len(cells), ffi.from_buffer(out), len(out), size))
        return bytes(out)

    def read_state(self, state: bytes, cells: Optional[np.ndarray] = None) -> None:
        """Become what the state says, in these cells; default: the first ones of each stream."""
        twin, pointer, n = ffi.new("uint64_t *"), ffi.NULL, 0
        if cells is not None:
            cells = np.ascontiguousarray(cells, np.int64)
            pointer, n = ffi.from_buffer("int64_t[]", cells), len(cells)
        check(lib.mikv_state_read(self.id, ffi.from_buffer(state), len(state), pointer, n, twin))
        check(lib.mikv_state_swap(self.id, twin[0]))
        check(lib.mikv_cache_free(twin[0]))

    def stats(self):
        """mikv_stats."""
        stats = ffi.new("mikv_stats *")
        check(lib.mikv_cache_stats(self.id, stats))
        return stats

    def layer_stats(self, layer: int):
        """mikv_layer_stats."""
        stats = ffi.new("mikv_layer_stats *")
        check(lib.mikv_cache_layer_stats(self.id, layer, stats))
        return stats

    @property
    def n_slots(self) -> int:
        """Refined rows that fit, per KV head and stream, where all heads are alike."""
        return self.layer_stats(0).n_slots // self.shape.n_head_kv


_POINTER = {
    "cells": "int64_t", "k": "float", "v": "float", "q": "float", "mask": "uint16_t", "sinks": "float", "out": "float",
}  # fmt: skip


def with_share(config: Config, share: float) -> Config:
    """The same configuration with another share of refined cells."""
    return replace(config, refined_share=share)
