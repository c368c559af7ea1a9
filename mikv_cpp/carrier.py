"""The cache of one context out of the process and back: llama.cpp's bytes, and the packed rows that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import StateError
from mikv_cpp.native import Library
from mikv_cpp.state import HostPart
from mikv_cpp.transfer import Transfer

Bytes = NDArray[np.uint8]


class Carrier:
    """Takes states out of a context and puts them back. Nothing changes unless all of a state fits.

    Args:
        library: the native library; None for a context without it.
        caches: ids of the context's packed caches.
        size: llama_state_get_size.
        get: llama_state_get_data: writes to the bytes, and says how many.
        put: llama_state_set_data: reads the bytes, and says how many.
    """

    def __init__(
        self,
        library: Optional[Library],
        caches: Sequence[int],
        size: Callable[[], int],
        get: Callable[[Bytes], int],
        put: Callable[[Bytes], int],
    ) -> None:
        self._library = library
        self._caches = list(caches)
        self._size, self._get, self._put = size, get, put

    def take(self) -> tuple[HostPart, list[bytes]]:
        """llama.cpp's part and the packed caches.

        Raises:
            StateError: llama.cpp cannot save, or carries rows in another way than is known.
        """
        host, cells = self._take_host()
        return host, [self._packed(cache, cells[cache]) for cache in self._caches]

    def give(self, host: HostPart, caches: Sequence[bytes]) -> None:
        """Replace all that the context holds.

        Raises:
            StateError: it does not fit; the context is then as it was.
        """
        if len(caches) != len(self._caches):
            raise StateError(
                f"the state has {len(caches)} packed caches, and this context {len(self._caches)}: load it where it was saved"
            )
        if self._library is None:
            self._give_plain(host)
            return
        twins: list[int] = []
        try:
            for cache, packed in zip(self._caches, caches):
                twins.append(self._library.read_state(cache, packed))
            self._give_host(host, twins)
            for cache, twin in zip(self._caches, twins):
                self._library.swap_state(cache, twin)
        finally:
            for twin in twins:
                self._library.free_cache(twin)

    def _give_plain(self, host: HostPart) -> None:
        before = self._take_host()[0]
        state = host.fill()
        if host.holes or self._put(state) != state.size:
            self._put(before.fill())
            raise StateError(
                "llama.cpp does not take this state: load it into the same model, with the same kv and a context for it"
            )

    def _give_host(self, host: HostPart, twins: Sequence[int]) -> None:
        """llama.cpp's part, if the rows go to where the twins have them; else everything is put back."""
        assert self._library is not None
        before, cells = self._take_host()
        # llama.cpp closes the gaps between cells when it loads: rows that would move are taken out before, and stored again
        moving = {
            cache: self._packed(cache, cells[cache]) for cache in self._caches if not self._is_compact(cache, cells[cache])
        }
        state = host.fill()
        with self._watched(state) as transfers:
            taken = self._put(state)
        refusal = self._refusal(taken == state.size, transfers, twins)
        if refusal is not None:
            state = before.fill()
            with self._watched(state):
                self._put(state)
            for cache, packed in moving.items():
                twin = self._library.read_state(cache, packed)
                self._library.swap_state(cache, twin)
                self._library.free_cache(twin)
            raise refusal

    def _refusal(self, is_taken: bool, transfers: Sequence[Transfer], twins: Sequence[int]) -> Optional[StateError]:
        """Why what llama.cpp has loaded cannot stay; None: its rows go to where the twins have them."""
        assert self._library is not None
        if not is_taken:
            return StateError("llama.cpp does not take this state: load it into the same model, with as many sequences")
        try:
            cells = self._cells(transfers)
        except StateError as error:
            return error
        for cache, twin in zip(self._caches, twins):
            if cells[cache].size != self._library.stats(twin)["tokens"] or not self._is_compact(cache, cells[cache]):
                return StateError("llama.cpp puts this state into other cells than expected: report it, with its file")
        return None

    def _take_host(self) -> tuple[HostPart, dict[int, NDArray[np.int64]]]:
        """llama.cpp's part, and the cells whose rows belong to it, by cache."""
        state = np.zeros(max(1, self._size()), np.uint8)
        with self._watched(state) as transfers:
            n = self._get(state)
        if not 0 < n <= state.size:
            raise StateError("llama.cpp cannot save its state: give it more memory, or a model that it can save")
        holes = [(transfer.offset_bytes, transfer.size_bytes) for transfer in transfers]
        return HostPart.strip(state[:n], holes), self._cells(transfers)

    def _cells(self, transfers: Sequence[Transfer]) -> dict[int, NDArray[np.int64]]:
        """Stream * n_cells + cell of each row, by cache: the same for the keys and values of all its layers."""
        rows: dict[tuple[int, int, int], list[NDArray[np.int64]]] = {}
        for t in sorted(transfers, key=lambda transfer: transfer.offset_bytes):
            run = np.arange(t.first_row, t.first_row + t.n_rows, dtype=np.int64)
            rows.setdefault((t.cache, t.index, t.value), []).append(run)
        none = np.zeros(0, np.int64)
        cells = {}
        for cache in self._caches:
            tensors = range(2 * self._shape(cache).n_layer)
            found = [np.concatenate(rows.pop((cache, i // 2, i % 2), [none])) for i in tensors]
            cells[cache] = found[0]
            if any(not np.array_equal(found[0], other) for other in found):
                raise StateError("llama.cpp carries this cache's rows in a way that is not known: report the model")
        if rows:
            raise StateError("llama.cpp carries rows of another context's cache: ask from the thread that made this one")
        return cells

    def _packed(self, cache: int, cells: NDArray[np.int64]) -> bytes:
        assert self._library is not None
        return self._library.write_state(cache, cells)

    def _shape(self, cache: int) -> Any:
        assert self._library is not None
        return self._library.stats(cache)["shape"]

    def _is_compact(self, cache: int, cells: NDArray[np.int64]) -> bool:
        """Whether each stream's cells are its first ones."""
        in_stream = cells % self._shape(cache).n_cells
        starts = np.flatnonzero(np.diff(cells // self._shape(cache).n_cells, prepend=-1))
        lengths = np.diff(np.append(starts, cells.size))
        return bool(np.array_equal(in_stream, np.concatenate([np.arange(n) for n in lengths] or [in_stream])))

    @contextmanager
    def _watched(self, state: Bytes) -> Any:
        if self._library is None:
            yield []
            return
        with self._library.watched(state) as transfers:
            yield transfers
