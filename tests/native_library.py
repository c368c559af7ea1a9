"""The native library for tests: the package's own `ffi` and `lib`, and `check` that turns a status into an exception."""

from __future__ import annotations

from mikv_cpp.plugin import native_library

_library = native_library()
ffi, lib = _library._ffi, _library._lib


class NativeError(Exception):
    """A native function's status, and its sentence as the message."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def check(status: int) -> None:
    """Raises NativeError unless status is MIKV_OK."""
    if status != lib.MIKV_OK:
        raise NativeError(status, text(lib.mikv_last_error()))


def text(pointer) -> str:
    """A C string as str."""
    return ffi.string(pointer).decode()


def kernel_names() -> list[str]:
    """Kernel sets that this machine can run, the plain one among them."""
    return _library.kernels()
