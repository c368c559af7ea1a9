"""State files: a conversation with its packed cache. docs/state.md has the bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import StateError

MAGIC = b"MIKVSTAT"
VERSION = 1
_FIXED = struct.Struct("<8sIIQ")  # magic, version, number of sections, size of the file
_ENTRY = struct.Struct("<8sQQ16s")  # name, offset, size, digest of the section's bytes
_DIGEST_BYTES = 16
_MOST_SECTIONS = 64
_MOST_HOST_BYTES = 2**44  # what llama.cpp's part may say that it is with its rows; only what is not rows is ever filled in


@dataclass(frozen=True)
class HostPart:
    """llama.cpp's own state without the rows that are kept packed.

    Attributes:
        size_bytes: of the whole state, the rows included.
        holes: (offset, size) in bytes of each run of rows, ascending.
        kept: what lies between them.
    """

    size_bytes: int
    holes: list[tuple[int, int]]
    kept: bytes

    @staticmethod
    def strip(state: NDArray[np.uint8], holes: Sequence[tuple[int, int]]) -> HostPart:
        """The part of llama.cpp's state that is not in the holes."""
        kept, at = [], 0
        for offset, size in sorted(holes):
            kept.append(state[at:offset].tobytes())
            at = offset + size
        kept.append(state[at:].tobytes())
        return HostPart(int(state.size), sorted(holes), b"".join(kept))

    def fill(self) -> NDArray[np.uint8]:
        """llama.cpp's state with nothing in the holes: their memory is asked for, but never touched."""
        state = np.zeros(self.size_bytes, np.uint8)
        at = taken = 0
        for offset, size in [*self.holes, (self.size_bytes, 0)]:
            length = offset - at
            state[at:offset] = np.frombuffer(self.kept, np.uint8, length, taken)
            taken += length
            at = offset + size
        return state

    def to_bytes(self) -> bytes:
        """As a section has it."""
        table = np.array(self.holes, np.uint64).reshape(-1, 2).tobytes()
        return struct.pack("<QQ", self.size_bytes, len(self.holes)) + zlib.compress(table + self.kept, 1)

    @staticmethod
    def from_bytes(section: bytes) -> HostPart:
        """Read a section.

        Raises:
            StateError: it contradicts itself.
        """
        try:
            size_bytes, n_holes = struct.unpack_from("<QQ", section)
            unpacked = _inflate(section[16:], min(size_bytes + 16 * n_holes, _MOST_HOST_BYTES))
            table = np.frombuffer(unpacked, np.uint64, 2 * n_holes).reshape(-1, 2)
            holes = [(int(offset), int(size)) for offset, size in table]
        except (struct.error, zlib.error, ValueError, OverflowError) as error:
            raise _damaged(f"llama.cpp's part, {error}") from error
        at = n_kept = 0
        for offset, size in holes:
            if offset < at or size < 1 or offset + size > size_bytes:
                raise _damaged(f"llama.cpp's part, rows at {offset}")
            n_kept += offset - at
            at = offset + size
        kept = unpacked[16 * n_holes :]
        if len(kept) != n_kept + size_bytes - at:
            raise _damaged("llama.cpp's part, its length")
        return HostPart(size_bytes, holes, kept)


@dataclass(frozen=True)
class State:
    """A conversation's cache at one moment.

    Attributes:
        about: what it is of: the model's identity, versions, the configuration; ready for JSON.
        tokens: int32, what was evaluated.
        host: llama.cpp's part: positions and sequences of the cells, and rows that are not packed.
        caches: the packed caches, in the native library's order.
        notes: of whoever saved it, ready for JSON.
    """

    about: dict[str, Any]
    tokens: NDArray[np.int32]
    host: HostPart
    caches: list[bytes]
    notes: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        sections = [
            (b"about", json.dumps({**self.about, "notes": self.notes}, sort_keys=True).encode()),
            (b"tokens", np.asarray(self.tokens, "<i4").tobytes()),
            (b"host", self.host.to_bytes()),
            *((b"cache", cache) for cache in self.caches),
        ]
        start = _FIXED.size + len(sections) * _ENTRY.size + _DIGEST_BYTES
        size = start + sum(len(section) for _, section in sections)
        header = bytearray(_FIXED.pack(MAGIC, VERSION, len(sections), size))
        for name, section in sections:
            header += _ENTRY.pack(name, start, len(section), _digest(section))
            start += len(section)
        return b"".join([bytes(header), _digest(bytes(header)), *(section for _, section in sections)])

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """Read a file's bytes; every one of them is covered by a checksum.

        Raises:
            StateError: damaged, or no state, or of another version; the sentence says which.
        """
        sections = _sections(data)
        if len(data) != sections[-1][1] + sections[-1][2]:
            raise _damaged(f"its length is {len(data)} bytes")
        parts = [_section(data, entry) for entry in sections]
        about, tokens = _front(sections, parts)
        return State(about, tokens, HostPart.from_bytes(parts[2]), parts[3:], about.pop("notes", {}))


