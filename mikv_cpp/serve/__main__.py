"""`python -m mikv_cpp.serve [model.gguf]`: serve a model to OpenAI's clients, and its cache to a browser."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

from mikv_cpp import arguments
from mikv_cpp.errors import ConfigError, MikvError
from mikv_cpp.loading import find_model, load, say

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama
    from mikv_cpp.model_file import ModelFile
    from mikv_cpp.serve.app import Service

_NEEDS = ("fastapi", "uvicorn", "sse_starlette", "prometheus_client")
_SHUTDOWN_SECONDS = 5
_LAST_WORDS_SECONDS = 0.2  # for the event loop to send what the desk has delivered


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m mikv_cpp.serve`."""
    parser = arguments.Parser(
        prog="python -m mikv_cpp.serve",
        description="Serve a GGUF model with a mixed-precision KV cache: OpenAI's API under /v1, a page with a chat and "
        "the cache as it fills at /, the same as JSON at /kv, and /metrics for Prometheus.",
    )
    arguments.add_model(parser)
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default %(default)s, this machine)"
    )
    group.add_argument("--port", type=int, default=8080, metavar="N", help="default %(default)s; 0: any free one")
    group.add_argument("--api-key", metavar="KEY", help="clients must send it; default: MIKV_API_KEY, or none")
    group.add_argument("--alias", default="", metavar="NAME", help="what the model is called; default: the name in its file")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which clients reach this server, such as a proxy's; may be given several times",
    )
    group.add_argument(
        "--embeddings",
        nargs="?",
        const="mean",
        choices=("mean", "cls", "last"),
        help="serve /v1/embeddings too, from a second context with llama.cpp's own cache; which pooling (default mean)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body", type=int, default=8 * 2**20, metavar="BYTES", help="of a request (default %(default)s)")
    limits.add_argument("--max-prompt", type=int, default=0, metavar="N", help="tokens of a prompt; 0: what fits the context")
    limits.add_argument(
        "--max-waiting", type=int, default=32, metavar="N", help="requests that may wait for the model (default %(default)s)"
    )
    arguments.add_cache(parser)
    arguments.add_states(parser)
    arguments.add_machine(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="llama.cpp's log, every request, and tracebacks")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; the exit status: 0 after Ctrl-C, 1 if it failed, 2 for bad input."""
    verbose = "-v" in (argv or sys.argv) or "--verbose" in (argv or sys.argv)
    try:
        return _serve(build_parser().parse_args(argv))
    except KeyboardInterrupt:
        return 0
    except MikvError as error:
        return _fail(str(error), 2 if isinstance(error, ValueError) else 1)
    except Exception as error:  # the last line of defence: a sentence for people, the rest for --verbose
        if verbose:
            raise
        return _fail(f"{type(error).__name__}: {error} (--verbose shows more)", 1)


def _serve(options: argparse.Namespace) -> int:
    arguments.check_numbers(options)
    _check_limits(options)
    config = arguments.kv_setting(options)
    prompt_cache = arguments.prompt_cache(options)
    _check_extra()
    with _listen(options.host, options.port) as listener:
        model = find_model(options)
        from mikv_cpp.serve.desk import ServedLlama  # noqa: PLC0415 - needs llama.cpp

        llm = load(options, model, config, ServedLlama)
        assert isinstance(llm, ServedLlama)
        llm.max_prompt = options.max_prompt
        llm.prompt_cache = prompt_cache
        service = _service(options, llm, _embedder(options, model) if options.embeddings else None)
        try:
            _run(service, listener, options)
        finally:
            service.stop()
            service.desk.join(_SHUTDOWN_SECONDS)
            if llm.prompt_cache is not None and not service.desk.is_busy:
                llm.prompt_cache.keep(llm)
    return 0


def _check_limits(options: argparse.Namespace) -> None:
    for name, least, most in (
        ("port", 0, 65535),
        ("max_body", 1024, 2**40),
        ("max_prompt", 0, 2**31 - 1),
        ("max_waiting", 1, 10**6),
    ):
        value = getattr(options, name)
        if not least <= value <= most:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is not possible: use {least} to {most}")


def _check_extra() -> None:
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the server needs {', '.join(missing)}: pip install {' '.join(missing)}")


def _listen(host: str, port: int) -> socket.socket:
    """The socket, before the model is loaded: a port that is taken should not cost a minute."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen at {host}:{port} ({error}): give another --host or --port") from error


def _embedder(options: argparse.Namespace, model: ModelFile) -> Llama:
    from mikv_cpp.llama import POOLINGS, Llama  # noqa: PLC0415 - needs llama.cpp

    threads = arguments.n_threads(options)
    return Llama(
        model.path,
        kv="off",
        embedding=True,
        pooling_type=POOLINGS[options.embeddings],
        n_ctx=options.batch_size,
        n_batch=options.batch_size,
        n_ubatch=options.batch_size,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=options.verbose,
    )


def _service(options: argparse.Namespace, llm: Any, embedder: Optional[Llama]) -> Service:
    from mikv_cpp.serve.app import Service, Settings  # noqa: PLC0415 - the extra is there now

    settings = Settings(
        host=options.host,
        api_key=options.api_key or os.environ.get("MIKV_API_KEY") or None,
        alias=options.alias,
        allow_hosts=options.allow_host,
        max_body=options.max_body,
        max_waiting=options.max_waiting,
    )
    return Service(llm, embedder, settings)


def _run(service: Service, listener: socket.socket, options: argparse.Namespace) -> None:
    import uvicorn  # noqa: PLC0415 - the same

    from mikv_cpp.serve.app import make_app  # noqa: PLC0415 - the same
    from mikv_cpp.serve.limits import is_loopback  # noqa: PLC0415 - the same

    ending: list[threading.Thread] = []

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Answers that are being made end now, and say so; then the connections are closed."""
            service.stop()
            if not ending:
                ending.append(threading.Thread(target=self._end, args=(sig, frame), daemon=True))
                ending[0].start()

        def _end(self, sig: int, frame: Any) -> None:
            service.desk.join(_SHUTDOWN_SECONDS)
            time.sleep(_LAST_WORDS_SECONDS)
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        make_app(service),
        log_level="info" if options.verbose else "warning",
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        server_header=False,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if not is_loopback(host) and not service.settings.api_key:
        say(f"whoever reaches {shown}:{port} may use this server: --api-key keeps others out")
    say(f"{service.model}: page http://{shown}:{port}/  API http://{shown}:{port}/v1  (Ctrl-C ends)")
    server = Server(config)
    signal.signal(signal.SIGINT, server.handle_exit)
    server.run(sockets=[listener])


def _fail(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
