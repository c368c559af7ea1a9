"""--session and --prompt-cache of `python -m mikv_cpp.run`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mikv_cpp.state import read_state

Writer = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
LONG = "Tell me about the quick brown fox. " * 8


@pytest.fixture
def run(python: str, python_environment: dict[str, str]) -> Run:
    def start(*arguments: Any, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "mikv_cpp.run", *map(str, arguments), "-n", "6", "-c", "2048", "--temp", "0", "-t", "1"]
        return subprocess.run(
            command, env=python_environment, input=stdin, capture_output=True, text=True, timeout=240, check=False
        )

    return start


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_session_goes_on(run: Run, tiny_model: Writer, tmp_path: Path) -> None:
    model, path = tiny_model(chat_template=True), tmp_path / "talk.mikv"
    first = _json(run(model, "-p", LONG, "--session", path, "--json"))
    turns = read_state(path).notes["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[1]["content"] == first["text"]
    second = _json(run(model, "-p", "And now?", "--session", path, "--json"))
    assert second["prompt_tokens"] > first["prompt_tokens"]
    assert len(read_state(path).notes["turns"]) == 4
    one_process = run(model, "--session", tmp_path / "other.mikv", stdin="")
    assert one_process.returncode == 2  # no prompt on stdin: nothing is made
    assert [path.name for path in tmp_path.iterdir()] == ["talk.mikv"]


def test_a_damaged_session_is_refused_and_left_as_it_is(run: Run, tiny_model: Writer, tmp_path: Path) -> None:
    model, path = tiny_model(chat_template=True), tmp_path / "talk.mikv"
    _json(run(model, "-p", LONG, "--session", path, "--json"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    done = run(model, "-p", "And now?", "--session", path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the state is damaged")
    assert path.read_bytes() == bytes(data)


def test_a_prompt_is_read_once(run: Run, tiny_model: Writer, tmp_path: Path) -> None:
    """What is fetched need not be read: the answer is the same, and the folder has one file."""
    model, folder = tiny_model(chat_template=True), tmp_path / "states"
    texts = [_json(run(model, "-p", LONG, "--prompt-cache", folder, "--json")) for _ in range(2)]
    assert len(list(folder.iterdir())) == 1
    assert texts[0]["prompt_tokens"] == texts[1]["prompt_tokens"]
    assert texts[0]["generated_tokens"] == texts[1]["generated_tokens"] > 0


def test_bad_words_are_refused_before_the_model_is_loaded(run: Run, tiny_model: Writer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for given, words in (
        (["--prompt-cache", tmp_path / "file"], "cannot be used as a folder"),
        (["--prompt-cache", tmp_path, "--prompt-cache-size", "10%"], "is a share"),
        (["--prompt-cache", tmp_path, "--prompt-cache-size", "much"], "cannot be read"),
    ):
        done = run(tiny_model(), "-p", "hello", *given)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
