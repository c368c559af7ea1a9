"""Addresses and their answers."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mikv_cpp.answer import context_size
from mikv_cpp.errors import ConfigError
from mikv_cpp.llama import Llama
from mikv_cpp.serve import answers
from mikv_cpp.serve.desk import Desk, Job, ServedLlama
from mikv_cpp.serve.errors import Refusal, answer_in_openais_shape, refusal_of
from mikv_cpp.serve.limits import BodyLimit, key_check, trusted_hosts
from mikv_cpp.serve.metrics import Reading, exposition
from mikv_cpp.serve.picture import Window, picture
from mikv_cpp.serve.requests import ChatRequest, CompletionRequest, EmbeddingRequest

T = TypeVar("T")
_PAGE = Path(__file__).with_name("page")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Settings:
    """How the server meets its clients; the words of its command line."""

    host: str = "127.0.0.1"
    api_key: Optional[str] = None
    alias: str = ""
    allow_hosts: list[str] = field(default_factory=list)
    max_body: int = 8 * 2**20
    max_waiting: int = 32
    body_seconds: float = 30.0
    send_seconds: float = 30.0


class Service:
    """A model and those who ask it.

    Args:
        llm: the model; the service's desk has it from now on.
        embedder: a second one on the same file that makes embeddings, if it was asked for.
        settings: limits and names.
    """

    def __init__(self, llm: ServedLlama, embedder: Optional[Llama], settings: Settings) -> None:
        self.settings = settings
        self.model = settings.alias or llm.model_file.name
        self.created = int(time.time())
        self.desk = Desk(llm, settings.max_waiting)
        self.embedder = embedder
        self.answered: Counter[tuple[str, int]] = Counter()

    def stop(self) -> None:
        """End what is being answered; requests from now on get 503."""
        self.desk.stop()

    async def glance(self, look: Callable[[ServedLlama], T]) -> T:
        """What `look` sees at the next opportunity.

        Raises:
            Refusal: 503, none came: the model reads a long batch.
        """
        future: Future[T] = self.desk.glance(look)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.send_seconds)
        except asyncio.TimeoutError as error:
            raise Refusal(503, "the model is at work on a batch: try again", "busy", retry_seconds=2) from error

    async def items(self, request: Request, user: Optional[str], work: Callable[[ServedLlama], Iterable[T]]) -> _Items[T]:
        """What `work` yields when the client's turn has come.

        Raises:
            Refusal: 429, too many wait, or 503, the server stops.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def deliver(item: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        job = Job(user or (request.client.host if request.client else ""), work, deliver)
        try:
            self.desk.submit(job)
        except Exception as error:
            raise refusal_of(error) from error
        return _Items(job, arrived)


class _Items(AsyncIterator[T]):
    """Results of a job as they come. To close it, before the end, is to cancel the job."""

    def __init__(self, job: Job, arrived: asyncio.Queue[Any]) -> None:
        self._job = job
        self._arrived = arrived

    async def __anext__(self) -> T:
        item = await self._arrived.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise refusal_of(item)
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        self._job.cancelled.set()


class Counted:
    """ASGI: counts answers by path and status, and sends the headers that every answer has."""

    def __init__(self, app: ASGIApp, answered: Counter[tuple[str, int]]) -> None:
        self._app = app
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI defines it."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._answered[getattr(route, "path", "other"), message["status"]] += 1
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, counted)


def make_app(service: Service) -> FastAPI:
    """The application."""
    settings = service.settings
    app = FastAPI(title="mikv_cpp", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.include_router(_api(service), dependencies=[Depends(key_check(settings.api_key))])

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=_PAGE))
    answer_in_openais_shape(app)
    app.add_middleware(BodyLimit, most_bytes=settings.max_body, seconds=settings.body_seconds)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=trusted_hosts(settings.host, settings.allow_hosts))

    app.add_middleware(Counted, answered=service.answered)
    return app


