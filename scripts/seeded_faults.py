#!/usr/bin/env python3
"""Seed one fault after the other into the GPU kernels' text and see that the tests on the emulator catch each.

Needs a build folder with the native test programs (-DMIKV_TESTS=ON) of this tree. Prints what caught each fault; 1 if one was
not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
KERNELS = "native/kernel/gpu"
OWN_OBJECT = "native/backend/emulated/kernels.cpp.o"


class Fault(NamedTuple):
    """A change of a kernel's text, which must be there once; test: the program that has to see it."""

    name: str
    file: str
    good: str
    bad: str
    test: str = "gpu_matrix"


NO_FAULT = Fault("no fault", "attend.h", "if (seen) {", "if (seen) {")
FAULTS = (
    Fault(
        "missing barrier before the queries are read",
        "attend.h",
        "load_queries(a, tile, at.tid, s);\n    block_sync();",
        "load_queries(a, tile, at.tid, s);",
    ),
    Fault(
        "missing barrier between scores and weights",
        "attend.h",
        "at.tid, s);\n        block_sync();\n        weigh_rows",
        "at.tid, s);\n        weigh_rows",
    ),
    Fault("divergent collective", "attend.h", "m         = warp_max(m);", "m         = lane < 16 ? warp_max(m) : m;"),
    Fault(
        "chunks overlap by a cell",
        "attend.h",
        "? first + a.chunk_cells : a.layer.n_kv",
        "? first + a.chunk_cells + 1 : a.layer.n_kv",
    ),
    Fault("a row that nobody sees is read", "attend.h", "if (s->seen[i]) {", "if (begin + i < last) {"),
    Fault("running sum not corrected", "attend.h", "s->l[r] * s->correction[r] + sum", "s->l[r] + sum"),
    Fault("mean key forgotten", "attend.h", "+ half_to_float(mean[at])", "+ 0.0f * half_to_float(mean[at])"),
    Fault(
        "wrong index of a chunk", "attend.h", "a.n_chunks + int64_t(at.x)) * tile.all", "a.n_chunks + int64_t(at.x)) * tile.n"
    ),
    Fault("logit kept in another's place", "attend.h", "h->view.n_slots + h->view.n_exact + token", "h->view.n_slots + token"),
    Fault("off by one group", "rows.h", "row.params[group * row.n_cells]", "row.params[(group + 1) * row.n_cells]"),
    Fault("refinement shifted wrongly", "rows.h", "(code << extra) |", "(code << (extra - 1)) |"),
    Fault("wrong plane shift", "store.h", ">> (shift + bits)) &", ">> shift) &"),
    Fault(
        "missing barrier before codes are packed",
        "store.h",
        "    }\n    block_sync();\n    write_planes",
        "    }\n    write_planes",
    ),
    Fault("end points forgotten", "store.h", "f.end_point_bits()", "0"),
    Fault(
        "stale slot",
        "select.h",
        "h->view.slot_cell[i] = free_slot;\n            first                = i < first ? i : first;\n            n_slots++;",
        "n_slots++;",
        "gpu_cache",
    ),
    Fault(
        "one too few keep their slots",
        "order.h",
        "above + int32_t(counted(&s->bin[digit])) < n",
        "above + int32_t(counted(&s->bin[digit])) <= n",
        "gpu_cache",
    ),
    Fault(
        "counted without an atomic operation",
        "order.h",
        "count_one(&s->bin[(key >> shift) & 255u]);",
        "s->bin[(key >> shift) & 255u]++;",
        "gpu_cache",
    ),
    Fault(
        "clock off by one",
        "begin.h",
        "a.clock[stream].now + 1 + uint32_t(token)",
        "a.clock[stream].now + uint32_t(token)",
        "gpu_cache",
    ),
    Fault("mean of the wrong block", "mean.h", "int64_t(run.block - 1) * dim + i", "int64_t(run.block) * dim + i", "gpu_cache"),
    Fault(
        "missing barrier of the rotation",
        "rows.h",
        "block_sync();\n            for (int32_t pair",
        "for (int32_t pair",
        "gpu_cache",
    ),
    Fault("fast: wrong plane shift", "fast_tile.h", "? 4 * (k / 2) : p == 2 ? 2 * k :", "? 4 * (k / 2) : p == 2 ? 2 * k + 1 :"),
    Fault(
        "fast: second plane of three bits not joined",
        "fast_tile.h",
        "code[k]             = code[k] << p |",
        "code[k]             = code[k] |",
    ),
    Fault("fast: mean of the wrong block", "fast_score.h", "int64_t(begin / block_cells)", "int64_t(begin / block_cells / 2)"),
    Fault(
        "fast: second bytes of the queries have no weight",
        "fast_score.h",
        "float(254 * sums[2 * i] + sums[2 * i + 1])",
        "float(254 * sums[2 * i])",
    ),
    Fault(
        "fast: middle of the codes forgotten",
        "fast_score.h",
        "- middle_of(n_bits) * s->q_rounded[at]",
        "- 0.0f * s->q_rounded[at]",
    ),
    Fault(
        "fast: refinement of another row",
        "fast_score.h",
        "cells.row[i]  = s->place[cells.seat[i]];",
        "cells.row[i]  = cells.seat[i];",
    ),
    Fault("fast: refinement added past the list's end", "fast_score.h", "if (item + 8 * (i % 2) < n) {", "if (item < n) {"),
    Fault(
        "fast: missing barrier before keys are scored",
        "fast_attend.h",
        "dot_mean(a, tile, begin, at.tid, s);\n        block_sync();",
        "dot_mean(a, tile, begin, at.tid, s);",
    ),
    Fault(
        "fast: missing barrier before values take the keys' place",
        "fast_attend.h",
        "score_base(fk, at.tid, s);\n        block_sync();",
        "score_base(fk, at.tid, s);",
    ),
    Fault(
        "fast: missing barrier before refined weights",
        "fast_attend.h",
        "block_sync();\n        round_refined_weights",
        "round_refined_weights",
    ),
    Fault("fast: divergent product", "fast_values.h", "if (part * 32 < f.dim) {", "if (part * 32 < f.dim && lane < 28) {"),
    Fault(
        "fast: weights of another row's",
        "fast_values.h",
        "s->words + (g * n_rows + r) * 64 + lane",
        "s->words + (g * n_rows + (r ^ 1)) * 64 + lane",
    ),
    Fault("fast: half a step of the base for refined rows", "fast_values.h", "(place >= 0 ? finer : part)", "part"),
    Fault(
        "fast: rows of the tile past the last cell",
        "fast_tile.h",
        "last - first < attend_tile ? last - first : attend_tile",
        "attend_tile",
    ),
    Fault("fast: sums not corrected", "fast_attend.h", "r < tile.n ? s->correction[r] : 0.0f", "1.0f"),
    Fault("sample not scaled", "score.h", "mass.all *= a.mass_scale;", "", "gpu_cache"),
)


