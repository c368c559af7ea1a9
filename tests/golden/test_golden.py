"""Golden vectors: bytes that once were right stay right, for the definition and for every kernel set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from codec_check import native_decode, native_encode
from native_library import check, kernel_names, lib

sys.path.append(str(Path(__file__).resolve().parent))
from make_golden import GOLDEN, HASHES, HERE, LEADING, SPLITS, digest


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / f"{name}.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_files_are_those_that_were_checked_in(name):
    assert digest(load(name)) == json.loads(HASHES.read_text())[name], "run make_golden.py if the format changed on purpose"


@pytest.mark.parametrize("name", GOLDEN)
def test_the_definition_still_makes_them(name):
    stored = load(name)
    made = GOLDEN[name]()
    assert made.keys() == stored.keys()
    for key, array in stored.items():
        assert np.array_equal(made[key], array, equal_nan=array.dtype.kind == "f"), key


@pytest.mark.parametrize("kernel", kernel_names())
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize(("bits", "refined"), SPLITS)
def test_native_code_makes_and_reads_them(kernel, group, bits, refined):
    check(lib.mikv_kernel_select(kernel.encode()))
    golden, name = load("codec"), f"g{group}b{bits}r{refined}"
    for i, row in enumerate(golden["rows"]):
        params, base, refinement = (golden[f"{name}_{part}"][i] for part in ("params", "base", "refinement"))
        e = native_encode(row, group, bits, refined)
        assert (e.params.tolist(), e.base.tolist(), e.refinement.tolist()) == (
            params.tolist(),
            base.tolist(),
            refinement.tolist(),
        ), f"row {i}"
        for extra, part in ((None, "coarse"), (refinement, "fine")):
            read = native_decode(params, base, extra, group, bits, refined)
            # One rounding of a number no larger than 2^18: a fused multiply-add skips it.
            ulp = np.spacing(np.abs(golden[f"{name}_{part}"][i]).max())
            assert np.abs(read - golden[f"{name}_{part}"][i]).max() <= ulp, f"row {i}, {part}"
    check(lib.mikv_kernel_select(b"auto"))


@pytest.mark.parametrize("kernel", kernel_names())
@pytest.mark.parametrize(("bits", "refined", "n_lead", "lead_bits"), LEADING)
def test_rows_with_leading_groups_are_two_rows(kernel, bits, refined, n_lead, lead_bits):
    check(lib.mikv_kernel_select(kernel.encode()))
    golden, name, cut = load("leading"), f"b{bits}r{refined}n{n_lead}l{lead_bits}", n_lead * 32
    for i, row in enumerate(golden["rows"]):
        lead = native_encode(row[:cut], 32, lead_bits, max(lead_bits, refined))
        rest = native_encode(row[cut:], 32, bits, refined)
        for part in ("params", "base", "refinement"):
            made = [*getattr(lead, part), *getattr(rest, part)]
            assert made == golden[f"{name}_{part}"][i].tolist(), f"row {i}, {part}"
        parts = (
            native_decode(lead.params, lead.base, lead.refinement, 32, lead_bits, max(lead_bits, refined)),
            native_decode(rest.params, rest.base, rest.refinement, 32, bits, refined),
        )
        fine = golden[f"{name}_fine"][i]
        assert np.abs(np.concatenate(parts) - fine).max() <= np.spacing(np.abs(fine).max()), f"row {i}"
    check(lib.mikv_kernel_select(b"auto"))
