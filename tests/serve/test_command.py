"""The command: its address, Ctrl-C, and what it refuses."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import ENDLESS

from mikv_cpp.serve import __main__ as command

Writer = Callable[..., Path]
ARGUMENTS = ["-c", "512", "--port", "0", "-t", "1"]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", [False, True])
def test_ctrl_c(python: str, python_environment: dict[str, str], tiny_model: Writer, sign: signal.Signals, busy: bool) -> None:
    arguments = [python, "-m", "mikv_cpp.serve", str(tiny_model(chat_template=True)), *ARGUMENTS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, env=python_environment, **pipes) as running, killed_at_the_end(running):
        line = running.stderr.readline()
        url = re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
        until = time.monotonic() + 30
        while True:
            try:
                assert httpx.get(url + "/health").json() == {"status": "ok"}
                break
            except httpx.ConnectError:
                assert time.monotonic() < until
        if busy:
            body = {"prompt": "x", "max_tokens": 450, "stream": True, "logit_bias": ENDLESS}
            with httpx.stream("POST", url + "/v1/completions", json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                running.send_signal(sign)
                assert any("stops" in line or "[DONE]" in line for line in lines)
        else:
            running.send_signal(sign)
        out, error = running.communicate(timeout=20)
        assert (out, error) == ("", "")
        assert running.returncode in (0, -sign)


@contextlib.contextmanager
def killed_at_the_end(running: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], ["--port 70000", "65535"]),
        (["--host", "no.such.host.invalid"], ["no.such.host.invalid", "--host"]),
        (["--max-waiting", "0"], ["--max-waiting"]),
        (["--kv", "nothing"], ["nothing"]),
        (["--embeddings", "sum"], ["sum"]),
        (["missing.gguf", "--port", "0"], ["missing.gguf"]),
    ],
)
def test_refusals(arguments: list[str], words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


def test_a_port_that_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command.main(["--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capfd.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from importlib import util

    found = util.find_spec

    def find(name: str, *more: Any) -> Any:
        return None if name == "sse_starlette" else found(name, *more)

    monkeypatch.setattr(util, "find_spec", find)
    assert command.main([]) == 2
    assert capfd.readouterr().err == "error: the server needs sse_starlette: pip install sse_starlette\n"


def test_every_option_says_what_it_is() -> None:
    text = command.build_parser().format_help()
    assert "--api-key" in text
    for action in command.build_parser()._actions:
        assert action.help, action.option_strings
