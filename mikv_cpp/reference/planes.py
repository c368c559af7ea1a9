"""Planes: how a string of n-bit numbers lies in bytes (FORMAT.md, "Planes")."""

from __future__ import annotations

import numpy as np

#: Bits of each plane of an n-bit number, most significant plane first.
PLANES = {0: (), 1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (4, 4)}


def pack(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Packs groups of `bits`-bit numbers.

    numbers: uint8 [..., group], each below 2**bits. Returns uint8 [..., group * bits / 8].
    """
    numbers = np.asarray(numbers, np.uint8)
    if numbers.size and int(numbers.max(initial=0)) >> bits:
        raise ValueError(f"a number of {int(numbers.max())} does not fit in {bits} bits")
    below = bits
    planes = [np.zeros((*numbers.shape[:-1], 0), np.uint8)]
    for width in PLANES[bits]:
        below -= width
        planes.append(_pack_plane((numbers >> below) & ((1 << width) - 1), width))
    return np.concatenate(planes, axis=-1)


def unpack(packed: np.ndarray, bits: int, group: int) -> np.ndarray:
    """The inverse of `pack`: uint8 [..., group * bits / 8] to uint8 [..., group]."""
    packed = np.asarray(packed, np.uint8)
    if packed.shape[-1] * 8 != group * bits:
        raise ValueError(f"{packed.shape[-1]} bytes cannot hold {group} numbers of {bits} bits")
    numbers = np.zeros((*packed.shape[:-1], group), np.uint8)
    start = 0
    for width in PLANES[bits]:
        stride = group * width // 8
        plane = _unpack_plane(packed[..., start : start + stride], width)
        numbers = (numbers << width) | plane
        start += stride
    return numbers


def pack_row(numbers: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Packs whole rows: uint8 [..., dim] to uint8 [..., dim * bits / 8], the groups one after the other."""
    lead, dim = numbers.shape[:-1], numbers.shape[-1]
    return pack(numbers.reshape(*lead, dim // group, group), bits).reshape(*lead, dim * bits // 8)


def unpack_row(packed: np.ndarray, bits: int, group: int, dim: int) -> np.ndarray:
    """The inverse of `pack_row`: uint8 [..., dim * bits / 8] to uint8 [..., dim]."""
    lead = packed.shape[:-1]
    grouped = packed.reshape(*lead, dim // group, group * bits // 8)
    return unpack(grouped, bits, group).reshape(*lead, dim)


def _pack_plane(values: np.ndarray, width: int) -> np.ndarray:
    """Value v goes to byte v % stride, at bit width * (v // stride)."""
    per_byte = 8 // width
    stride = values.shape[-1] // per_byte
    lanes = values.reshape(*values.shape[:-1], per_byte, stride)
    packed = np.zeros((*values.shape[:-1], stride), np.uint8)
    for lane in range(per_byte):
        packed |= lanes[..., lane, :] << (width * lane)
    return packed


def _unpack_plane(plane: np.ndarray, width: int) -> np.ndarray:
    lanes = [(plane >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)]
    return np.concatenate(lanes, axis=-1)
