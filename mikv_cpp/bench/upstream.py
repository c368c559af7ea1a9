"""llama.cpp's own attention operation, alone: what a layer's FLASH_ATTN_EXT costs with a cache of one of its types."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import MikvError
from mikv_cpp.plugin import ggml_function

GGML_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_POINTER, _INT64, _SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
_ROOM_BYTES = 1 << 20  # for the descriptions of a few tensors and a graph


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class UpstreamAttention:
    """One query token over n_kv cells, laid out as llama.cpp lays out its cache.

    k, v: float32 [n_kv, n_head_kv, head_dim]; q: float32 [n_head, head_dim]; all cells are visible.
    """

    def __init__(
        self, cache_type: str, k: NDArray[np.float32], v: NDArray[np.float32], q: NDArray[np.float32], n_threads: int
    ) -> None:
        self.n_kv, self._shape = len(k), q.shape
        self.size_bytes = 0  # of keys and values
        make = ggml_function("ggml_init", _POINTER, _InitParams)
        self._context = make(_InitParams(_ROOM_BYTES, None, True))
        self._backend = ggml_function("ggml_backend_init_by_type", _POINTER, ctypes.c_int, ctypes.c_char_p)(_CPU, None)
        if not self._context or not self._backend:
            raise MikvError("ggml has no CPU backend to compare with")
        ggml_function("ggml_backend_cpu_set_n_threads", None, _POINTER, ctypes.c_int)(self._backend, n_threads)
        rows = [self._tensor(GGML_TYPES[cache_type], *x.shape[::-1]) for x in (k, v)]
        query = self._tensor(GGML_TYPES["f32"], q.shape[1], 1, q.shape[0])
        mask = self._tensor(GGML_TYPES["f16"], self.n_kv, 1)
        permute = ggml_function("ggml_permute", _POINTER, _POINTER, _POINTER, *[ctypes.c_int] * 4)
        by_head = [permute(self._context, t, 0, 2, 1, 3) for t in rows]
        attend = ggml_function("ggml_flash_attn_ext", _POINTER, *[_POINTER] * 5, *[ctypes.c_float] * 3)
        self._out = attend(self._context, query, *by_head, mask, q.shape[1] ** -0.5, 0.0, 0.0)
        self._graph = ggml_function("ggml_new_graph", _POINTER, _POINTER)(self._context)
        ggml_function("ggml_build_forward_expand", None, _POINTER, _POINTER)(self._graph, self._out)
        alloc = ggml_function("ggml_backend_alloc_ctx_tensors", _POINTER, _POINTER, _POINTER)
        self._buffer = alloc(self._context, self._backend)
        if not self._buffer:
            raise MikvError(f"no memory for a {cache_type} cache of {self.n_kv} tokens to compare with")
        for tensor, x in zip(rows, (k, v)):
            self.size_bytes += self._set(tensor, self._packed(cache_type, x))
        self._set(query, q)
        self._set(mask, np.zeros(self.n_kv, np.float16))
        self._compute = ggml_function("ggml_backend_graph_compute", ctypes.c_int, _POINTER, _POINTER)

    def _tensor(self, kind: int, *ne: int) -> Any:
        new = ggml_function("ggml_new_tensor_4d", _POINTER, _POINTER, ctypes.c_int, *[_INT64] * 4)
        return new(self._context, kind, *(*ne, 1, 1, 1)[:4])

    def _set(self, tensor: Any, data: NDArray[Any]) -> int:
        data = np.ascontiguousarray(data)
        put = ggml_function("ggml_backend_tensor_set", None, _POINTER, _POINTER, _SIZE, _SIZE)
        put(tensor, data.ctypes.data, 0, data.nbytes)
        return data.nbytes

    @staticmethod
    def _packed(cache_type: str, x: NDArray[np.float32]) -> NDArray[Any]:
        if cache_type == "f16":
            return x.astype(np.float16)
        x = np.ascontiguousarray(x, np.float32)
        row_size = ggml_function("ggml_row_size", _SIZE, ctypes.c_int, _INT64)
        n_rows, width = x.shape[0], x.shape[1] * x.shape[2]
        packed = np.empty(n_rows * row_size(GGML_TYPES[cache_type], width), np.uint8)
        quantize = ggml_function("ggml_quantize_chunk", _SIZE, ctypes.c_int, _POINTER, _POINTER, *[_INT64] * 3, _POINTER)
        quantize(GGML_TYPES[cache_type], x.ctypes.data, packed.ctypes.data, 0, n_rows, width, None)
        return packed

    def step(self) -> None:
        """Attend once."""
        if self._compute(self._backend, self._graph):
            raise MikvError("llama.cpp's attention failed")

    def result(self) -> NDArray[np.float32]:
        """What the last step computed: float32 [n_head, head_dim]."""
        out = np.empty(self._shape, np.float32)
        get = ggml_function("ggml_backend_tensor_get", None, _POINTER, _POINTER, _SIZE, _SIZE)
        get(self._out, out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        """Free everything."""
        ggml_function("ggml_backend_buffer_free", None, _POINTER)(self._buffer)
        ggml_function("ggml_backend_free", None, _POINTER)(self._backend)
        ggml_function("ggml_free", None, _POINTER)(self._context)
