"""What must be said in two places is the same in both."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import mikv_cpp
from mikv_cpp import arguments, plugin

ROOT = Path(__file__).resolve().parents[2]


def test_llama_cpp_python_is_pinned_to_the_version_that_is_checked() -> None:
    pins = re.findall(r'"llama-cpp-python==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pins == [plugin.LLAMA_CPP_VERSION]


def test_everything_announced_is_there() -> None:
    assert all(getattr(mikv_cpp, name) is not None for name in mikv_cpp.__all__)


def test_help_does_not_load_llama_cpp(python: str, python_environment: dict[str, str]) -> None:
    program = "import sys, mikv_cpp.run, mikv_cpp.config; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([python, "-c", program], env=python_environment, check=False).returncode == 0


def test_every_option_has_help() -> None:
    text = arguments.build_parser().format_help()
    for option in (
        "--kv",
        "--budget",
        "--k-bits",
        "--v-bits",
        "--refined-bits",
        "--refined-share",
        "--policy",
        "--threads",
        "--stats",
    ):
        assert option in text
