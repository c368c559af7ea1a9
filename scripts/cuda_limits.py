#!/usr/bin/env python3
"""Compile the CUDA texts for every architecture and check what ptxas says of each kernel: registers, spills, shared memory.

Prints one line per kernel, the worst of all architectures. Needs nvcc: on the path, in CUDA_HOME, or --nvcc. Exit code 77:
there is none.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {"exact.cu": ["-fmad=false"], "loose.cu": []}  # as cmake/cuda.cmake has them
ARCHITECTURES = (75, 80, 86, 89, 90, 120)
SKIPPED = 77

# attend: 128 threads a block, so that at 128 registers 4 blocks fit on a multiprocessor; the others are short. 3 blocks at 168
# where what they share does not let a fourth into the 100 KiB that consumer GPUs have
MOST_REGISTERS, MOST_REGISTERS_OF_THREE = 128, 168
FOUR_BLOCKS_SHARE = 24 * 1024
MOST_SPILLED_BYTES = 64  # written and read back once a thread, in kernels that touch kilobytes
MOST_SHARED_BYTES = 32 * 1024  # Metal's limit too


class Use(NamedTuple):
    """What a kernel takes."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def read_uses(text: str) -> dict[str, Use]:
    """Kernels in what ptxas -v printed."""
    uses = {}
    pattern = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    for name, stores, loads, registers, rest in pattern.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        uses[name] = Use(int(registers), max(int(stores), int(loads)), int(shared[1]) if shared else 0)
    return uses


def limits_of(use: Use) -> Use:
    """The most that a kernel may take which shares so much."""
    registers = MOST_REGISTERS if use.shared_bytes <= FOUR_BLOCKS_SHARE else MOST_REGISTERS_OF_THREE
    return Use(registers, MOST_SPILLED_BYTES, MOST_SHARED_BYTES)


def find_nvcc() -> str | None:
    """The compiler of the path, or of CUDA_HOME."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc") or (home and shutil.which("nvcc", path=str(Path(home) / "bin")))
    return found or None


def compile_text(nvcc: str, text: str, architecture: int, folder: Path) -> dict[str, Use]:
    """Uses of the kernels of one text on one architecture; fails if it does not compile or the compiler warns."""
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        f"-arch=sm_{architecture}",
        "-cubin",
        "-Xptxas",
        "-v",
        "-I",
        str(ROOT / "native"),
        *TEXTS[text],
    ]
    command += [str(ROOT / "native/backend/cuda" / text), "-o", str(folder / f"{text}.{architecture}.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode or "warning" in output:
        raise SystemExit(f"{text} for sm_{architecture}:\n{output}")
    return read_uses(output)


def main() -> int:
    """Compile, print, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", default=find_nvcc())
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    args = parser.parse_args()
    if not args.nvcc:
        print("skipped: no nvcc: install the CUDA toolkit, or the packages nvidia-cuda-nvcc and nvidia-cuda-crt")
        return SKIPPED
    worst: dict[str, Use] = {}
    with tempfile.TemporaryDirectory() as folder:
        for text in TEXTS:
            for architecture in args.architectures:
                for name, use in compile_text(args.nvcc, text, architecture, Path(folder)).items():
                    worst[name] = Use(*map(max, use, worst.get(name, use)))
    over = [name for name, use in worst.items() if any(have > limit for have, limit in zip(use, limits_of(use)))]
    for name, use in sorted(worst.items()):
        mark = "  over the limit" if name in over else ""
        numbers = f"{use.registers:4} registers {use.spilled_bytes:4} bytes spilled {use.shared_bytes:6} bytes shared"
        print(f"{name:20} {numbers}{mark}")
    architectures = ", ".join(f"sm_{a}" for a in args.architectures)
    print(f"cuda: {len(worst)} kernels compiled for {architectures}, {len(over)} over the limits; none of them run")
    return 1 if over or not worst else 0


if __name__ == "__main__":
    raise SystemExit(main())
