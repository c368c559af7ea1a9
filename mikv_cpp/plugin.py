"""The plug-in in llama-cpp-python's ggml: found, loaded, its device named; and llama.cpp's log."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import ConfigError, LibraryError
from mikv_cpp.native import Library, PolicyQuery

LLAMA_CPP_VERSION = "0.3.36"  # pyproject.toml pins the same; tests compare the two

try:
    import llama_cpp
    import llama_cpp.llama_cpp as api
except (ImportError, OSError, RuntimeError) as _error:
    raise LibraryError(
        f"llama-cpp-python {LLAMA_CPP_VERSION} cannot be loaded ({_error}): `pip install llama-cpp-python=={LLAMA_CPP_VERSION}`"
    ) from _error

_PREFIX = "MIKV"
_DEFAULT = "MIKV0"
_BACKENDS = "MIKV_GGML_BACKENDS"  # environment: further backends of ggml, such as a libggml-cuda, to load before ours
_CHOICE = "MIKV_DEVICE"  # environment: the ggml device to use, also of processes that this one starts
_LOG_WARNING, _LOG_ERROR = 3, 4  # GGML_LOG_LEVEL_*
_DEVICE_TYPE_GPU = 1  # GGML_BACKEND_DEVICE_TYPE_GPU


# --- ggml and the plug-in -----------------------------------------------------------------------------------------------------


def ggml_function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the ggml that libllama uses, found through libllama itself: its folder holds further copies of ggml."""
    library: Any = api._lib
    if (
        sys.platform == "win32"
    ):  # there, a library does not show what it links to; ggml.dll and ggml-base.dll are loaded already
        folder = Path(api.__file__).parent / "lib"
        both = [ctypes.CDLL(str(folder / file)) for file in ("ggml.dll", "ggml-base.dll")]
        library = next(part for part in both if hasattr(part, name))
    return ctypes.CFUNCTYPE(result, *arguments)((name, library))


def check_version() -> None:
    """Refuse any llama-cpp-python but the one that the native library was built for.

    Raises:
        LibraryError: another version is installed.
    """
    found = llama_cpp.__version__
    if found != LLAMA_CPP_VERSION:
        raise LibraryError(
            f"llama-cpp-python {found} is installed, but mikv_cpp needs {LLAMA_CPP_VERSION}: "
            f"`pip install llama-cpp-python=={LLAMA_CPP_VERSION}`"
        )


@functools.cache
def native_library() -> Library:
    """The native library, loaded once.

    Raises:
        LibraryError: it is missing, or of another ggml or llama-cpp-python.
    """
    check_version()
    return Library(ggml_function("ggml_version", ctypes.c_char_p)().decode())


def _devices() -> dict[str, int]:
    """Addresses of ggml's devices by name."""
    get = ggml_function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    name = ggml_function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    every = [get(i) for i in range(ggml_function("ggml_backend_dev_count", ctypes.c_size_t)())]
    return {name(device).decode(): int(device) for device in every}


def _registered() -> dict[str, int]:
    """Addresses of the MIKV devices by name, first of all the one that is used unless another is asked for.

    Raises:
        LibraryError: llama.cpp refuses the plug-in.
    """
    library = native_library()
    if _DEFAULT not in _devices():
        with ErrorLog(forward=False) as log:
            load = ggml_function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
            for backend in filter(None, os.environ.get(_BACKENDS, "").split(os.pathsep)):
                load(os.fsencode(backend))
            load(os.fsencode(library.path))
        if _DEFAULT not in _devices():
            reason = library.last_error() or log.first or "it registered no device"
            raise LibraryError(f"llama.cpp refused the native library {library.path} ({reason}): reinstall mikv-cpp")
    return {name: device for name, device in _devices().items() if name.startswith(_PREFIX)}


def use_device(name: Optional[str]) -> None:
    """From now on, use the ggml device of this name ("CUDA0", "CPU"; "MIKV1": what MIKV1 decorates); None: the first.

    Raises:
        ConfigError: there is no such device.
    """
    if name:
        os.environ[_CHOICE] = name
        mikv_device()


