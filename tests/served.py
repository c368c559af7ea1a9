"""A server in this process, on a port of its own, and clients of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from mikv_cpp.llama import POOLINGS, Llama
from mikv_cpp.serve.app import Service, Settings, make_app
from mikv_cpp.serve.desk import ServedLlama

Start = Callable[..., "Served"]

#: A bias under which the tiny model never ends an answer: llama.cpp takes its <|endoftext|> for an end, too. Without that one,
#: 3 answers of 200 ended before their third token.
ENDLESS = {"256": -100, "258": -100}


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service
    llm: ServedLlama
    clients: contextlib.ExitStack

    def client(self, **settings: Any) -> openai.OpenAI:
        """The official client, which does not try again unless told to."""
        settings = {"api_key": "none", "max_retries": 0, "timeout": 60, **settings}
        return self.clients.enter_context(openai.OpenAI(base_url=f"{self.url}/v1", **settings))

    def http(self, **settings: Any) -> httpx.Client:
        """A plain client."""
        return self.clients.enter_context(httpx.Client(base_url=self.url, timeout=60, **settings))

    def slow_down(self) -> None:
        """From now on a token takes 5 ms: time enough to do something before an answer ends."""
        look_up = self.llm.on_eval

        def slowly() -> None:
            time.sleep(0.005)
            look_up()

        self.llm.on_eval = slowly

    def wait_idle(self) -> None:
        """Until the model works on nothing."""
        end = time.monotonic() + 30
        while self.service.desk.is_busy or self.service.desk.n_waiting:
            assert time.monotonic() < end, "the server is still at work"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(path: Path, settings: Settings, pooling: str = "", **load: Any) -> Iterator[Served]:
    """A server for this model until the context is left."""
    options = {"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    llm = ServedLlama(path, **{**options, **load})
    embedder = (
        Llama(
            path, kv="off", embedding=True, pooling_type=POOLINGS[pooling], n_ctx=128, n_batch=128, n_ubatch=128, verbose=False
        )
        if pooling
        else None
    )
    service = Service(llm, embedder, settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="critical", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        with contextlib.ExitStack() as clients:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service, llm, clients)
    finally:
        service.stop()
        server.should_exit = True
        thread.join()
        listener.close()
        service.desk.join(10)
        llm.close()
        if embedder:
            embedder.close()