def write_state(path: Union[str, os.PathLike[str]], state: State) -> int:
    """Write a state file, in place of one that is there, or not at all; its size in bytes.

    Raises:
        StateError: it cannot be written there.
    """
    place, data = Path(path), state.to_bytes()
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=".mikv-", suffix=".tmp", dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise StateError(
            f"the state cannot be written to {str(place)!r} ({error}): give another place, or make room"
        ) from error
    return len(data)


def read_state(path: Union[str, os.PathLike[str]]) -> State:
    """Read a state file.

    Raises:
        StateError: it cannot be read, is damaged or is none.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StateError(f"the state {os.fspath(path)!r} cannot be read ({error}): check the path") from error
    return State.from_bytes(data)


def read_front(path: Union[str, os.PathLike[str]]) -> tuple[dict[str, Any], NDArray[np.int32]]:
    """What a state file is of, and its tokens, without its cache.

    Raises:
        StateError: as read_state, as far as this part goes.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FIXED.size + _MOST_SECTIONS * _ENTRY.size + _DIGEST_BYTES)
            sections = _sections(data)
            end = sections[1][1] + sections[1][2]
            if end <= os.fstat(file.fileno()).st_size:
                data += file.read(max(0, end - len(data)))
    except OSError as error:
        raise StateError(f"the state {os.fspath(path)!r} cannot be read ({error}): check the path") from error
    return _front(sections, [_section(data, entry) for entry in sections[:2]])


def model_identity(path: Union[str, os.PathLike[str]]) -> str:
    """Tells one model file from another: a digest of its size, its first 4 MiB (what it says of itself) and its last 64 KiB."""
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.blake2b(struct.pack("<Q", size) + file.read(2**22), digest_size=_DIGEST_BYTES)
        file.seek(max(0, size - 2**16))
        digest.update(file.read())
    return digest.hexdigest()


def _damaged(what: str) -> StateError:
    return StateError(f"the state is damaged ({what}): use another one, or start without it")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _inflate(data: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj()
    out = unpacker.decompress(data, most + 1)
    if not unpacker.eof or unpacker.unused_data or len(out) > most:
        raise ValueError("compressed data")
    return out


_Section = tuple[bytes, int, int, bytes]


def _sections(data: bytes) -> list[_Section]:
    """Name, offset, size and digest of each, one behind the other and the first behind the header."""
    if data[: len(MAGIC)] != MAGIC:
        raise StateError("this is no state of mikv_cpp: name a file that it saved")
    if len(data) < _FIXED.size:
        raise _damaged("its header ends early")
    _, version, n, size = _FIXED.unpack_from(data)
    if version != VERSION:
        raise StateError(
            f"the state is of file version {version}, and this mikv_cpp reads {VERSION}: use the one that saved it"
        )
    end = _FIXED.size + n * _ENTRY.size
    if (
        not 3 <= n <= _MOST_SECTIONS
        or len(data) < end + _DIGEST_BYTES
        or _digest(data[:end]) != data[end : end + _DIGEST_BYTES]
    ):
        raise _damaged("its header")
    sections = [_ENTRY.unpack_from(data, _FIXED.size + i * _ENTRY.size) for i in range(n)]
    at = end + _DIGEST_BYTES
    for _, offset, length, _ in sections:
        if offset != at:
            raise _damaged("its sections")
        at += length
    if at != size:
        raise _damaged("its sections")
    return [(name.rstrip(b"\0"), offset, length, digest) for name, offset, length, digest in sections]


def _section(data: bytes, entry: _Section) -> bytes:
    name, offset, size, digest = entry
    section = data[offset : offset + size]
    if len(section) != size or _digest(section) != digest:
        raise _damaged(f"its {name.decode('ascii', 'replace')}")
    return section


def _front(sections: Sequence[_Section], parts: Sequence[bytes]) -> tuple[dict[str, Any], NDArray[np.int32]]:
    names = [name for name, *_ in sections]
    if names[:3] != [b"about", b"tokens", b"host"] or set(names[3:]) - {b"cache"} or len(parts[1]) % 4:
        raise _damaged("its sections")
    try:
        about = json.loads(parts[0])
    except ValueError as error:
        raise _damaged(f"{error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("notes", {}), dict):
        raise _damaged("what it says of itself")
    return about, np.frombuffer(parts[1], "<i4").astype(np.int32)
