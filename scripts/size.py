#!/usr/bin/env python3
"""Print lines per file, longest first: a file over 400 lines is asked about, one over 600 fails.

Shown are files over 400 lines and the totals by kind; with --all every file.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WARN_LINES = 400
FAIL_LINES = 600
KINDS = {".py", ".cpp", ".h", ".c", ".cu", ".cuh", ".mm", ".metal", ".cmake", ".sh"}


def source_files() -> list[Path]:
    """Files of git's index and new ones that it does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if Path(name).suffix in KINDS and (ROOT / name).is_file()]


def main() -> int:
    """Print the table; 1 if a file is too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every file, not only the long ones")
    show_all = parser.parse_args().all
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    totals: Counter[str] = Counter()
    for path, count in sorted(lines.items(), key=lambda item: -item[1]):
        totals[path.suffix] += count
        verdict = ""
        if count > WARN_LINES:
            verdict = "  would two nouns say it better?" if count <= FAIL_LINES else "  too long: split it"
        if show_all or verdict:
            print(f"{count:6} {path.relative_to(ROOT)}{verdict}")
    print("size: " + ", ".join(f"{count} lines of {suffix}" for suffix, count in totals.most_common()))
    return 1 if any(count > FAIL_LINES for count in lines.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
