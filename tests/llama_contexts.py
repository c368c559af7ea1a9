"""Contexts on one model, side by side: each operation is done on all of them, and must be answered alike by all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import llama_cpp.llama_cpp as api
import numpy as np

from mikv_cpp.config import KVConfig
from mikv_cpp.model_file import read_model_file
from mikv_cpp.plan import cache_shapes
from mikv_cpp.plugin import device_list, mikv_device, native_library, silence_log

TYPES = {"f16": api.GGML_TYPE_F16, "q8_0": api.GGML_TYPE_Q8_0}


@dataclass(frozen=True)
class Split:
    """Whose layers are whose: of ggml's devices at `devices`, in equal parts, the last `n_layers`, the output among them."""

    devices: Sequence[int]
    n_layers: int = -1  # -1: all


class Context:
    """One llama.cpp context: on stock llama.cpp with a cache of type `cache`, or on the plug-in."""

    def __init__(self, path: Path, cache: str, config: Optional[KVConfig], split: Optional[Split] = None, **sizes: Any):
        split = split or Split([mikv_device()] if config else [], -1 if config else 0)
        self.devices = device_list(split.devices)
        parts = (ctypes.c_float * api.llama_max_devices())(*[1.0] * len(split.devices))
        params = api.llama_model_default_params()
        params.devices = ctypes.cast(self.devices, ctypes.c_void_p)
        params.n_gpu_layers = split.n_layers
        params.tensor_split = ctypes.cast(parts, ctypes.POINTER(ctypes.c_float)) if len(split.devices) > 1 else None
        self.model = api.llama_model_load_from_file(os.fsencode(path), params)
        assert self.model
        before = {cache for device in split.devices for cache in native_library().caches(device)}
        if config:
            shape = cache_shapes(read_model_file(path), 256)[0] if cache == "f16" else None
            for device in split.devices:
                native_library().configure(device, config, shape)
        params = api.llama_context_default_params()
        params.type_k = params.type_v = TYPES[cache]
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.offload_kqv = True
        params.n_threads = params.n_threads_batch = 1
        for name, value in sizes.items():
            setattr(params, name, value)
        self.context = api.llama_init_from_model(self.model, params)
        assert self.context
        self.memory = api.llama_get_memory(self.context)
        self.caches = [
            cache for device in split.devices for cache in native_library().caches(device) if config and cache not in before
        ]
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def decode(self, tokens: list[tuple[int, int, int]]) -> tuple[int, np.ndarray]:
        """(token, position, sequence) of each; llama_decode's status and the logits [n, n_vocab]."""
        batch = api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 1
            batch.seq_id[i][0] = sequence
        status = api.llama_decode(self.context, batch)
        api.llama_batch_free(batch)
        if status:
            return status, np.zeros((0, self.n_vocab), np.float32)
        rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, i), (self.n_vocab,)) for i in range(len(tokens))]
        return status, np.array(rows)

    def save(self, sequence: Optional[int] = None) -> bytes:
        """State of everything, or of one sequence."""
        if sequence is None:
            buffer = (ctypes.c_uint8 * api.llama_state_get_size(self.context))()
            size = api.llama_state_get_data(self.context, buffer, len(buffer))
        else:
            buffer = (ctypes.c_uint8 * api.llama_state_seq_get_size(self.context, sequence))()
            size = api.llama_state_seq_get_data(self.context, buffer, len(buffer), sequence)
        assert size
        return bytes(buffer[:size])

    def load(self, state: bytes, sequence: Optional[int] = None) -> bool:
        """The inverse of save; whether llama.cpp took it."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if sequence is None:
            return api.llama_state_set_data(self.context, buffer, len(state)) > 0
        return api.llama_state_seq_set_data(self.context, buffer, len(state), sequence) > 0

    def close(self) -> None:
        api.llama_free(self.context)
        api.llama_model_free(self.model)


def quiet() -> None:
    """llama.cpp's log off."""
    silence_log()
