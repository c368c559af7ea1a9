"""Writes the golden vectors from the NumPy definition: `python tests/golden/make_golden.py`.

Run it only when FORMAT.md changes on purpose, and say so in the changelog.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

from mikv_cpp.reference import codec  # noqa: E402
from mikv_cpp.reference.cache import ReferenceCache, Step  # noqa: E402
from mikv_cpp.reference.layout import Config, Shape  # noqa: E402

HASHES = HERE / "sha256.json"
LEADING = [(0, 4, 1, 4), (0, 8, 1, 2), (2, 5, 2, 4), (2, 8, 1, 3), (3, 3, 3, 4)]  # bits, refined_bits, n_lead, lead_bits
SPLITS = [(bits, refined) for bits in (2, 3, 4) for refined in (4, 5, 6, 8)]


def golden_rows() -> np.ndarray:
    """Rows float32 [8, 128] from integer arithmetic alone, so that no library's random numbers can change them."""
    i = np.arange(8 * 128, dtype=np.uint64)
    noise = ((i * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(65521)).astype(np.float64) / 65521 - 0.5
    rows = noise.reshape(8, 128) * np.array([1, 1e-3, 300, 1e-6, 60000, 4, 1, 0])[:, None]
    rows[5] += 250
    rows[6, ::7] = -0.0
    rows[6, 3] = np.nan
    rows[7, 64:] = 2.0**-14
    return rows.astype(np.float32)


def codec_vectors() -> dict[str, np.ndarray]:
    """Every split of the golden rows, in both group sizes."""
    rows = golden_rows()
    out = {"rows": rows}
    for group in (32, 64):
        for bits, refined in SPLITS:
            name = f"g{group}b{bits}r{refined}"
            e = codec.encode(rows, group, bits, refined)
            out[f"{name}_params"], out[f"{name}_base"], out[f"{name}_refinement"] = e.params, e.base, e.refinement
            out[f"{name}_coarse"] = codec.decode(e.params, e.base, None, group, bits, refined)
            out[f"{name}_fine"] = codec.decode(e.params, e.base, e.refinement, group, bits, refined)
    return out


def leading_vectors() -> dict[str, np.ndarray]:
    """The golden rows with leading groups of 32."""
    rows = golden_rows()
    out = {"rows": rows}
    for bits, refined, n_lead, lead_bits in LEADING:
        name, form = f"b{bits}r{refined}n{n_lead}l{lead_bits}", (32, bits, refined, n_lead, lead_bits)
        e = codec.encode_leading(rows, *form)
        out[f"{name}_params"], out[f"{name}_base"], out[f"{name}_refinement"] = e.params, e.base, e.refinement
        out[f"{name}_coarse"] = codec.decode_leading(e.params, e.base, None, *form)
        out[f"{name}_fine"] = codec.decode_leading(e.params, e.base, e.refinement, *form)
    return out


def head_vectors() -> dict[str, np.ndarray]:
    """The arrays of one KV head after five tokens: two sinks, two refined rows, one at base precision."""
    cache = ReferenceCache(Config(3, 2, 5, sinks=2, refined_share=0.25, center_keys=False, policy="recent"), Shape(n_cells=8))
    rows = golden_rows()[:5].reshape(5, 1, 128)
    for token in range(5):
        mask = np.where(np.arange(8) <= token, 0, -np.inf).astype(np.float16)[None, None]
        k, v = rows[None, token : token + 1, :, :64], rows[None, token : token + 1, :, 64:]
        cache.step(0, Step(np.array([[token]]), k, v, np.zeros((1, 1, 1, 64), np.float32), mask))
    head = cache.heads[0][0][0]
    arrays = {"slot_cell": head.slot_cell, "exact_cell": head.exact_cell, "k_mean": head.k_mean}
    for name, part in (("k", head.k), ("v", head.v)):
        arrays.update({f"{name}_{field}": getattr(part, field) for field in ("params", "base", "refined", "exact")})
    return {"rows": rows, **arrays}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


GOLDEN = {"codec": codec_vectors, "head": head_vectors, "leading": leading_vectors}


def main() -> None:
    hashes = {}
    for name, make in GOLDEN.items():
        arrays = make()
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        hashes[name] = digest(arrays)
    HASHES.write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
