"""The native library, seen from Python: the only file that knows cffi.

The C declarations are read from the installed mikv_decl.h, so that no prototype is written twice.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import cffi
import numpy as np
from numpy.typing import NDArray

from mikv_cpp.config import BALANCES, POLICIES, KVConfig
from mikv_cpp.errors import BudgetError, ConfigError, LibraryError, MikvError, StateError
from mikv_cpp.transfer import Transfer

_LOG = logging.getLogger("mikv_cpp")
_LIBRARY_NAMES = {"win32": ("ggml-mikv.dll", "libggml-mikv.dll"), "darwin": ("libggml-mikv.so", "libggml-mikv.dylib")}
_REBUILD = "reinstall mikv-cpp (in its sources: `pip install --force-reinstall --no-deps .`), or set MIKV_LIBRARY to the file"


@dataclass(frozen=True)
class Shape:
    """What a cache is: its sizes. Head sizes are in values, cells per stream."""

    n_layer: int
    n_head_kv: int
    n_cells: int
    n_stream: int
    head_dim_k: int
    head_dim_v: int


def logical_type(config: KVConfig, shape: Optional[Shape]) -> str:
    """What llama.cpp is told to store. q8_0 brings its rotation; f16 keeps rows as they are, to be balanced or left unrotated.

    Head sizes that are no multiple of 64 get f16 too: llama.cpp does not rotate them, a context shift of a q8_0 cache that is
    not rotated makes llama.cpp 0.3.36 crash, and q8_0 wants a multiple of 32.
    """
    own_space = config.balance != "off" or not config.rotate or config.lead_share > 0
    return "f16" if own_space or (shape and (shape.head_dim_k % 64 or shape.head_dim_v % 64)) else "q8_0"


@dataclass(frozen=True)
class PolicyQuery:
    """The question put to a policy: rank n rows of one KV head.

    Attributes:
        layer: llama.cpp's layer number.
        head: KV head.
        now: tokens stored so far, the newest included.
        cell: uint32 [n], where each row lies.
        born: uint32 [n], the value of `now` when the row was stored: larger is younger.
        mass: float32 [n], attention mass accumulated since then.
        value_norm: float32 [n], Euclidean norm of the value, estimated from its groups' ranges.
    """

    layer: int
    head: int
    now: int
    cell: NDArray[np.uint32]
    born: NDArray[np.uint32]
    mass: NDArray[np.float32]
    value_norm: NDArray[np.float32]


def _package_folders() -> list[Path]:
    """Folders of the package: an editable install has two, the checkout and what CMake installed.

    And where Python runs in a checkout, which it then prefers to the installed package, that package all the same.
    """
    own = [Path(folder) for folder in importlib.import_module(__package__ or "mikv_cpp").__path__]
    installed = [Path(entry) / "mikv_cpp" for entry in sys.path if entry]
    return own + [folder for folder in installed if folder.is_dir() and folder not in own]


def find_library() -> Path:
    """Path of libggml-mikv, for programs that load it themselves: MIKV_LIBRARY, else in the package's lib folder.

    Raises:
        LibraryError: neither is there.
    """
    named = os.environ.get("MIKV_LIBRARY")
    if named:
        if not Path(named).is_file():
            raise LibraryError(f"MIKV_LIBRARY names {named!r}, which is not a file: correct or unset it")
        return Path(named).resolve()
    folders = [folder / "lib" for folder in _package_folders()]
    for folder in folders:
        for name in _LIBRARY_NAMES.get(sys.platform, ("libggml-mikv.so",)):
            if (folder / name).is_file():
                return (folder / name).resolve()
    raise LibraryError(f"the native library was not found in {folders[0]}: {_REBUILD}")


def _find_declarations() -> str:
    """Text of mikv_decl.h: installed in the package, or in the checkout that the package runs from."""
    for folder in _package_folders():
        for path in (folder / "include" / "mikv_decl.h", folder.parent / "native" / "include" / "mikv_decl.h"):
            if path.is_file():
                return path.read_text(encoding="utf-8")
    raise LibraryError(f"mikv_decl.h was not found in the package's include folder: {_REBUILD}")


class Library:
    """libggml-mikv. Needs ggml in the process already: load llama_cpp first.

    Raises:
        LibraryError: not found, not loadable, or built for another ggml.
    """

    def __init__(self, ggml_version: str) -> None:
        self.path = find_library()
        self._ffi = cffi.FFI()
        self._ffi.cdef(_find_declarations())
        self._callbacks: list[Any] = []  # they live as long as something refers to them, and caches may still call old ones
        try:
            self._lib = self._ffi.dlopen(str(self.path))
            built_for = self._text(self._lib.mikv_ggml_version())
        except (OSError, AttributeError) as error:
            raise LibraryError(f"the native library {self.path} cannot be loaded ({error}): {_REBUILD}") from error
        if built_for != ggml_version:
            raise LibraryError(
                f"the native library {self.path} was built for ggml {built_for}, but llama-cpp-python brought ggml "
                f"{ggml_version}: {_REBUILD}"
            )

    # --- library ----------------------------------------------------------------------------------------------------

    def version(self) -> str:
        """Version of the native library."""
        return self._text(self._lib.mikv_version())

    def last_error(self) -> str:
        """The sentence about this thread's last failure, "" if there was none."""
        return self._text(self._lib.mikv_last_error())

    def kernels(self) -> list[str]:
        """Kernel sets that this machine can run."""
        return [self._text(self._lib.mikv_kernel_name(i)) for i in range(self._lib.mikv_kernel_count())]

    def kernel(self) -> str:
        """The kernel set in use."""
        return self._text(self._lib.mikv_kernel_selected())

    def policies(self) -> list[str]:
        """Names of all policies, the registered ones included."""
        return [self._text(self._lib.mikv_policy_name(i)) for i in range(self._lib.mikv_policy_count())]

    def register_policy(self, name: str, rank: Callable[[PolicyQuery], NDArray[np.float32]]) -> None:
        """Make `rank` the policy called `name`, in the place of one that was registered so before.

        Raises:
            ConfigError: the name of a built-in policy, or one that cannot be used.
        """
        report_once = _ReportOnce(name)

        def call(_user: Any, query: Any, priority: Any) -> None:
            if query.n <= 0:
                return
            out = np.frombuffer(self._ffi.buffer(priority, 4 * query.n), dtype=np.float32)
            out[:] = 0.0
            try:
                out[:] = np.asarray(rank(self._query(query)), dtype=np.float32)
            except Exception as error:  # noqa: BLE001 - it must not cross into C; the answer goes on without a ranking
                report_once(error)

        callback = self._ffi.callback("mikv_policy_fn", call)
        self._callbacks.append(callback)
        self._check(self._lib.mikv_policy_register(name.encode(), callback, self._ffi.NULL))
        if name not in POLICIES:
            POLICIES.append(name)

    def _query(self, query: Any) -> PolicyQuery:
        def copied(pointer: Any, kind: type[Any]) -> NDArray[Any]:
            return np.array(np.frombuffer(self._ffi.buffer(pointer, 4 * query.n), dtype=kind))

        return PolicyQuery(
            layer=query.layer,
            head=query.head,
            now=query.now,
            cell=copied(query.cell, np.uint32),
            born=copied(query.born, np.uint32),
            mass=copied(query.mass, np.float32),
            value_norm=copied(query.value_norm, np.float32),
        )

    # --- configuration and devices ------------------------------------------------------------------------------------

    def config_bytes(self, config: KVConfig, shape: Shape, budget_bytes: int = 0) -> int:
        """Bytes that a cache of this shape takes, metadata included.

        Raises:
            BudgetError: budget_bytes is too small for it; the sentence names the smallest that works.
            ConfigError: a value that cannot be used.
        """
        size = self._ffi.new("int64_t *")
        c_shape = self._ffi.new("mikv_shape *", vars(shape))
        self._check(self._lib.mikv_config_bytes(self._config(config, shape, budget_bytes), c_shape, size))
        return int(size[0])

    def configure(self, device: int, config: KVConfig, shape: Optional[Shape], budget_bytes: int = 0) -> None:
        """Set how caches made on `device` (address of a ggml device) store their tokens from now on."""
        handle = self._ffi.cast("void *", device)
        self._check(self._lib.mikv_device_configure(handle, self._config(config, shape, budget_bytes)))

    def caches(self, device: int) -> list[int]:
        """Ids of the caches on `device`, oldest first."""
        handle = self._ffi.cast("void *", device)
        n = self._lib.mikv_device_caches(handle, self._ffi.NULL, 0)
        ids = self._ffi.new("uint64_t[]", max(n, 1))
        n = min(n, self._lib.mikv_device_caches(handle, ids, n))
        return [int(ids[i]) for i in range(n)]

    def note(self, device: int) -> str:
        """Why the newest cache on `device` was passed through uncompressed; "" if it was not."""
        return self._text(self._lib.mikv_device_note(self._ffi.cast("void *", device)))

    def inner(self, device: int) -> str:
        """Name of the ggml device that the MIKV device `device` decorates, such as "CUDA0"; "" if it is none of ours."""
        return self._text(self._lib.mikv_device_inner(self._ffi.cast("void *", device)))

    def home(self, cache: int) -> str:
        """Where a cache's rows are and its attention is computed: "CPU", "CUDA", "Metal" or "emulated"; "" if it is gone."""
        return self._text(self._lib.mikv_cache_home(cache))

    def _config(self, config: KVConfig, shape: Optional[Shape], budget_bytes: int) -> Any:
        out = self._ffi.new("mikv_config *")
        self._lib.mikv_config_default(out)
        for name in ("k_bits", "v_bits", "refined_bits", "refined_share", "rows", "group", "sinks", "window", "recent_share"):
            setattr(out, name, getattr(config, name))
        out.lead_share, out.lead_bits = config.lead_share, config.lead_bits
        for name in ("center_keys", "rotate", "end_points"):
            setattr(out, name, int(getattr(config, name)))
        out.balance = BALANCES.index(config.balance)
        out.policy = config.policy.encode()
        if config.layers:
            out.layers = f"table-{zlib.crc32(config.layers.encode()):08x}".encode()
            self._check(self._lib.mikv_layers_register(self._ffi.string(out.layers), config.layers.encode()))
        out.budget_bytes = budget_bytes
        out.compress_f16 = int(logical_type(config, shape) == "f16")
        out.head_dim_k = shape.head_dim_k if shape else 0
        out.head_dim_v = shape.head_dim_v if shape else 0
        return out

    # --- caches ---------------------------------------------------------------------------------------------------------

    def stats(self, cache: int) -> dict[str, Any]:
        """Fields of mikv_stats; `shape` is a Shape, `config` a dict."""
        stats = self._ffi.new("mikv_stats *")
        self._check(self._lib.mikv_cache_stats(cache, stats))
        out = dict(self._fields(stats))
        out["shape"] = Shape(**dict(self._fields(stats.shape)))
        out["config"] = dict(self._fields(stats.config))
        return out

    def layer_stats(self, cache: int, index: int) -> dict[str, Any]:
        """Fields of mikv_layer_stats of the index-th layer of the cache."""
        stats = self._ffi.new("mikv_layer_stats *")
        self._check(self._lib.mikv_cache_layer_stats(cache, index, stats))
        return dict(self._fields(stats))

    def precision(self, cache: int, index: int, stream: int, shape: Shape) -> NDArray[np.uint8]:
        """uint8 [n_head_kv, n_cells]: bits of each row's key, 16 where exact, 0 where the cell is empty."""
        out = np.zeros((shape.n_head_kv, shape.n_cells), dtype=np.uint8)
        pointer = self._ffi.cast("uint8_t *", out.ctypes.data)
        self._check(self._lib.mikv_cache_precision(cache, index, stream, pointer))
        return out

    def scores(self, cache: int, index: int, stream: int, shape: Shape) -> NDArray[np.float32]:
        """float32 [n_head_kv, n_cells]: accumulated attention mass of refined rows, 0 elsewhere."""
        out = np.zeros((shape.n_head_kv, shape.n_cells), dtype=np.float32)
        pointer = self._ffi.cast("float *", out.ctypes.data)
        self._check(self._lib.mikv_cache_scores(cache, index, stream, pointer))
        return out

    # --- saved caches ---------------------------------------------------------------------------------------------------

    def write_state(self, cache: int, cells: NDArray[np.int64]) -> bytes:
        """What these cells (stream * n_cells + cell, ascending) hold, packed as it is."""
        chosen = np.ascontiguousarray(cells, np.int64)
        pointer, size = self._ffi.cast("int64_t *", chosen.ctypes.data), self._ffi.new("int64_t *")
        self._check(self._lib.mikv_state_write(cache, pointer, chosen.size, self._ffi.NULL, 0, size))
        out = bytearray(size[0])
        self._check(self._lib.mikv_state_write(cache, pointer, chosen.size, self._ffi.from_buffer(out), len(out), size))
        return bytes(out)

    def read_state(self, cache: int, state: bytes) -> int:
        """The id of a twin of the cache that holds the state, in the first cells of each stream; to be given to free_cache.

        Raises:
            StateError: damaged, of another model, or too long; the cache is as it was in any case.
        """
        twin = self._ffi.new("uint64_t *")
        self._check(self._lib.mikv_state_read(cache, self._ffi.from_buffer(state), len(state), self._ffi.NULL, 0, twin))
        return int(twin[0])

    def swap_state(self, cache: int, twin: int) -> None:
        """Have a cache and a twin of it change contents."""
        self._check(self._lib.mikv_state_swap(cache, twin))

    @contextmanager
    def watched(self, memory: NDArray[np.uint8]) -> Iterator[list[Transfer]]:
        """Within, llama.cpp carries no rows of packed caches in this thread; at its end the list has what it did not."""
        found: list[Transfer] = []
        self._check(self._lib.mikv_transfers_begin(self._ffi.cast("void *", memory.ctypes.data), memory.size))
        try:
            yield found
            n = self._lib.mikv_transfers(self._ffi.NULL, 0)
            if n < 0:
                raise StateError("llama.cpp carries parts of rows: its state cannot be kept packed")
            notes = self._ffi.new("mikv_transfer[]", max(n, 1))
            self._lib.mikv_transfers(notes, n)
            found += [Transfer(**dict(self._fields(notes[i]))) for i in range(n)]
        finally:
            self._lib.mikv_transfers_end()

    # --- a cache without llama.cpp ------------------------------------------------------------------------------------

    def create_cache(self, config: KVConfig, shape: Shape) -> int:
        """The id of a new cache, to be given to free_cache.

        Raises:
            ConfigError, BudgetError: sizes or values that cannot be used.
        """
        cache = self._ffi.new("uint64_t *")
        self._check(
            self._lib.mikv_cache_create(self._config(config, shape, 0), self._ffi.new("mikv_shape *", vars(shape)), cache)
        )
        return int(cache[0])

    def free_cache(self, cache: int) -> None:
        """Free a cache made by create_cache."""
        self._check(self._lib.mikv_cache_free(cache))

    def prepare_step(
        self, cache: int, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, float], index: int = 0
    ) -> Callable[[int], None]:
        """One layer's part of a micro-batch, to be run on so many threads, over and over: fields of mikv_step.

        arrays: of the field's type, contiguous; the caller may change what they hold, and keeps them alive.
        """
        step = self._ffi.new("mikv_step *", dict(numbers))
        for field, array in arrays.items():
            setattr(step, field, self._ffi.cast(self._ffi.typeof(getattr(step, field)), array.ctypes.data))

        def run(n_threads: int) -> None:
            self._check(self._lib.mikv_cache_step(cache, index, step, n_threads))

        return run

    def read_rows(self, cache: int, index: int, value: bool, n: int, shape: Shape) -> NDArray[np.float32]:
        """float32 [n, n_head_kv, head_dim]: what the first n cells of a layer hold, of the first stream."""
        out = np.empty((n, shape.n_head_kv, shape.head_dim_v if value else shape.head_dim_k), np.float32)
        pointer = self._ffi.cast("float *", out.ctypes.data)
        self._check(self._lib.mikv_cache_read(cache, index, int(value), 0, 0, n, pointer))
        return out

    def select_kernel(self, name: str) -> None:
        """Use this kernel set from now on; "auto": the fastest.

        Raises:
            ConfigError: this machine or build has none of that name.
        """
        self._check(self._lib.mikv_kernel_select(name.encode()))

    # --- cffi -----------------------------------------------------------------------------------------------------------

    def _check(self, status: int) -> None:
        if status == self._lib.MIKV_OK:
            return
        kinds: dict[int, type[MikvError]] = {
            self._lib.MIKV_ERROR_ARGUMENT: ConfigError,
            self._lib.MIKV_ERROR_BUDGET: BudgetError,
            self._lib.MIKV_ERROR_MEMORY: BudgetError,
            self._lib.MIKV_ERROR_NOT_FOUND: ConfigError,
            self._lib.MIKV_ERROR_UNSUPPORTED: ConfigError,
            self._lib.MIKV_ERROR_STATE: StateError,
        }
        raise kinds.get(status, MikvError)(self.last_error() or f"the native library failed with status {status}")

    def _text(self, pointer: Any) -> str:
        return "" if pointer == self._ffi.NULL else self._ffi.string(pointer).decode()

    def _fields(self, struct: Any) -> Iterator[tuple[str, Any]]:
        """Name and value of each number in a C struct."""
        kind = self._ffi.typeof(struct)
        kind = kind.item if kind.kind == "pointer" else kind
        for name, field in kind.fields:
            if field.type.kind == "primitive":
                yield name, getattr(struct, name)


class _ReportOnce:
    """Logs the first failure of a policy; later ones would repeat it thousands of times a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._done = False

    def __call__(self, error: Exception) -> None:
        if not self._done:
            self._done = True
            _LOG.error("policy %r failed (%s: %s): its rows get priority 0", self._name, type(error).__name__, error)
