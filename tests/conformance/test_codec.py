"""The codec: every kernel set must give the bytes of the NumPy definition, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from codec_check import check_decode, check_encode, check_rows, native_decode, native_encode
from native_library import NativeError, check, kernel_names, lib
from tables import ROWS, SPLITS

from mikv_cpp.reference import codec


@pytest.fixture(params=kernel_names(), autouse=True)
def kernel(request):
    check(lib.mikv_kernel_select(request.param.encode()))
    yield request.param
    check(lib.mikv_kernel_select(b"auto"))


@pytest.mark.parametrize("end_points", [False, True])
@pytest.mark.parametrize(("dim", "group"), ROWS)
@pytest.mark.parametrize(("bits", "refined_bits"), SPLITS)
def test_encode_is_bit_exact(dim, group, bits, refined_bits, end_points):
    form = (group, bits, refined_bits, end_points)
    check_rows(lambda name, row: check_encode(native_encode, name, row, *form), dim, group)


@pytest.mark.parametrize(("bits", "refined_bits"), [split for split in SPLITS if split[0]])
def test_end_points_are_equation_1_up_to_the_range_that_params_can_say(bits, refined_bits):
    """alpha = (max - min) / (2^N - 1), each value at the nearest of min + alpha q (arXiv 2402.18096).

    The params' range R is rounded up to four bits of mantissa, after 64ths of R were lost to the place of the minimum: it is
    at most (1 + 1/16) / (1 - 1/64) times the widened range, where the group holds zero. So is the step; the first point lies at
    most R / 64 below the minimum, and half of what the step is too wide above it.
    """
    row = np.random.default_rng(bits).normal(size=64).astype(np.float32)
    e = native_encode(row, 64, bits, refined_bits, True)
    alpha = (row.max() - row.min()) / (2**bits - 1)
    span, minimum = (float(x[0]) for x in codec.split_params(e.params))
    step, first = span / 2**bits, minimum + span / 2 ** (bits + 1)
    assert 1 <= step / alpha <= (1 + 1 / 16) / (1 - 1 / 64)
    assert -span / 64 <= first - row.min() <= (step - alpha) / 2
    nearest = first + step * np.clip(np.round((row - first) / step), 0, 2**bits - 1)
    assert np.abs(native_decode(e.params, e.base, None, 64, bits, refined_bits) - nearest).max() < 1e-6


@pytest.mark.parametrize(("dim", "group"), ROWS)
@pytest.mark.parametrize(("bits", "refined_bits"), SPLITS)
def test_decode_is_within_one_ulp(dim, group, bits, refined_bits):
    check_rows(lambda name, row: check_decode(native_decode, name, row, group, bits, refined_bits), dim, group)


@pytest.mark.parametrize(("bits", "refined_bits"), SPLITS)
def test_every_byte_decodes(bits, refined_bits):
    """All 256 values of every byte, not only those that an encoder makes."""
    rng = np.random.default_rng(bits * 10 + refined_bits)
    for value in range(256):
        base = np.full(64 * bits // 8, value, np.uint8)
        refinement = rng.integers(0, 256, 64 * (refined_bits - bits) // 8, dtype=np.uint8)
        params = np.array([0x3C00 >> 6 | (96 - 64) << 9], np.uint16)  # range 1 from -1 on
        check_decode(native_decode, f"byte {value}", (params, base, refinement), 64, bits, refined_bits)


def test_a_row_of_another_size_is_refused():
    with pytest.raises(NativeError, match="80 values in groups of 64"):
        native_encode(np.zeros(80, np.float32), 64, 2, 8)