def mikv_device() -> int:
    """Address of the MIKV device to use, registering it with ggml the first time.

    Raises:
        LibraryError: llama.cpp refuses the plug-in.
        ConfigError: the device that was asked for is not there.
    """
    ours, wanted = _registered(), os.environ.get(_CHOICE) or _DEFAULT
    inner = {native_library().inner(device): device for device in reversed(ours.values())}
    found = ours.get(wanted) or inner.get(wanted)
    if found is None:
        raise ConfigError(
            f"there is no device {wanted!r} here, only {', '.join(sorted(inner))}: choose one of these, or install a "
            "llama-cpp-python that was built for it"
        )
    return found


def chosen_devices() -> list[int]:
    """Addresses of the devices for llama.cpp's own caches beside ours: the GPU that was asked for; none: the CPU."""
    inner = _devices()[native_library().inner(mikv_device())]
    return [inner] if os.environ.get(_CHOICE) and _kind(inner) == _DEVICE_TYPE_GPU else []


def _kind(device: int) -> int:
    return int(ggml_function("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)(device))


def plain_devices() -> list[int]:
    """Addresses of the devices that llama.cpp would use if the plug-in were not there."""
    return [device for name, device in _devices().items() if _kind(device) == _DEVICE_TYPE_GPU and not name.startswith(_PREFIX)]


def gpu_free_bytes() -> Optional[int]:
    """Memory that is free on the GPU that the chosen MIKV device decorates; None where it decorates the CPU."""
    inner = _devices()[native_library().inner(mikv_device())]
    if _kind(inner) != _DEVICE_TYPE_GPU:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    memory = ggml_function("ggml_backend_dev_memory", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    memory(inner, ctypes.addressof(free), ctypes.addressof(total))
    return int(free.value)


def device_list(devices: Sequence[int]) -> Any:
    """The NULL-terminated array that llama_model_params.devices points to; the caller keeps it alive."""
    return (ctypes.c_void_p * (len(devices) + 1))(*devices, None)


def register_policy(name: str, rank: Callable[[PolicyQuery], NDArray[np.float32]]) -> None:
    """Make a Python function the policy called `name`, in the place of one that was registered so before.

    rank(query) gets a PolicyQuery of n rows and returns float32 [n]: rows with the highest priority keep or get refinement.
    It is called at commits, from llama.cpp's worker threads; if it fails, the failure is logged once and the rows get
    priority 0.

    Raises:
        ConfigError: the name of a built-in policy, or one that cannot be used.
    """
    native_library().register_policy(name, rank)


# --- llama.cpp's log ----------------------------------------------------------------------------------------------------------


class ErrorLog:
    """While it is open, the first error in llama.cpp's log is kept: later ones are its echo. The log is one per process.

    forward: pass every line on to where it went before; else warnings only.
    """

    def __init__(self, forward: bool = True) -> None:
        self.first = ""
        self._forward = forward
        self._before = api.llama_log_callback()
        self._before_data = ctypes.c_void_p()
        self._callback = api.llama_log_callback(self._keep)

    def __enter__(self) -> ErrorLog:
        api.llama_log_get(ctypes.byref(self._before), ctypes.byref(self._before_data))
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        return self

    def __exit__(self, *_: object) -> None:
        api.llama_log_set(self._before, self._before_data)

    def _keep(self, level: int, text: bytes, _data: Any) -> None:
        if level == _LOG_ERROR and text.strip() and not self.first:
            self.first = text.decode(errors="replace").strip().split("\n")[-1]
        if (self._forward or level == _LOG_WARNING) and self._before:
            self._before(level, text, self._before_data)


_no_log = api.llama_log_callback(lambda _level, _text, _data: None)


def silence_log() -> None:
    """Drop all log lines of llama.cpp from now on, for the whole process. Errors still reach the exceptions."""
    api.llama_log_set(_no_log, ctypes.c_void_p(0))
