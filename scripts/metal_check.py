#!/usr/bin/env python3
"""Type-check the Metal texts with clang against declarations of Metal's library (tests/metal/metal_stdlib).

Address spaces are real. Not Metal's compiler: what we read in its specification. Therefore calibrated on Metal files of
llama.cpp, which are known to be good and must pass, and on faults seeded into our text, which must all be reported. Exit code
77: there is no clang.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from metal_text import ENTRIES, ROOT, metal_text

SKIPPED = 77
KNOWN_GOOD = ("argsort", "norm", "pool", "reduce", "solve_tri", "tri", "upscale")  # of llama.cpp's ggml-metal/kernels
FLAGS = [
    "-x",
    "c++",
    "-std=c++17",
    "--target=aarch64-linux-gnu",
    "-nostdinc",
    "-fsyntax-only",
    "-D__METAL_VERSION__=310",
    "-ferror-limit=50",
]
OURS = [
    "-Wall",
    "-Wno-unused-function",
    "-Wno-unused-const-variable",
    "-Wno-unknown-attributes",
    "-Werror=double-promotion",
    "-Ddouble=metal_has_none",
]
THEIRS = ["-Wno-everything"]


class TypeFault(NamedTuple):
    """A change of the text that Metal's compiler would refuse."""

    name: str
    good: str
    bad: str


FAULTS = (
    TypeFault("device memory through a thread's pointer", "const MIKV_GLOBAL float * key =", "const float * key ="),
    TypeFault("threadgroup memory through a thread's pointer", "MIKV_SHARED float * weight", "float * weight"),
    TypeFault("device memory through a threadgroup's pointer", "MIKV_GLOBAL uint8_t * base,", "MIKV_SHARED uint8_t * base,"),
    TypeFault(
        "parameter without an address space",
        "int32_t kept_at(const MIKV_GLOBAL GpuHead * h",
        "int32_t kept_at(const GpuHead * h",
    ),
    TypeFault("arguments without an address space", "row_tile(MIKV_ARGUMENTS AttendArgs & a", "row_tile(const AttendArgs & a"),
    TypeFault("member function of an object in device memory", "g < f.n_groups()", "g < h->view.k.n_groups()"),
    TypeFault("word of CUDA's", "    block_sync();\n", "    __syncthreads();\n"),
    TypeFault("double", "float sum = 0.0f;", "double sum = 0.0f;"),
    TypeFault("number of double precision", "(float(code) + 0.5f)", "(float(code) + 0.5)"),
    TypeFault(
        "arguments written",
        "const int32_t first = int32_t(at.x) * a.chunk_cells;",
        "a.n_chunks = 1;\n    const int32_t first = int32_t(at.x) * a.chunk_cells;",
    ),
    TypeFault("name that Metal keeps for itself", "uint32_t tid;", "uint32_t thread;"),
    TypeFault("function of the C library", "return exp(x);", "return expf(x);"),
)


HOST = ROOT / "native/backend/metal/device.mm"
HOST_FAULTS = (
    TypeFault("method that Metal has not", "dispatchThreadgroups:", "dispatchThreads:"),
    TypeFault("object of another kind", "[q->encoder endEncoding]", "[q->buffer endEncoding]"),
    TypeFault("function of the table with other arguments", "int finish(void * queue) {", "int finish(void * queue, int) {"),
)


def find_clang() -> str | None:
    """A clang for C++ on the path."""
    return next(
        (found for name in ("clang++", *(f"clang++-{n}" for n in range(22, 13, -1))) if (found := shutil.which(name))), None
    )


