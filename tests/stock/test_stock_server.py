"""The plug-in in llama.cpp's own, unmodified llama-server, against the Python path: same tokens, a cache of the same size.

Skipped unless MIKV_STOCK_BIN names its folder; scripts/stock_binary.sh builds it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from stock_tools import MARKS, N_CTX, PLUGIN_OPTIONS, PROMPT, SIZES, greedy_tokens, stock_command, stock_environment

from mikv_cpp.engine import Engine

pytestmark = MARKS

N_PREDICT = 24
START_SECONDS = 120
STOP_SECONDS = 60


@dataclass(frozen=True)
class StockServer:
    """A running llama-server, a client of it, and the file that its log goes to."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def answer(self) -> list[int]:
        """The tokens of one greedy answer to PROMPT, from an empty cache."""
        body = {"prompt": PROMPT, "n_predict": N_PREDICT, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        reply = self.client.post("/completion", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()["tokens"]

    def stop(self) -> int:
        """Ask it to end; the status that it leaves with, below 0 if a signal ended it."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the log tells, once the model is loaded behind it."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", log.read_text(encoding="utf-8", errors="replace"))
        if found and httpx.get(f"{found[1]}/health").status_code == 200:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"llama-server is not ready ({process.poll()}): {log.read_text(errors='replace')[-4000:]}")


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[StockServer]:
    """llama-server on the plug-in's device and a free port, killed at the end if it still runs."""
    where = ["--host", "127.0.0.1", "--port", "0"]
    command = stock_command("llama-server", model, *where, *SIZES, "-np", "1", "-lv", "4", *PLUGIN_OPTIONS)
    streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with log.open("wb") as file, subprocess.Popen(command, env=stock_environment(), stdout=file, **streams) as process:
        try:
            with httpx.Client(base_url=wait_until_ready(process, log), timeout=120) as client:
                yield StockServer(process, client, log)
        finally:
            process.kill()  # does nothing to one that was waited for


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockServer]:
    with serving(model, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


def test_stock_server_gives_the_same_tokens_again_and_again(server: StockServer, engine: Engine):
    expected = greedy_tokens(engine, N_PREDICT)
    assert server.answer() == expected
    assert server.answer() == expected


def test_stock_server_holds_the_compressed_cache(server: StockServer, engine: Engine):
    log = server.log.read_text(encoding="utf-8", errors="replace")
    told = re.findall(r"mikv: MIKV0: (\d+) layers x (\d+) cells, .*: ([\d.]+) MiB, ([\d.]+) % of f16", log)
    assert engine.kv
    stats = engine.kv.stats()
    shape = (str(len(engine.kv.layers)), str(N_CTX))
    n_bytes = stats.bytes_total - stats.bytes_staging  # there is no micro-batch yet when it is told
    size = (f"{n_bytes / 2**20:.2f}", f"{100 * n_bytes / stats.bytes_f16:.1f}")
    assert told == [(*shape, *size)], log[-4000:]


def test_stock_server_leaves_by_itself_when_asked_to(model: Path, tmp_path: Path):
    with serving(model, tmp_path / "log") as running:
        running.answer()
        status = running.stop()
        assert status == 0, (status, running.log.read_text(errors="replace")[-4000:])