def seeded_text(fault: Fault) -> str:
    """The kernel's text with the fault in it."""
    text = (ROOT / KERNELS / fault.file).read_text(encoding="utf-8")
    if text.count(fault.good) != 1:
        raise SystemExit(f"{fault.name}: {fault.file} has {text.count(fault.good)} places like it: keep FAULTS up to date")
    return text.replace(fault.good, fault.bad)


def run(command: list[str], limit_s: int = 300) -> subprocess.CompletedProcess[str]:
    """The finished process."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)


def caught_by(fault: Fault, build: Path) -> str:
    """First line that the test printed of the fault; "" if it passed."""
    with tempfile.TemporaryDirectory() as folder:
        seeded = Path(folder) / Path(KERNELS).relative_to("native") / fault.file
        seeded.parent.mkdir(parents=True)
        seeded.write_text(seeded_text(fault), encoding="utf-8")
        compiler = os.environ.get("CXX", "g++")
        flags = [
            "-std=c++17",
            "-O1",
            "-g",
            "-ffp-contract=off",
            "-fsanitize=thread",
            "-DMIKV_EMULATED_GPU",
            "-I",
            folder,
            "-I",
            str(ROOT / "native"),
        ]
        text, program = str(ROOT / "native/backend/emulated/kernels.cpp"), str(Path(folder) / "test")
        done = run([compiler, *flags, "-c", text, "-o", program + ".o"])
        if done.returncode:
            raise SystemExit(f"{fault.name}: does not compile:\n{done.stderr}")
        others = [
            str(path) for kind in ("mikv_core", "mikv_emulated") for path in (build / f"CMakeFiles/{kind}.dir").rglob("*.o")
        ]
        others = [path for path in others if not path.endswith(OWN_OBJECT)]
        test = str(build / f"CMakeFiles/{fault.test}.dir/tests/native/{fault.test}.cpp.o")
        done = run([compiler, test, program + ".o", *others, "-o", program, "-ldl", "-lpthread"])
        if done.returncode:
            raise SystemExit(f"{fault.name}: does not link:\n{done.stderr}")
        done = run([program, "--quick"])
        lines = done.stdout.splitlines()
        lines.sort(key=lambda line: "race" not in line and "divergence" not in line and "bounds: " not in line)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{fault.name}: {fault.test} ended with {done.returncode}, which reports nothing")
        return lines[0] if done.returncode else ""


def main() -> int:
    """Seed all; print what caught each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="build folder")
    parser.add_argument("--only", help="faults with this in their name")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if not args.only or args.only in fault.name]
    if line := caught_by(NO_FAULT, args.build):
        raise SystemExit(f"the text without a fault does not pass: {line}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = list(pool.map(lambda fault: caught_by(fault, args.build), faults))
    for fault, line in zip(faults, lines):
        print(f"{'caught' if line else 'MISSED':7} {fault.name}: {line[:150]}")
    n_missed = lines.count("")
    print(f"seeded: {len(faults)} faults, {n_missed} missed")
    return 1 if n_missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
