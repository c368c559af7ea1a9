"""llama.cpp's rotation of a decoded token inside the layer's node, beside the same by llama.cpp's own nodes.

A context that lets a callback look at rotations and attention computes these apart, so that nothing can be taken over. The
two differ in when they multiply with 1 / sqrt(n): for 64 and 256 values that is a power of two and changes no bit; 128 values
may be rounded otherwise.
"""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from llama_contexts import Context, quiet
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.config import KVConfig
from mikv_cpp.plugin import ggml_function

EXACT = KVConfig(k_bits=2, v_bits=2, refined_bits=8, refined_share=1.0, sinks=2, window=8)
MODELS = {
    "64": TinyModel(),
    "128, three heads": TinyModel(head_dim=128, n_head=6, n_head_kv=3),
    "256, norms": TinyModel(arch="gemma3", head_dim=256, n_head=2, n_head_kv=1, n_layer=6),
}


@api.ggml_backend_sched_eval_callback
def look_at_rotations(tensor, _ask, _data):
    return ggml_function("ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)(tensor) in (b"MUL_MAT", b"FLASH_ATTN_EXT")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_node_that_rotates_is_as_good_as_nodes_that_do(tmp_path, name, n_threads):
    quiet()
    path = write_tiny_model(tmp_path / "tiny.gguf", MODELS[name])
    sizes = {"n_ctx": 256, "n_threads": n_threads, "n_threads_batch": n_threads}
    contexts = [Context(path, "q8_0", EXACT, **sizes), Context(path, "q8_0", EXACT, cb_eval=look_at_rotations, **sizes)]
    for first, n in ((0, 40), (40, 1), (41, 1), (42, 3), (45, 1)):
        tokens = [(7 * position % 256, position, 0) for position in range(first, first + n)]
        (status, ours), (_, theirs) = (context.decode(tokens) for context in contexts)
        assert status == 0
        assert np.abs(ours).max() > 0.1
        # with 128 values: an eighth of an eight-bit step, should a value lie on its edge
        assert np.abs(ours - theirs).max() <= (0.01 if "128" in name else 1e-5)
    for context in contexts:
        context.close()
