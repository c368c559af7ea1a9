#!/usr/bin/env python3
"""Set up everything in a virtual environment and run the tests.

    python3 scripts/test.py                        all tests
    python3 scripts/test.py tests/native -k slot     arguments are pytest's

Needs Python 3.9 or newer, a C++ compiler and pip's index; CMake and Ninja come by pip. The first run builds llama-cpp-python
(5 to 10 minutes on 2 cores), the next ones only what changed. The environment is .venv, or what MIKV_VENV names.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def environment_python() -> Path:
    """Python of the virtual environment, which is made if it is not there."""
    folder = Path(os.environ.get("MIKV_VENV") or ROOT / ".venv")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making the virtual environment {folder}", flush=True)
        venv.create(folder, with_pip=True)
    return python


def main() -> int:
    """Exit code of pytest, or of the step before it that failed."""
    try:
        python = environment_python()
    except subprocess.CalledProcessError:
        print("error: this Python cannot make virtual environments: install its venv module (Debian: apt install python3-venv)")
        return 1
    print("installing mikv_cpp and what its tests need (the first time takes some minutes)", flush=True)
    # editable: the package is then imported from this tree, the native library from where CMake put it
    installed = subprocess.run([python, "-m", "pip", "install", "--editable", ".[test]"], cwd=ROOT, check=False)
    if installed.returncode:
        return installed.returncode
    return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
