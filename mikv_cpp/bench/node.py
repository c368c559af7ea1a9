"""Our attention as llama.cpp runs it: a layer's SET_ROWS and FLASH_ATTN_EXT, by ggml's scheduler, on ggml's own threads."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.config import KVConfig
from mikv_cpp.errors import MikvError
from mikv_cpp.native import Shape
from mikv_cpp.plugin import ggml_function, mikv_device, native_library

_F32, _F16, _Q8_0, _I64 = 0, 1, 8, 27  # ggml_type: what llama.cpp believes the cache to be is q8_0
_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_POINTER, _INT, _INT64, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
_ROOM_BYTES = 1 << 20  # for the descriptions of a few tensors and a graph
_GRAPH_NODES = 64


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool))


class LayerNode:
    """A layer of a MIKV cache on its device, and the graph of one token that attends to n_cells cells of it.

    What the token brings is in `k`, `v` float32 [n_head_kv * head_dim], `q` float32 [n_head, head_dim], `mask` float16
    [n_cells] and `cell` int64 [1]; what it gets in `out` float32 [n_head, head_dim]: arrays that look at the graph's memory.
    """

    def __init__(self, config: KVConfig, shape: Shape, n_head: int, n_threads: int) -> None:
        device, library = mikv_device(), native_library()
        before = set(library.caches(device))
        library.configure(device, config, shape)
        self._contexts = [self._call("ggml_init", _POINTER, _InitParams(_ROOM_BYTES, None, True)) for _ in range(2)]
        cache = [self._cache_tensor(kind, shape) for kind in "kv"]
        buft = self._call("ggml_backend_dev_buffer_type", _POINTER, _POINTER(device))
        self._buffer = self._call("ggml_backend_alloc_ctx_tensors_from_buft", _POINTER, self._context(0), _POINTER(buft))
        made = [cache_id for cache_id in library.caches(device) if cache_id not in before]
        if not self._buffer or len(made) != 1:
            raise MikvError(f"no cache on the device: {library.note(device) or 'no memory'}")
        self.cache_id = made[0]
        self._build(cache, shape, n_head)
        self._schedule(device, n_threads)
        width = shape.n_head_kv * shape.head_dim_k
        self.k, self.v = (self._array(t, ctypes.c_float, np.float32, width) for t in (self._k, self._v))
        self.q = self._array(self._q, ctypes.c_float, np.float32, n_head * shape.head_dim_k).reshape(n_head, -1)
        self.mask = self._array(self._mask, ctypes.c_uint16, np.float16, shape.n_cells)
        self.cell = self._array(self._cell, ctypes.c_int64, np.int64, 1)
        self.out = self._array(self._out, ctypes.c_float, np.float32, n_head * shape.head_dim_v).reshape(n_head, -1)

    @staticmethod
    def _call(name: str, result: Any, *arguments: Any) -> Any:
        return ggml_function(name, result, *[type(argument) for argument in arguments])(*arguments)

    def _context(self, i: int) -> Any:
        return _POINTER(self._contexts[i])

    def _tensor(self, context: int, kind: int, *ne: int) -> Any:
        sizes = [_INT64(n) for n in (*ne, 1, 1)[:3]]
        return _POINTER(self._call("ggml_new_tensor_3d", _POINTER, self._context(context), _INT(kind), *sizes))

    def _cache_tensor(self, kind: str, shape: Shape) -> Any:
        tensor = self._tensor(0, _Q8_0, shape.n_head_kv * shape.head_dim_k, shape.n_cells)
        self._call("ggml_set_name", _POINTER, tensor, ctypes.c_char_p(f"cache_{kind}_l0".encode()))
        return tensor

    def _input(self, kind: int, *ne: int) -> Any:
        tensor = self._tensor(1, kind, *ne)
        for mark in ("ggml_set_input", "ggml_set_output"):  # an output's memory is nobody else's
            self._call(mark, None, tensor)
        return tensor

    def _build(self, cache: list[Any], shape: Shape, n_head: int) -> None:
        context, width, dim = self._context(1), shape.n_head_kv * shape.head_dim_k, shape.head_dim_k
        self._graph = _POINTER(self._call("ggml_new_graph", _POINTER, context))
        self._k, self._v = self._input(_F32, width, 1), self._input(_F32, width, 1)
        self._cell, self._mask = self._input(_I64, 1), self._input(_F16, shape.n_cells, 1)
        self._q = self._input(_F32, dim, 1, n_head)
        for tensor, rows in zip(cache, (self._k, self._v)):
            self._expand(self._call("ggml_set_rows", _POINTER, context, tensor, rows, self._cell))
        row, views = self._call("ggml_row_size", _SIZE, _INT(_Q8_0), _INT64(width)), []
        head = self._call("ggml_row_size", _SIZE, _INT(_Q8_0), _INT64(dim))
        for tensor in cache:
            sizes = [_INT64(n) for n in (dim, shape.n_head_kv, shape.n_cells, 1)]
            strides = [_SIZE(n) for n in (head, row, row * shape.n_cells, 0)]
            view = self._call("ggml_view_4d", _POINTER, context, tensor, *sizes, *strides)
            views.append(_POINTER(self._call("ggml_permute", _POINTER, context, _POINTER(view), *map(_INT, (0, 2, 1, 3)))))
        floats = [ctypes.c_float(x) for x in (dim**-0.5, 0.0, 0.0)]
        out = self._call("ggml_flash_attn_ext", _POINTER, context, self._q, *views, self._mask, *floats)
        self._out = _POINTER(out)
        self._call("ggml_set_output", None, self._out)
        self._expand(out)

    def _expand(self, tensor: int) -> None:
        self._call("ggml_build_forward_expand", None, self._graph, _POINTER(tensor))

    def _schedule(self, device: int, n_threads: int) -> None:
        """Give the graph to a scheduler, as llama.cpp does: it is known again when it is computed again."""
        own = self._call("ggml_backend_dev_init", _POINTER, _POINTER(device), ctypes.c_char_p(None))
        cpu = self._call("ggml_backend_init_by_type", _POINTER, _INT(_CPU), ctypes.c_char_p(None))
        registry = self._call("ggml_backend_dev_backend_reg", _POINTER, _POINTER(device))
        name = ctypes.c_char_p(b"ggml_backend_set_n_threads")
        address = self._call("ggml_backend_reg_get_proc_address", _POINTER, _POINTER(registry), name)
        ctypes.CFUNCTYPE(None, _POINTER, _INT)(address)(own, n_threads)
        self._backends = [own, cpu]
        both = (_POINTER * 2)(own, cpu)
        flags = [ctypes.c_bool(False), ctypes.c_bool(False)]
        arguments = (ctypes.cast(both, _POINTER), _POINTER(None), _INT(2), _SIZE(_GRAPH_NODES), *flags)
        self._scheduler = _POINTER(self._call("ggml_backend_sched_new", _POINTER, *arguments))
        if not self._call("ggml_backend_sched_alloc_graph", ctypes.c_bool, self._scheduler, self._graph):
            raise MikvError("no memory for the graph of a token")
        self._compute = ggml_function("ggml_backend_sched_graph_compute", _INT, _POINTER, _POINTER)

    def _array(self, tensor: Any, kind: Any, dtype: Any, n: int) -> NDArray[Any]:
        address = self._call("ggml_get_data", _POINTER, tensor)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), (n,)).view(dtype)

    def step(self) -> None:
        """Store the token's row, attend, select, commit."""
        if self._compute(self._scheduler, self._graph):
            raise MikvError("the device failed")

    def close(self) -> None:
        """Free everything; the arrays are gone."""
        self._call("ggml_backend_sched_free", None, self._scheduler)
        for backend in self._backends:
            self._call("ggml_backend_free", None, _POINTER(backend))
        self._call("ggml_backend_buffer_free", None, _POINTER(self._buffer))
        for i in range(2):
            self._call("ggml_free", None, self._context(i))
