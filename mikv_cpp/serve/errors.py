"""What goes wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any, Optional

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mikv_cpp.errors import MikvError
from mikv_cpp.serve.desk import Busy, Cancelled, PromptTooLong

_LOG = logging.getLogger("mikv_cpp.serve")
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818 - an answer
    """An answer other than 200."""

    def __init__(
        self, status: int, message: str, code: str, param: Optional[str] = None, retry_seconds: Optional[int] = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_seconds = retry_seconds

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return {**headers, "Retry-After": str(self.retry_seconds)} if self.retry_seconds else headers

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BaseException) -> Refusal:
    """What to answer when a request failed so."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, PromptTooLong):
        return Refusal(400, f"{error}: shorten it, or start the server with a larger -c", "context_length_exceeded", "messages")
    if isinstance(error, Busy):
        return Refusal(429, str(error), "queue_full", retry_seconds=error.retry_seconds)
    if isinstance(error, Cancelled):
        return Refusal(503, str(error), "stopping", retry_seconds=5)
    if isinstance(error, (MikvError, ValueError)):
        return Refusal(400, str(error), "invalid_value")
    _LOG.error("a request failed", exc_info=error)
    return Refusal(500, f"{type(error).__name__}: {error}", "internal_error")


def refusal_response(refusal: Refusal) -> JSONResponse:
    """It as an HTTP response."""
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=refusal.headers)


def answer_in_openais_shape(app: FastAPI) -> None:
    """Have every failure of the application answered so."""

    async def failed(_request: Request, error: Exception) -> JSONResponse:
        return refusal_response(refusal_of(error))

    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refusal_response(Refusal(400, f"the body is not JSON: {first['ctx']['error']}", "invalid_json"))
        place = ".".join(str(part) for part in first["loc"][1:])
        message = f"{place or 'the body'}: {first['msg'].removeprefix('Value error, ')}"
        return refusal_response(Refusal(400, message, "invalid_value", place or None))

    async def unknown(_request: Request, error: HTTPException) -> JSONResponse:
        return refusal_response(Refusal(error.status_code, str(error.detail), "http_error"))

    for kind in (Refusal, MikvError, Busy, Cancelled, PromptTooLong, Exception):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, unknown)  # type: ignore[arg-type]
