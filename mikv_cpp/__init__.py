"""A mixed-precision KV cache for unmodified llama.cpp.

    from mikv_cpp import KVConfig, Llama

    llm = Llama("model.gguf", n_ctx=32768, kv=KVConfig(budget="25%"))  # a llama_cpp.Llama in every other respect
    llm.create_chat_completion([{"role": "user", "content": "Hello"}])
    llm.kv.stats()

`python -m mikv_cpp.run model.gguf` is the command line.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mikv_cpp.config import KVConfig
from mikv_cpp.errors import BudgetError, ConfigError, LibraryError, MikvError, ModelError, StateError

if TYPE_CHECKING:
    from mikv_cpp.cache import KVCache, KVStats, LayerStats
    from mikv_cpp.llama import Llama
    from mikv_cpp.native import PolicyQuery, find_library
    from mikv_cpp.plugin import register_policy

try:
    __version__ = version("mikv-cpp")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+checkout"

__all__ = [
    "BudgetError",
    "ConfigError",
    "KVCache",
    "KVConfig",
    "KVStats",
    "LayerStats",
    "LibraryError",
    "Llama",
    "MikvError",
    "ModelError",
    "PolicyQuery",
    "StateError",
    "find_library",
    "register_policy",
]

# Loaded when first asked for: they need llama.cpp, which configuration and command-line help do not.
_LATER = {
    "KVCache": "cache",
    "KVStats": "cache",
    "LayerStats": "cache",
    "Llama": "llama",
    "PolicyQuery": "native",
    "find_library": "native",
    "register_policy": "plugin",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"mikv_cpp.{_LATER[name]}"), name)
    raise AttributeError(f"module 'mikv_cpp' has no attribute {name!r}")
