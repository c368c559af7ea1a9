"""What a client does wrong gets the right answer, and the server goes on serving."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import openai
import pytest
from served import ENDLESS, Served, Start

HELLO = [{"role": "user", "content": "hello"}]


def test_an_endless_answer_has_no_way_to_end(server: Served) -> None:
    """Tests that wait for an answer's third token would wait for ever otherwise, now and then."""
    assert {str(token) for token in range(server.llm.n_vocab()) if server.llm.is_end(token)} == set(ENDLESS)


def _serves(served: Served) -> None:
    served.wait_idle()
    answer = served.http().post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2})
    assert answer.status_code == 200, answer.text


def _refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in words), error


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{bad", ["not JSON"]),
        ("", ["Field required"]),
        ("[]", ["dictionary"]),
        ({}, ["messages"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "king", "content": "x"}]}, ["role"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, ["image_url"]),
        ({"messages": HELLO, "n": 2}, ["n:", "only one answer"]),
        ({"messages": HELLO, "temperature": -1}, ["temperature"]),
        ({"messages": HELLO, "max_tokens": 0}, ["max_tokens"]),
        ({"messages": HELLO, "logprobs": True}, ["logprobs"]),
        ({"messages": HELLO, "logit_bias": {"999": 1}}, ["999", "258"][1:]),
        ({"messages": HELLO, "tool_choice": "required"}, ["no tools"]),
        (
            {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "poem"}}}},
            ["schema"],
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(server: Served, body: Any, words: list[str], stream: bool) -> None:
    if isinstance(body, dict):
        body = json.dumps({**body, "stream": stream})
    answer = server.http().post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    _refused(answer, 400, *words)
    _serves(server)


@pytest.mark.parametrize(
    "body", [{"prompt": ["a", "b"]}, {"prompt": "a", "echo": True}, {"prompt": "a", "suffix": "b"}, {"prompt": [999]}]
)
def test_bad_completions(server: Served, body: Any) -> None:
    _refused(server.http().post("/v1/completions", json=body), 400)


def test_unknown_addresses_and_methods(server: Served) -> None:
    _refused(server.http().get("/v2/other"), 404)
    _refused(server.http().get("/v1/chat/completions"), 405)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit(server: Served, stream: bool) -> None:
    messages = [{"role": "user", "content": "x" * 2000}]
    with pytest.raises(openai.BadRequestError, match="at most 1023") as refused:
        server.client().chat.completions.create(model="m", messages=messages, stream=stream)
    assert refused.value.code == "context_length_exceeded"
    _serves(server)


def test_a_context_that_fills_up(server: Served) -> None:
    """The answer ends where the context does, and says so."""
    prompt = "x" * 1000
    body = {"prompt": prompt, "max_tokens": 500, "logit_bias": ENDLESS}
    answer = server.http().post("/v1/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1024 - len(prompt) + 1  # the last one is not read again
    _serves(server)


def test_a_prompt_above_the_limit(serve: Start) -> None:
    served = serve()
    served.llm.max_prompt = 50
    _refused(served.http().post("/v1/completions", json={"prompt": "x" * 51}), 400, "51", "50")
    assert served.http().post("/v1/completions", json={"prompt": "x" * 50}).status_code == 200


def test_a_body_above_the_limit(serve: Start) -> None:
    served = serve(max_body=2000)
    _refused(served.http().post("/v1/completions", json={"prompt": "x" * 2000}), 413, "2000")

    def pieces() -> Any:  # no length is announced
        for _ in range(100):
            yield b"x" * 100

    _refused(served.http().post("/v1/completions", content=pieces()), 413)
    _serves(served)


def test_a_body_that_does_not_come(serve: Start) -> None:
    served = serve(body_seconds=0.3)
    with socket.create_connection(_address(served)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert client.recv(100).startswith(b"HTTP/1.1 408")
    _serves(served)


def test_the_key(serve: Start) -> None:
    served = serve(api_key="open sesame")
    for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic open sesame"}):
        for path in ("/v1/models", "/kv", "/metrics"):
            _refused(served.http(headers=wrong).get(path), 401, "key")
    assert served.http().get("/health").status_code == 200
    assert served.client(api_key="open sesame").models.list().data
    with pytest.raises(openai.AuthenticationError):
        served.client(api_key="guess").models.list()


def test_other_names_of_this_machine(serve: Start) -> None:
    served = serve(allow_hosts=["box.local"])
    assert served.http(headers={"Host": "evil.example"}).get("/v1/models").status_code == 400
    for name in ("localhost", "127.0.0.1:80", "box.local"):
        assert served.http(headers={"Host": name}).get("/v1/models").status_code == 200


def _address(served: Served) -> tuple[str, int]:
    return "127.0.0.1", int(served.url.rpartition(":")[2])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_dies(serve: Start, stream: bool, reset: bool) -> None:
    """Its answer is not generated to the end."""
    served = serve()
    served.slow_down()
    body = json.dumps({"prompt": "x", "max_tokens": 1000, "stream": stream, "logit_bias": ENDLESS}).encode()
    with socket.create_connection(_address(served)) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        end = time.monotonic() + 30
        while served.llm.usage.generated < 3:
            assert time.monotonic() < end
            time.sleep(0.001)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    served.wait_idle()
    assert served.llm.usage.generated < 1000
    _serves(served)


def test_an_error_of_the_model_is_one_requests(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    with monkeypatch.context() as patch:
        patch.setattr(served.llm, "on_eval", lambda: 1 / 0)
        _refused(served.http().post("/v1/completions", json={"prompt": "x"}), 500, "ZeroDivisionError")
    _serves(served)


def test_a_server_that_stops(serve: Start) -> None:
    """Who is being answered hears of it, in the stream; who comes later gets 503."""
    served = serve()
    served.slow_down()
    client = served.client()
    with client.completions.create(model="m", prompt="x", max_tokens=1000, stream=True, logit_bias=ENDLESS) as stream:
        next(iter(stream))
        served.service.stop()
        with pytest.raises(openai.APIError, match="stops"):
            list(stream)
    answer = served.http().post("/v1/completions", json={"prompt": "x"})
    _refused(answer, 503, "stops")
    assert "retry-after" in answer.headers
