"""Commands and programs in the pages of the documentation: which there are, and what a reader's machine looks like to them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"`(\w+\.py)`:\s*\Z")
_SNIPPET = "--8<--"  # a whole file, shown: its own tests run it

#: Commands that are not run here (found anywhere in the command), and why.
ELSEWHERE = {
    r"^python3 -m venv\b": "step main_job of .ci/run follows a setting up from nothing",
    r"^(\.venv/bin/)?pip install\b": "the tests' environment was made by it",
    r"^\.venv/bin/python -m mikv_cpp\.run\b": "step main_job of .ci/run",
    r"^CMAKE_ARGS=": "for machines with a GPU, which none that runs tests is",
    r"^python3 scripts/gpu_check\.py\b": "step gpu of .ci/run, without a GPU",
    r"^python3 scripts/test\.py\b": "step tests of .ci/run: this is in it",
    r"^(cmake -S docs/examples|cmake --build build/examples|build/examples/complete)\b": "tests/examples builds and runs them",
    r"\bllama-server\b": "tests/stock starts it with these options, in step stock of .ci/run",
}

#: What is put behind a command of the package, so that it takes a second: the last value of an option counts.
SHORTER = {
    "mikv_cpp.run": "-n 4 -t 1",
    "mikv_cpp.serve": "-c 512 -t 1 --port 0",
    "mikv_cpp.view": "-c 2048 -t 1",
    "mikv_cpp.calibrate": "-c 48 --bands 1 -t 1",
    "mikv_cpp.eval": "-c 64 --chunks 1 -t 1",
    "mikv_cpp.bench": "--depths 0 --rounds 2 --burst 2 -t 1",
}


@dataclass(frozen=True)
class Block:
    """A fenced block; `file`: what the text before it calls it."""

    language: str
    body: str
    file: str


def blocks(page: Path) -> list[Block]:
    """Blocks of a page that hold shell commands or Python."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        name = _FILE_NAME.search(text[: match.start()])
        if match["language"] in ("sh", "python") and not match["body"].startswith(_SNIPPET):
            found.append(Block(match["language"], match["body"], name[1] if name else ""))
    return found


def commands(page: Path) -> list[str]:
    """Shell commands of a page, one each; parts joined by && are several."""
    lines = "".join(block.body for block in blocks(page) if block.language == "sh").replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split(" && ")]
    return [part for part in parts if part]


def reason_elsewhere(command: str) -> str:
    """The row of ELSEWHERE that a command is in, or nothing."""
    return next((row for row in ELSEWHERE if re.search(row, command)), "")


def hidden_commands(page: Path) -> list[str]:
    """Lines that a reader would type but that stand in no block which is run."""
    outside = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"^ {4}(?:python|pip|cmake|mikv-)[^\n]*", outside, flags=re.MULTILINE)


def shim(python: str) -> str:
    """A shell script for the name `python`: the interpreter, with a model where none is named and less to do."""
    cases = "\n".join(f"    *' {module} '*) set -- \"$@\" {options} ;;" for module, options in SHORTER.items())
    evaluated = SHORTER["mikv_cpp.eval"]
    return f"""#!/usr/bin/env bash
case " $* " in *.gguf*|*' -c '*import*) ;; *' -m mikv_cpp.'*) set -- "$@" model.gguf ;; esac
case " $* " in
    *'mikv_cpp.bench attention '*) ;;
{cases}
    *"run_module('mikv_cpp.eval'"*) set -- "$@" {evaluated} ;;
esac
exec '{python}' "$@"
"""
