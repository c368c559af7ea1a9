#!/usr/bin/env python3
"""Write the text that Metal's compiler gets: the kernels' headers in order, in one file, and their entry points.

Two texts, since two sets of compiler options: `exact`, whose bits the format fixes, and `loose` (native/kernel/gpu/list.h).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
ENTRIES = {"exact": "MIKV_EXACT_KERNELS", "loose": "MIKV_LOOSE_KERNELS"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def header_text(name: str, seen: set[str]) -> list[str]:
    """Lines of a header with all that it includes before it, each once; system headers are Metal's own."""
    name = "dialect/metal.h" if name == "dialect/dialect.h" else name
    if name in seen:
        return []
    seen.add(name)
    lines = []
    for line in (NATIVE / name).read_text(encoding="utf-8").splitlines():
        match = INCLUDE.match(line)
        if match and match[1] == '"':
            lines += header_text(match[2], seen)
        elif (match and match[2] != "metal_stdlib") or line.strip() == "#pragma once":
            continue
        else:
            lines.append(line)
    return lines


def metal_text(kind: str) -> str:
    """The whole text of one kind."""
    lines = header_text("kernel/gpu/kernels.h", set())
    exact = ["#pragma clang fp contract(off)"] if kind == "exact" else []
    return "\n".join([*exact, *lines, "", f"{ENTRIES[kind]}(MIKV_KERNEL)", ""])


def main() -> int:
    """Write one text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(ENTRIES))
    parser.add_argument("-o", "--output", type=Path, help="file; else the standard output")
    parser.add_argument("--literal", action="store_true", help="as a literal of C++")
    args = parser.parse_args()
    text = metal_text(args.kind)
    if args.literal:
        text = f'R"mikv({text})mikv"\n'
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
