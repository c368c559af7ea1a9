#!/usr/bin/env python3
"""Clients at once, for minutes, against a server: nothing is lost, and memory stays flat.

    python scripts/soak.py model.gguf --minutes 5 --clients 8        options of the server may follow

Starts `python -m mikv_cpp.serve` and asks it with OpenAI's client: whole and streamed answers, conversations that go on,
answers that are given up, and requests that are wrong. Prints one JSON object; fails when an answer is lost or memory grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai

WORDS = ["river", "lamp", "seven", "cold", "bridge", "paper", "north", "music", "table", "green", "stone", "letter"]

TOO_LONG = "x " * 10_000


class Client(threading.Thread):
    """One who asks over and over."""

    def __init__(self, number: int, url: str, until: float) -> None:
        super().__init__(name=f"client-{number}")
        self._random = random.Random(number)  # noqa: S311 - what to ask, no secret
        self._until = until
        self._ask = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=8, timeout=300)
        self._user = f"client-{number}"
        self._turns: list[Any] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        """Ask until the time is over."""
        while time.monotonic() < self._until:
            kind = self._random.choices(["whole", "stream", "give_up", "wrong"], [4, 4, 2, 1])[0]
            try:
                getattr(self, f"_{kind}")()
                self.counts[kind] += 1
            except Exception as error:  # noqa: BLE001 - each is a fault to report
                self.faults.append(f"{kind}: {type(error).__name__}: {error}")

    def _conversation(self) -> list[Any]:
        if len(self._turns) > 5:
            self._turns.clear()
        said = " ".join(self._random.choices(WORDS, k=self._random.randint(3, 30)))
        return [*self._turns, {"role": "user", "content": said}]

    def _settings(self, messages: list[Any]) -> dict[str, Any]:
        most = self._random.randint(1, 48)
        return {"model": "m", "messages": messages, "max_tokens": most, "user": self._user, "temperature": 0.5}

    def _whole(self) -> None:
        messages = self._conversation()
        answer = self._ask.chat.completions.create(**self._settings(messages))
        if answer.choices[0].finish_reason not in ("stop", "length"):
            raise AssertionError("no end")
        self._turns = [*messages, {"role": "assistant", "content": answer.choices[0].message.content}]

    def _stream(self) -> None:
        messages = self._conversation()
        said, finish = "", None
        for chunk in self._ask.chat.completions.create(stream=True, **self._settings(messages)):
            said += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        if finish is None:
            raise AssertionError("the stream ended without an end")
        self._turns = [*messages, {"role": "assistant", "content": said}]

    def _give_up(self) -> None:
        with self._ask.chat.completions.create(stream=True, **self._settings(self._conversation())) as stream:
            next(iter(stream), None)

    def _wrong(self) -> None:
        try:
            self._ask.chat.completions.create(model="m", messages=[{"role": "user", "content": TOO_LONG}], user=self._user)
        except openai.BadRequestError:
            return
        raise AssertionError("a prompt that does not fit was taken")


def resident_mib(process: subprocess.Popen[str]) -> float:
    """Memory that the process has now."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def soak(url: str, server: subprocess.Popen[str], options: argparse.Namespace) -> dict[str, Any]:
    """What came of it."""
    first = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
    first.completions.create(model="m", prompt=[1] * 2000, max_tokens=40)  # pages of the whole cache are there from now on
    with contextlib.suppress(openai.BadRequestError):
        first.chat.completions.create(model="m", messages=[{"role": "user", "content": TOO_LONG}])
    start = time.monotonic()
    clients = [Client(number, url, start + 60 * options.minutes) for number in range(options.clients)]
    for client in clients:
        client.start()
    memory = []
    while any(client.is_alive() for client in clients):
        time.sleep(min(2.0, 6 * options.minutes))
        memory.append(resident_mib(server))
    warm, late = max(memory[: max(1, len(memory) // 3)]), max(memory[-max(1, len(memory) // 3) :])
    return {
        "seconds": round(time.monotonic() - start),
        "clients": options.clients,
        "answers": dict(sum((client.counts for client in clients), Counter())),
        "answers_of_each": [sum(client.counts.values()) for client in clients],
        "faults": [fault for client in clients for fault in client.faults][:20],
        "resident_mib_first_third": round(warm, 1),
        "resident_mib_last_third": round(late, 1),
        "growth": round(late / warm - 1, 4),
    }


def main() -> int:
    """1 if an answer was lost or memory grew by more than 2 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file with a chat template")
    parser.add_argument("--minutes", type=float, default=5.0, metavar="X", help="default %(default)s")
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="default %(default)s")
    options, of_server = parser.parse_known_args()  # what is left is for the server
    command = [sys.executable, "-m", "mikv_cpp.serve", options.model, "--port", "0", "-c", "2048", *of_server]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            found = re.findall(r"page (http://\S+?)/ ", line)
            if not found:
                print(line, end="", file=sys.stderr)
                return 1
            out = soak(found[0], server, options)
        finally:
            server.terminate()
    print(json.dumps(out, indent=1))
    return 1 if out["faults"] or out["growth"] > 0.02 else 0


if __name__ == "__main__":
    raise SystemExit(main())
