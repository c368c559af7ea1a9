"""A folder of states, found again by how their tokens begin: what was read once need not be read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import ConfigError, StateError
from mikv_cpp.state import read_front, read_state, write_state

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama

BLOCK = 64  #: tokens; a shorter beginning is not worth a file
DEFAULT_BYTES = 4 * 2**30
_ENDING = ".mikv"
_ABANDONED_SECONDS = 3600  # a file that is being written for so long has no writer any more


class PromptCache:
    """States of many conversations in one folder, the least recently used thrown away when it grows too large.

    Several processes may share a folder: files appear and go whole, and nothing is locked.

    Args:
        folder: made if it is not there.
        most_bytes: that all files together may take.

    Raises:
        ConfigError: the folder cannot be made or used.
    """

    def __init__(self, folder: Union[str, os.PathLike[str]], most_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = Path(folder)
        self._most_bytes = most_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._names()
        except OSError as error:
            raise ConfigError(
                f"--prompt-cache {os.fspath(folder)!r} cannot be used as a folder ({error}): give another one"
            ) from error

    def fetch(self, llm: Llama, tokens: Sequence[int], n_reusable: int) -> int:
        """Put the state with the longest common beginning into the model, if that is longer than what the model can reuse.

        A file that turns out to be damaged is thrown away.

        Returns:
            How many of `tokens` the model can reuse now.
        """
        wanted = np.asarray(tokens, np.int32)
        found = sorted(self._candidates(_key(llm), wanted, bool(llm.model_file.sliding_window)), reverse=True)
        for n_common, path in found:
            if n_common < n_reusable + BLOCK:
                break
            try:
                llm.put_state(read_state(path))
            except StateError:
                _remove(path)
                continue
            with contextlib.suppress(OSError):
                os.utime(path)
            return n_common
        return n_reusable

    def keep(self, llm: Llama) -> Optional[Path]:
        """Save what the model holds now; the file, or None where it is not worth one: too short, too large, or no room.

        States that are the beginning of this one are thrown away, unless the model has sliding windows, which cannot go back.
        """
        key, tokens = _key(llm), llm.input_ids[: llm.n_tokens].astype(np.int32)
        path = self.folder / _name(key, tokens)
        if tokens.size < BLOCK:
            return None
        with contextlib.suppress(StateError):
            if path.exists() and np.array_equal(read_front(path)[1], tokens):
                os.utime(path)
                return path
        state = llm.take_state()
        if sum(map(len, state.caches)) + len(state.host.kept) > self._most_bytes:
            return None
        try:
            write_state(path, state)
        except StateError:  # a full disk takes nothing from the conversation
            return None
        if not llm.model_file.sliding_window:
            shorter = {_name(key, tokens[:n]) for n in range(BLOCK, tokens.size // BLOCK * BLOCK, BLOCK)}
            for name in shorter.intersection(self._names()):
                _remove(self.folder / name)
        self._make_room()
        return path if path.exists() else None

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def _candidates(self, key: str, wanted: NDArray[np.int32], whole: bool) -> list[tuple[int, Path]]:
        """Common tokens and file of each state of this model and configuration; whole: where nothing is rolled back."""
        found = []
        for name in self._names():
            if name.startswith(key) and name.endswith(_ENDING):
                try:
                    tokens = read_front(self.folder / name)[1]
                except StateError:
                    continue
                n = min(tokens.size, wanted.size)
                differ = np.flatnonzero(tokens[:n] != wanted[:n])
                n_common = int(differ[0]) if differ.size else n
                if n_common == tokens.size or not whole:
                    found.append((n_common, self.folder / name))
        return found

    def _make_room(self) -> None:
        files = []
        for name in self._names():
            path = self.folder / name
            with contextlib.suppress(OSError):
                status = path.stat()
                if name.endswith(_ENDING):
                    files.append((status.st_mtime, status.st_size, path))
                elif name.startswith(".mikv-") and status.st_mtime < time.time() - _ABANDONED_SECONDS:
                    _remove(path)
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._most_bytes:
                return
            _remove(path)
            total -= size


def _key(llm: Llama) -> str:
    """Of all that must be equal for a state to be used without a loss."""
    return _hash(json.dumps(llm.state_identity(), sort_keys=True).encode())


def _name(key: str, tokens: NDArray[np.int32]) -> str:
    """Of the whole blocks that the tokens begin with."""
    return f"{key}-{_hash(np.asarray(tokens[: tokens.size // BLOCK * BLOCK], '<i4').tobytes())}{_ENDING}"


def _hash(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # another process was quicker
        path.unlink()
