"""The bit-split codec: one row to scale, minimum and codes, and back (FORMAT.md, "A group")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import planes

F16_MAX = np.float32(65504.0)
RANGE_MASK, PLACE_SHIFT, PLACE_OF_ZERO = 0x1FF, 9, 96
SMALLEST_CODE, LARGEST_CODE = 0x010, 0x1EF  # 2^-14 and 63488


@dataclass(frozen=True)
class Encoded:
    """Rows as bytes: params uint16 [..., dim / group], base and refinement uint8 [..., bytes]."""

    params: np.ndarray
    base: np.ndarray
    refinement: np.ndarray


HALF = -1  #: the group of half the head size


def resolve_group(dims: tuple[int, ...], asked: int = 0) -> int:
    """Values per group of heads of these sizes: what was asked, or 64 where it divides them all, padded to 32s, else 32.

    HALF: half of the first, where that is 32 or 64 and divides the others.
    """
    padded = [-(-dim // 32) * 32 for dim in dims]
    if asked == HALF and dims[0] in (64, 128) and all(dim % (dims[0] // 2) == 0 for dim in padded):
        return dims[0] // 2
    return asked if asked > 0 else (64 if all(dim % 64 == 0 for dim in padded) else 32)


def f16_not_below(x: np.ndarray) -> np.ndarray:
    """The smallest float16 that is not below each float32 of x (|x| at most 65504)."""
    x = np.asarray(x, np.float32)
    nearest = x.astype(np.float16)
    with np.errstate(over="ignore"):
        upper = np.nextafter(nearest, np.float16(np.inf))
    return np.where(nearest.astype(np.float32) < x, upper, nearest)


def clean(x: np.ndarray) -> np.ndarray:
    """Float32 of x with NaN as 0, everything clamped to +-65504, and one zero only (+0)."""
    x = np.nan_to_num(np.asarray(x, np.float32), nan=0.0, posinf=F16_MAX, neginf=-F16_MAX)
    out: np.ndarray = np.clip(x, -F16_MAX, F16_MAX) + np.float32(0.0)
    return out


def quantize(rows: np.ndarray, group: int, end_point_bits: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Eight-bit codes of rows float32 [..., dim]; end_point_bits: the range is half a bin of so many bits wider at both ends.

    Returns params uint16 [..., dim / group] and codes uint8 [..., dim].
    """
    rows = clean(rows)
    x = rows.reshape(*rows.shape[:-1], rows.shape[-1] // group, group)
    low, high = x.min(axis=-1), x.max(axis=-1)
    beyond = (high - low) * (np.float32(0.5) / np.float32(2**end_point_bits - 1)) if end_point_bits else np.float32(0)
    params = pack_params(low - beyond, high + beyond)
    wide, low = split_params(params)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.floor((x - low[..., None]) * (np.float32(256.0) / wide)[..., None])
    steps = np.where(wide[..., None] == 0, np.float32(0), np.clip(steps, 0, 255))
    return params, steps.astype(np.uint8).reshape(rows.shape)


def encode(rows: np.ndarray, group: int, bits: int, refined_bits: int, end_points: bool = False) -> Encoded:
    """Rows float32 [..., dim] as bytes: the base of `bits`, the refinement up to `refined_bits`.

    end_points: read from the base alone, a group's extremes come back as they were (MiKV's equation 1).
    """
    params, codes = quantize(rows, group, bits if end_points else 0)
    extra = refined_bits - bits
    base = codes >> (8 - bits)
    refinement = (codes >> (8 - refined_bits)) & ((1 << extra) - 1)
    return Encoded(params, planes.pack_row(base, bits, group), planes.pack_row(refinement, extra, group))


def decode(
    params: np.ndarray,
    base: np.ndarray,
    refinement: np.ndarray | None,
    group: int,
    bits: int,
    refined_bits: int,
) -> np.ndarray:
    """Rows float32 [..., dim]: every value at the middle of its bin. Without refinement the base alone is read."""
    dim = params.shape[-1] * group
    codes = planes.unpack_row(base, bits, group, dim)
    n_bits = bits
    if refinement is not None:
        extra = refined_bits - bits
        codes = (codes << extra) | planes.unpack_row(refinement, extra, group, dim)
        n_bits = refined_bits
    span, minimum = split_params(params)
    step = span * np.float32(2.0**-n_bits)
    middle = codes.reshape(*codes.shape[:-1], -1, group).astype(np.float32) + np.float32(0.5)
    out: np.ndarray = (minimum[..., None] + middle * step[..., None]).reshape(codes.shape)
    return out


def encode_leading(
    rows: np.ndarray, group: int, bits: int, refined_bits: int, n_lead: int, lead_bits: int, end_points: bool = False
) -> Encoded:
    """Rows whose first n_lead groups have lead_bits: two rows, one behind the other in all arrays."""
    cut = n_lead * group
    lead = encode(rows[..., :cut], group, lead_bits, max(lead_bits, refined_bits), end_points)
    rest = encode(rows[..., cut:], group, bits, refined_bits, end_points)
    return Encoded(*(np.concatenate([getattr(lead, part), getattr(rest, part)], axis=-1) for part in vars(lead)))


def decode_leading(
    params: np.ndarray,
    base: np.ndarray,
    refinement: np.ndarray | None,
    group: int,
    bits: int,
    refined_bits: int,
    n_lead: int,
    lead_bits: int,
) -> np.ndarray:
    """The inverse, as `decode`."""
    most, at = max(lead_bits, refined_bits), n_lead * group * lead_bits // 8
    more = n_lead * group * (most - lead_bits) // 8
    finer = (None, None) if refinement is None else (refinement[..., :more], refinement[..., more:])
    lead = decode(params[..., :n_lead], base[..., :at], finer[0], group, lead_bits, most)
    rest = decode(params[..., n_lead:], base[..., at:], finer[1], group, bits, refined_bits)
    return np.concatenate([lead, rest], axis=-1)


def split_params(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Range and minimum, float32, of params uint16."""
    params = np.asarray(params, np.uint16)
    span = ((params & RANGE_MASK) << 6).astype(np.uint16).view(np.float16).astype(np.float32)
    places = (params >> PLACE_SHIFT).astype(np.int32) - PLACE_OF_ZERO
    return span, span * (places.astype(np.float32) * np.float32(1 / 64))


def pack_params(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Params uint16 of groups with these extremes, float32, both clean: the smallest range that reaches (FORMAT.md)."""
    f = np.float32
    least = np.maximum(np.maximum(high - low, low * (f(-2) / f(3))), high * (f(64) / f(95)))
    code = (f16_not_below(np.minimum(least, F16_MAX)).view(np.uint16).astype(np.uint32) + 63) >> 6
    counts = code >= SMALLEST_CODE
    code = np.clip(code, SMALLEST_CODE, LARGEST_CODE)
    while True:
        span, _ = split_params(code.astype(np.uint16))
        params = (code | (place_of(low, span) << PLACE_SHIFT)).astype(np.uint16)
        minimum = split_params(params)[1]
        reaches = ((minimum <= low) & (minimum + span >= high)) | (code == LARGEST_CODE) | ~counts
        if reaches.all():
            return np.asarray(np.where(counts, params, np.uint16(PLACE_OF_ZERO << PLACE_SHIFT)))
        code = code + ~reaches


def place_of(low: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Where the minimum of groups that begin at `low` lies: the last 64th of the range not above it, uint32."""
    place = np.floor(low * (np.float32(64) / span)).astype(np.int64) + PLACE_OF_ZERO
    return np.asarray(np.clip(place, 0, 127), np.uint32)


def error_bound(params: np.ndarray, group: int, n_bits: int) -> np.ndarray:
    """Largest |x - x'| of each value, float64 [..., dim], read back at `n_bits` bits.

    Half a bin of range / 2^n. The code is a floor of a rounded float32 product, so an x on a bin's edge may
    fall in its neighbour: (x - min) and 256 / range and their product are rounded once each, which moves the
    product by at most 3 * 2^-24 of at most 256 codes. Reading back rounds twice, below |min| + range.
    A group whose range is stored as 0 had nothing beyond 1.5 * 2^-14 and reads back as zero.
    """
    span, minimum = (part.astype(np.float64) for part in split_params(params))
    half = span * 2.0 ** -(n_bits + 1)
    rounding = 4 * 2.0**-24 * span + 2 * 2.0**-24 * (np.abs(minimum) + span)
    bound = np.where(span == 0, 1.5 * 2.0**-14, half + rounding)
    return np.repeat(bound, group, axis=-1)


def estimated_norm(params: np.ndarray, group: int) -> float:
    """Euclidean norm of a row from its groups' ranges and minima: Gaussian groups of 64 spread over 4.7 deviations."""
    width, low = (x.astype(np.float64) for x in split_params(params))
    return float(np.sqrt((group * ((width / 4.7) ** 2 + (low + width / 2) ** 2)).sum()))
