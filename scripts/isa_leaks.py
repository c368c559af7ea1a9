#!/usr/bin/env python3
"""Check that kernel files keep their instructions to themselves.

Usage: scripts/isa_leaks.py BUILD_FOLDER

A file compiled with -mavx512f must not (a) emit a weak symbol, such as an inline function of a shared header that was not
inlined: the linker keeps one copy of all, perhaps this one, and older machines crash in code that has nothing to do with it;
nor (b) run code while the library is loaded, before anyone could ask what the machine has.
Reads the object files with nm (Linux, macOS). Meaningful for an optimized build.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

OBJECT = re.compile(r"backend/cpu/(avx\w*|neon\w*)\.cpp\.o$")
SYMBOL = re.compile(r"^\s*[0-9a-f]* ([a-zA-Z]) (.+)$")
AT_LOAD = re.compile(r"_GLOBAL__sub_I|__static_initialization|__cxx_global_var_init")


def leaks(path: Path) -> list[str]:
    """What one object file leaks."""
    command = ["nm", "-C", "--defined-only", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in listing.splitlines():
        match = SYMBOL.match(line)
        if match and match[1] in "WVu" and match[2] != "DW.ref.__gxx_personality_v0":
            found.append(f"{path.name}: shared with other files: {match[2]}")
        elif match and AT_LOAD.search(match[2]):
            found.append(f"{path.name}: runs at load: {match[2]}")
    return found


def main() -> int:
    """Print every leak; 1 if there is one, or nothing to look at."""
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    objects = [path for path in sorted(Path(sys.argv[1]).rglob("*.o")) if OBJECT.search(path.as_posix())]
    found = [leak for path in objects for leak in leaks(path)]
    print("\n".join([*found, f"isa_leaks: {len(objects)} object files, {len(found)} leaks"]))
    return 1 if found or not objects else 0


if __name__ == "__main__":
    raise SystemExit(main())