def _api(service: Service) -> APIRouter:
    api = APIRouter()

    @api.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        return await _answer(service, request, body, lambda llm: answers.chat(llm, body, service.model))

    @api.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Any:
        return await _answer(service, request, body, lambda llm: answers.completion(llm, body, service.model))

    @api.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Any:
        embedder = service.embedder
        if embedder is None:
            raise Refusal(501, "embeddings are off: start the server with --embeddings", "embeddings_off")
        items = await service.items(request, body.user, lambda _: [_embed(embedder, body, service.model)])
        return await _whole(request, items)

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": service.model, "object": "model", "created": service.created, "owned_by": "mikv_cpp"}
        return {"object": "list", "data": [entry]}

    @api.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.model:
            raise Refusal(404, f"there is no model {name!r}: this server has {service.model!r}", "model_not_found", "model")
        return {"id": service.model, "object": "model", "created": service.created, "owned_by": "mikv_cpp"}

    @api.get("/kv")
    async def kv(
        columns: int = Query(512, ge=1, le=4096, description="columns of the map"),
        text: int = Query(1024, ge=0, le=8192, description="tokens whose text is wanted"),
        first: Optional[int] = Query(None, ge=0, description="the first of them; by default the last ones are given"),
    ) -> dict[str, Any]:
        window = Window(columns, text, first)
        shown = await service.glance(lambda llm: {**picture(llm, window), "speed": _speed(llm)})
        return {**shown, "busy": service.desk.is_busy, "waiting": service.desk.n_waiting}

    @api.get("/metrics")
    async def metrics() -> Response:
        reading = await service.glance(lambda llm: _reading(service, llm))
        return Response(exposition(reading), media_type=CONTENT_TYPE_LATEST)

    return api


# --- answers ------------------------------------------------------------------------------------------------------------------


async def _answer(
    service: Service,
    request: Request,
    body: ChatRequest | CompletionRequest,
    work: Callable[[ServedLlama], Iterable[dict[str, Any]]],
) -> Any:
    items = await service.items(request, body.user, work)
    if not body.stream:
        return await _whole(request, items)
    try:
        first = await _or_gone(request, items.__anext__())  # what is wrong with the request shows now: it gets its own status
    except BaseException:
        items.close()
        raise
    return EventSourceResponse(_events(first, items), sep="\n", send_timeout=service.settings.send_seconds)


async def _whole(request: Request, items: _Items[T]) -> T:
    """The only item; the job is cancelled if the client goes away before it is there."""
    try:
        return await _or_gone(request, items.__anext__())
    finally:
        items.close()


async def _or_gone(request: Request, coming: Awaitable[T]) -> T:
    """What is coming, unless the client goes away first."""
    answer, gone = asyncio.ensure_future(coming), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise Refusal(499, "the client has gone", "client_gone")
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(first: dict[str, Any], items: _Items[dict[str, Any]]) -> AsyncIterator[dict[str, str]]:
    """Server-sent events. When the client goes away this is cancelled, and with it the job."""
    try:
        yield {"data": json.dumps(first)}
        async for item in items:
            yield {"data": json.dumps(item)}
        yield {"data": "[DONE]"}
    except Refusal as refusal:
        yield {"data": json.dumps(refusal.body())}
    finally:
        items.close()


def _embed(embedder: Llama, body: EmbeddingRequest, model: str) -> dict[str, Any]:
    texts = [body.input] if isinstance(body.input, str) else body.input
    longest = max(len(embedder.tokenize(text.encode())) for text in texts)
    if longest > embedder.n_batch:
        raise ConfigError(f"a text has {longest} tokens, but at most {embedder.n_batch} are possible (-b): shorten it")
    rows, n_tokens = embedder.embed(texts, normalize=True, truncate=False, return_count=True)
    vectors = np.asarray(rows, dtype="<f4")
    encoded = (
        [base64.b64encode(v.tobytes()).decode() for v in vectors] if body.encoding_format == "base64" else vectors.tolist()
    )
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)],
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


# --- the cache ----------------------------------------------------------------------------------------------------------------


def _speed(llm: ServedLlama) -> dict[str, float]:
    return {"prompt_tps": round(llm.speed.prefill_tps, 2), "decode_tps": round(llm.speed.decode_tps, 2)}


def _reading(service: Service, llm: ServedLlama) -> Reading:
    return Reading(
        model=service.model,
        context=context_size(llm),
        stats=llm.kv_stats(),
        speed=llm.speed,
        n_waiting=service.desk.n_waiting,
        is_busy=service.desk.is_busy,
        requests=dict(service.answered),
    )