def faults_of(clang: str, text: str, flags: list[str], folder: Path) -> str:
    """What clang says against a text; "" if nothing. Attributes that only Apple's clang knows are dropped."""
    text = re.sub(r"\[\[function_constant[^\]]*\]\]", "= {}", text)  # a value that comes later
    text = re.sub(r"\[\[[^\]]*\]\]", "", text)
    # clang knows no automatic variable in an address space
    text = re.sub(r"(?m)^( +)(threadgroup \w+ \w+\[)", r"\1static \2", text)
    path = folder / "text.metal"
    path.write_text(text, encoding="utf-8")
    stub = ROOT / "tests/metal"
    command = [clang, *FLAGS, *flags, "-include", str(stub / "metal_stdlib"), "-I", str(stub), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode or "warning:" in done.stderr else ""


def calibrate(clang: str, llama_cpp: Path, folder: Path) -> int:
    """Number of known-good files that do not pass."""
    metal = llama_cpp / "ggml/src/ggml-metal"
    n_bad = 0
    for name in KNOWN_GOOD:
        text = (metal / "kernels" / f"{name}.metal").read_text(encoding="utf-8")
        flags = [*THEIRS, "-I", str(metal / "kernels"), "-I", str(metal), "-I", str(metal.parent)]
        said = faults_of(clang, text, flags, folder)
        n_bad += bool(said)
        print(f"known good: {name}.metal {'refused: ' + said[:400] if said else 'passes'}")
    return n_bad


def check_faults(clang: str, folder: Path) -> int:
    """Number of seeded faults that are not reported."""
    text = metal_text("loose")
    n_missed = 0
    for fault in FAULTS:
        if fault.good not in re.sub(r" +", " ", text) and fault.good not in text:
            raise SystemExit(f"{fault.name}: the text has no {fault.good!r}: keep FAULTS up to date")
        pattern = re.escape(fault.good).replace(r"\ ", r"[ ]+")
        said = faults_of(clang, re.sub(pattern, lambda _, bad=fault.bad: bad, text, count=1), OURS, folder)
        line = next((line for line in said.splitlines() if "error:" in line), "")
        n_missed += not line
        print(f"{'reported' if line else 'MISSED'}: {fault.name}: {line.partition('error: ')[2][:100]}")
    return n_missed


def host_faults(clang: str, source: str, folder: Path) -> str:
    """What clang says against the host side, with the stubs of Foundation and Metal in tests/metal; "" if nothing."""
    for kind in ENTRIES:
        (folder / f"mikv_metal_{kind}.inc").write_text(f'R"mikv({metal_text(kind)})mikv"', encoding="utf-8")
    path = folder / "device.mm"
    path.write_text(source, encoding="utf-8")
    command = [
        clang,
        "-fsyntax-only",
        "-x",
        "objective-c++",
        "-std=c++17",
        "-fobjc-runtime=macosx-13",
        "-fobjc-arc",
        "-fblocks",
    ]
    command += ["-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "tests/metal"), "-I", str(ROOT / "native"), "-I", str(folder)]
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=False).stderr


def check_host(clang: str, folder: Path) -> int:
    """Number of faults of the host side, and of seeded ones that are not reported."""
    source = HOST.read_text(encoding="utf-8")
    said = host_faults(clang, source, folder)
    n_bad = int(bool(said))
    print(f"host side: {said or 'passes'}")
    for fault in HOST_FAULTS:
        if fault.good not in source:
            raise SystemExit(f"{fault.name}: the host side has no {fault.good!r}: keep HOST_FAULTS up to date")
        said = host_faults(clang, source.replace(fault.good, fault.bad, 1), folder)
        n_bad += not said
        line = next((line for line in said.splitlines() if "error:" in line), "")
        print(f"{'reported' if said else 'MISSED'}: {fault.name}: {line.partition('error: ')[2][:100]}")
    return n_bad


def main() -> int:
    """Check the texts, the host side, the known-good files and the seeded faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--llama-cpp", type=Path, help="source tree of llama.cpp, for the known-good files; else those are not looked at"
    )
    parser.add_argument("--clang", default=find_clang())
    args = parser.parse_args()
    if not args.clang:
        print("skipped: no clang++: install Debian's package clang")
        return SKIPPED
    n_bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ENTRIES:
            said = faults_of(args.clang, metal_text(kind), OURS, folder)
            n_bad += bool(said)
            print(f"text {kind}: {said or 'passes'}")
        n_bad += calibrate(args.clang, args.llama_cpp, folder) if args.llama_cpp else 0
        n_bad += check_faults(args.clang, folder)
        n_bad += check_host(args.clang, folder)
    print(
        f"metal: {len(ENTRIES)} texts and the host side type-checked, {n_bad} faults; not compiled by Metal's compiler, not run"
    )
    return 1 if n_bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
