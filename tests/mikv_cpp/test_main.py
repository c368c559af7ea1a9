"""Every command under one name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mikv_cpp.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mikv_cpp"


@pytest.fixture(scope="module")
def said(python: str, python_environment: dict[str, str]):
    def run(*words: str) -> tuple[int, str, str]:
        result = subprocess.run(
            [python, "-m", "mikv_cpp", *words], env=python_environment, capture_output=True, text=True, check=False
        )
        return result.returncode, result.stdout, result.stderr

    return run


def test_every_module_that_can_be_run_is_a_command() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert set(COMMANDS) == (folders | files) - {"__main__"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_module(said, name: str) -> None:
    status, out, _ = said(name, "--help")
    assert status == 0
    assert f"mikv_cpp.{name}" in out.partition("\n")[0]


def test_the_status_is_the_commands(said) -> None:
    status, _, err = said("run", "--budget", "lots")
    assert (status, err[:6]) == (2, "error:")


def test_help_names_every_command(said) -> None:
    status, out, _ = said("--help")
    assert status == 0
    assert re.findall(r"^  (\w+) ", out, flags=re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("words", [(), ("model.gguf",), ("-p", "Hello")])
def test_anything_else_is_refused(said, words: tuple[str, ...]) -> None:
    status, out, err = said(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "run, serve" in err


def test_the_installed_program_is_this_one() -> None:
    assert 'mikv-cpp = "mikv_cpp.__main__:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
