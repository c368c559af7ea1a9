"""Writes state.mikv as docs/state.md and FORMAT.md describe it, from the NumPy definition: `python tests/golden/make_state.py`.

Run it only when one of the two changes on purpose, and say so in the changelog.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

from make_golden import golden_rows  # noqa: E402

from mikv_cpp.reference import codec  # noqa: E402

GOLDEN_STATE = HERE / "state.mikv"
N_CELLS = 8
HOST = bytes(range(200))  # in llama.cpp's place: 100 bytes of it would be rows
HOLES = [(20, 60), (100, 40)]


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Keys and values float32 [5, 64] of five tokens: two sinks, one at base precision, two refined."""
    both = golden_rows()[:5]
    return np.ascontiguousarray(both[:, :64]), np.ascontiguousarray(both[:, 64:])


def a_list(kind: str, values: list) -> bytes:
    """A u32 and so many elements."""
    return struct.pack(f"<I{len(values)}{kind}", len(values), *values)


def head() -> bytes:
    """The one KV head: K3 V2, refined to 5, two slots, two exact rows."""
    keys, values = rows()
    k, v = codec.encode(keys, 64, 3, 5), codec.encode(values, 64, 2, 5)
    packed = [2, 3, 4]  # sinks have no codes
    out = struct.pack("<19i", 64, 64, 3, 5, 0, 0, 0, 64, 64, 2, 5, 0, 0, 0, N_CELLS, 2, 2, 0, 0)
    out += struct.pack("<q3d", 0, 0.0, 0.0, 0.0) + struct.pack("<iq", 0, 0) + struct.pack("<BB", 1, 0)
    out += a_list("f", [0.0] * 64) + a_list("f", []) + a_list("H", [])
    for part in (k, v):
        for array in (part.params, part.base):
            elements = np.ascontiguousarray(array).reshape(5, -1)
            out += bytes(2 * elements[0].nbytes) + b"".join(elements[i].tobytes() for i in packed)
    out += a_list("I", [4, 3]) + struct.pack("<2f", 0.0, 0.0)  # the youngest first
    for part in (k, v):
        refinement = np.ascontiguousarray(part.refinement).reshape(5, -1)
        out += refinement[4].tobytes() + refinement[3].tobytes()
    out += a_list("I", [0, 1])
    out += keys[:2].astype("<f2").tobytes() + values[:2].astype("<f2").tobytes()
    return out + a_list("I", []) + a_list("I", []) + a_list("I", [])


def cache() -> bytes:
    """The packed cache: one layer, one stream."""
    out = struct.pack("<II", 1, 76) + struct.pack("<5i", 1, 1, 1, 64, 64) + struct.pack("<i", 0)
    out += struct.pack("<3i", 0, 0, 0) + b"recent".ljust(32, b"\0")
    out += struct.pack("<II", 5, 0) + a_list("I", [0, 1, 2, 3, 4])
    out += a_list("I", [1, 2, 3, 4, 5]) + a_list("I", [0] * 5) + a_list("B", [3, 3, 1, 1, 1])
    return out + head()


def host() -> bytes:
    """llama.cpp's part."""
    table = b"".join(struct.pack("<QQ", *hole) for hole in HOLES)
    kept = HOST[:20] + HOST[80:100] + HOST[140:]
    return struct.pack("<QQ", len(HOST), len(HOLES)) + zlib.compress(table + kept, 1)


def state_file() -> bytes:
    """The whole file."""
    sections = [(b"about", b'{"notes": {}}'), (b"tokens", struct.pack("<3i", 1, 2, 3)), (b"host", host()), (b"cache", cache())]
    start = 40 + 40 * len(sections)
    size = start + sum(len(section) for _, section in sections)
    out = b"MIKVSTAT" + struct.pack("<IIQ", 1, len(sections), size)
    for name, section in sections:
        digest = hashlib.blake2b(section, digest_size=16).digest()
        out += name.ljust(8, b"\0") + struct.pack("<QQ", start, len(section)) + digest
        start += len(section)
    return out + hashlib.blake2b(out, digest_size=16).digest() + b"".join(section for _, section in sections)


if __name__ == "__main__":
    GOLDEN_STATE.write_bytes(state_file())
