"""The native library for tests: `ffi` and `lib`, and `check` that turns a status into an exception."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent


class NativeError(Exception):
    """A native function's status, and its sentence as the message."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def _load_ggml() -> None:
    """Makes the ggml that llama_cpp brings visible to the plug-in, without starting llama.cpp."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec and spec.origin, "llama-cpp-python is not installed: pip install llama-cpp-python==0.3.36"
    folder = Path(spec.origin).parent / "lib"
    for name in ("libggml-base.so.0", "libggml.so.0"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)


def _library_path() -> str:
    found = os.environ.get("MIKV_LIBRARY") or next(map(str, (ROOT / "mikv_cpp" / "lib").glob("libggml-mikv.*")), None)
    assert found, "libggml-mikv not found: build it (pip install -e .) or set MIKV_LIBRARY to its path"
    return found


ffi = cffi.FFI()
ffi.cdef((ROOT / "native" / "include" / "mikv_decl.h").read_text())
_load_ggml()
lib = ffi.dlopen(_library_path())


def check(status: int) -> None:
    """Raises NativeError unless status is MIKV_OK."""
    if status != lib.MIKV_OK:
        raise NativeError(status, text(lib.mikv_last_error()))


def text(pointer) -> str:
    """A C string as str."""
    return ffi.string(pointer).decode()


def kernel_names() -> list[str]:
    """Kernel sets that this machine can run, the plain one among them."""
    return [text(lib.mikv_kernel_name(i)) for i in range(lib.mikv_kernel_count())]
