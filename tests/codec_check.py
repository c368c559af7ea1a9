"""What a codec has to do, as functions over any encoder and decoder, so that a broken one can be tried too."""

from __future__ import annotations

import numpy as np
from native_library import check, ffi, lib

from mikv_cpp.reference import codec


def native_encode(row: np.ndarray, group: int, bits: int, refined_bits: int, end_points: bool = False) -> codec.Encoded:
    """One row through mikv_codec_encode."""
    dim = len(row)
    params = np.full(dim // group, 0xBEEF, np.uint16)
    base = np.full(dim * bits // 8, 0xA5, np.uint8)
    refinement = np.full(dim * (refined_bits - bits) // 8, 0xA5, np.uint8)
    check(
        lib.mikv_codec_encode(
            dim, group, bits, refined_bits, end_points,
            ffi.from_buffer("float[]", np.ascontiguousarray(row, np.float32)),
            ffi.from_buffer("uint16_t[]", params),
            ffi.from_buffer("uint8_t[]", base),
            ffi.from_buffer("uint8_t[]", refinement) if refinement.size else ffi.NULL,
        )
    )  # fmt: skip
    return codec.Encoded(params, base, refinement)


def native_decode(params, base, refinement, group, bits, refined_bits) -> np.ndarray:
    """One row through mikv_codec_decode."""
    row = np.full(len(params) * group, np.nan, np.float32)
    check(
        lib.mikv_codec_decode(
            len(row), group, bits, refined_bits,
            ffi.from_buffer("uint16_t[]", np.ascontiguousarray(params)),
            ffi.from_buffer("uint8_t[]", np.ascontiguousarray(base)),
            ffi.from_buffer("uint8_t[]", np.ascontiguousarray(refinement)) if refinement is not None else ffi.NULL,
            ffi.from_buffer("float[]", row),
        )
    )  # fmt: skip
    return row


def hard_rows(dim: int, group: int) -> list[tuple[str, np.ndarray]]:
    """Rows that find faults: ordinary ones, and every edge that FORMAT.md names."""
    rng = np.random.default_rng(dim * 1000 + group)
    normal = rng.normal(size=dim)
    tiny = np.float32(2.0**-14)
    edge = np.zeros(dim)
    edge[::group] = np.nextafter(tiny, np.float32(0))  # rounds up to the smallest range that counts
    below = np.zeros(dim)
    below[::group] = tiny * np.float32(0.99)
    wild = normal.copy()
    wild[[0, 5, 9, dim - 1]] = [np.nan, np.inf, -np.inf, 1e30]
    zeros = np.where(rng.random(dim) < 0.5, -0.0, 0.0)
    rows = {
        "normal": normal,
        "offset": normal + 300,
        "large": normal * 2e4,
        "small": normal * 1e-3,
        "subnormal f16": normal * 1e-6,
        "f32 subnormal": normal * 1e-40,
        "one outlier": np.where(np.arange(dim) == 7, 1000.0, normal),
        "uniform": rng.uniform(0, 1, dim),
        "on the code edges": np.tile(np.arange(group) * 4 / 256.0, dim // group),
        "constant": np.full(dim, 3.14159),
        "constant f16": np.full(dim, -2.5),
        "zero": np.zeros(dim),
        "zeros of both signs": zeros,
        "negative zero above": np.where(zeros == 0, -0.0, 0.0) + np.where(np.arange(dim) % 3 == 0, 1.0, -0.0),
        "range at the smallest normal": np.where(np.arange(dim) % 2 == 0, 0.0, tiny),
        "range rounds to the smallest normal": edge,
        "range below the smallest normal": below,
        "not finite": wild,
        "all NaN": np.full(dim, np.nan),
        "widest": np.where(np.arange(dim) % 2 == 0, 65504.0, -65504.0),
        "beyond f16": np.where(np.arange(dim) % 2 == 0, 1e6, 0.0),
    }
    with np.errstate(over="ignore"):
        return [(name, row.astype(np.float32)) for name, row in rows.items()] + [
            (f"random {i}", (rng.normal(size=dim) * rng.lognormal(0, 3) + rng.normal() * 10).astype(np.float32))
            for i in range(20)
        ]


def check_rows(check_row, dim: int, group: int) -> None:
    """Every hard row; all that fail are named."""
    faults = [fault for name, row in hard_rows(dim, group) if (fault := _fault(check_row, name, row))]
    assert not faults, "\n".join(faults)


def _fault(check_row, name: str, row: np.ndarray) -> str:
    try:
        check_row(name, row)
    except AssertionError as fault:
        return str(fault)
    return ""


def check_encode(encode, name: str, row: np.ndarray, *form) -> None:
    """`encode` gives the bytes of the definition. form: group, bits, refined_bits and, if given, end_points."""
    got, want = encode(row, *form), codec.encode(row, *form)
    for part in ("params", "base", "refinement"):
        a, b = getattr(got, part), getattr(want, part)
        wrong = np.flatnonzero(a != b)
        assert not wrong.size, (
            f"{name}: {part}[{wrong[0]}] is {a[wrong[0]]:#x}, should be {b[wrong[0]]:#x} ({wrong.size} differ)"
        )


def check_decode(decode, name: str, row, group: int, bits: int, refined_bits: int) -> None:
    """`decode` reads back what the definition does: to one ulp of the largest number on the way, which is at most
    |minimum| + range, since a fused multiply-add rounds once where the definition rounds twice.

    row: float32 [dim], or its bytes (params, base, refinement).
    """
    if isinstance(row, np.ndarray):
        e = codec.encode(row, group, bits, refined_bits)
        row = (e.params, e.base, e.refinement)
    params, base, refinement = row
    span, minimum = codec.split_params(params)
    ulp = np.repeat(np.spacing(np.abs(minimum) + span), group)
    for extra in (None, refinement):
        got = decode(params, base, extra, group, bits, refined_bits)
        want = codec.decode(params, base, extra, group, bits, refined_bits)
        wrong = np.flatnonzero(~(np.abs(got.astype(np.float64) - want) <= ulp))
        assert not wrong.size, (
            f"{name}: value {wrong[0]} reads back as {got[wrong[0]]!r}, should be {want[wrong[0]]!r} "
            f"({'base alone' if extra is None else 'refined'}, {wrong.size} differ)"
        )
