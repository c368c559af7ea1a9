"""Every command and every Python block of README.md and docs/ runs as it stands there, on a small model."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from documented import ELSEWHERE, PAGES, ROOT, blocks, commands, hidden_commands, reason_elsewhere

# Answers of a model that knows nothing have no end.
SHORT_ANSWERS = """
import mikv_cpp as _mikv
_answer = _mikv.Llama.create_chat_completion
_mikv.Llama.create_chat_completion = lambda self, *given, **named: _answer(self, *given, **{"max_tokens": 4, **named})
"""
BASH = shutil.which("bash") or "bash"
SECONDS = 240  # more than any takes, on a machine that does much else


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What is wrong with it, or nothing."""
    result = subprocess.run(
        command, cwd=folder, env=environment, input="Hello", capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return "" if result.returncode == 0 else f"exit status {result.returncode}: {(result.stdout + result.stderr)[-1500:]}"


def serve(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Start a server, ask for its health, interrupt it. What is wrong with it, or nothing."""
    with (folder / "serve.log").open("w+") as log:
        process = subprocess.Popen(
            [BASH, "-c", f"exec {command}"], cwd=folder, env=environment, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            url = ""
            while not url and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                url = (folder / "serve.log").read_text().partition("page ")[2].partition("/ ")[0]
            if url:
                with urllib.request.urlopen(f"{url}/health", timeout=SECONDS) as answer:  # noqa: S310 - it is our own
                    assert answer.status == 200
                process.send_signal(signal.SIGINT)
            status = process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
        return "" if url and status == 0 else f"exit status {status}: {(folder / 'serve.log').read_text()[-1500:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_a_page(page: Path, folder: Path, reader: dict[str, str], request: pytest.FixtureRequest) -> None:
    """Its programs first: its commands may use the files that it tells readers to write."""
    wrong = programs(page, folder, reader, request)
    for command in commands(page):
        if not reason_elsewhere(command):
            is_server = command.startswith("python -m mikv_cpp.serve")
            said = (
                serve(command, folder, reader) if is_server else run([BASH, "-euo", "pipefail", "-c", command], folder, reader)
            )
            wrong += [f"{command}\n{said}"] if said else []
    assert not wrong, "\n\n".join(wrong)


def programs(page: Path, folder: Path, reader: dict[str, str], request: pytest.FixtureRequest) -> list[str]:
    """Run what a page has of Python, as one program, and keep its files. What is wrong with it."""
    found = [block for block in blocks(page) if block.language == "python"]
    for block in found:
        if block.file:
            (folder / block.file).write_text(block.body, encoding="utf-8")
    text = "\n".join(block.body for block in found if not block.file)
    if not text:
        return []
    if "127.0.0.1:8080" in text:
        text = text.replace("http://127.0.0.1:8080", request.getfixturevalue("server_url"))
    (folder / "program.py").write_text(SHORT_ANSWERS + text, encoding="utf-8")
    said = run(["python", "program.py"], folder, reader)
    return [f"its Python blocks\n{said}"] if said else []


def test_what_runs_elsewhere_is_there_and_the_rest_is_found() -> None:
    every = [command for page in PAGES for command in commands(page)]
    assert {reason_elsewhere(command) for command in every} - {""} == set(ELSEWHERE)
    assert sum(command.startswith("python -m mikv_cpp.") for command in every) > 20
    assert not [command for page in PAGES for command in hidden_commands(page)]
