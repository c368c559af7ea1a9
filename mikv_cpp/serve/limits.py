"""What a client may not do: send too much, take forever to send it, come without the key, come as another host."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Optional

from fastapi import Request
from fastapi.security import HTTPBearer

from mikv_cpp.serve.errors import Refusal, refusal_response

_App = Callable[[Any, Any, Any], Awaitable[None]]


class BodyLimit:
    """ASGI: reads a request's body before the application does, and refuses it when it is too large (413) or slow (408)."""

    def __init__(self, app: _App, most_bytes: int, seconds: float) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._seconds = seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI defines it."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._seconds)
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, send)
            return
        except asyncio.TimeoutError:
            slow = Refusal(408, f"the request's body did not come within {self._seconds:g} seconds", "timeout")
            await refusal_response(slow)(scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        given = False

        async def replay() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, scope: Any, receive: Any) -> Optional[bytes]:
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        self._check(int(announced) if announced.isdigit() else 0)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            self._check(len(body))
            if not message.get("more_body"):
                return bytes(body)

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self._most_bytes:
            raise Refusal(413, f"the request's body is larger than {self._most_bytes} bytes (--max-body)", "too_large")


def key_check(api_key: Optional[str]) -> Callable[[Request], Awaitable[None]]:
    """What a route depends on to be for those with the key only; without a key, for everybody."""
    bearer = HTTPBearer(auto_error=False)

    async def check(request: Request) -> None:
        if not api_key:
            return
        given = await bearer(request)
        if given is None or not secrets.compare_digest(given.credentials.encode(), api_key.encode()):
            raise Refusal(401, "this server wants its API key: send it as a bearer token", "invalid_api_key")

    return check


def trusted_hosts(host: str, more: list[str]) -> list[str]:
    """Names under which the server may be asked; any other is a page elsewhere that has made its name mean this machine."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - what the user asked for: every address of this machine
        return ["*"]
    return ["localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host, *more]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
