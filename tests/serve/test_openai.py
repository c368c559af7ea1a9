"""OpenAI's official client, against the server."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from served import ENDLESS, Served, Start

HELLO = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"model": "m", "temperature": 0}
ASCII = {str(token): -100 for token in range(128, 256)}  # a token of the tiny model is a byte, and it knows nothing of UTF-8


def test_chat(server: Served) -> None:
    answer = server.client().chat.completions.create(messages=HELLO, max_tokens=8, **GREEDY)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == len(".user\nhello.\n.assistant\n")  # a dot for each control token
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_is_the_same_answer(server: Served) -> None:
    client = server.client()
    whole = client.chat.completions.create(messages=HELLO, max_tokens=24, logit_bias=ASCII, **GREEDY)
    with client.chat.completions.create(
        messages=HELLO, max_tokens=24, stream=True, stream_options={"include_usage": True}, logit_bias=ASCII, **GREEDY
    ) as stream:
        chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_text_completion(server: Served) -> None:
    client = server.client()
    whole = client.completions.create(prompt="once upon", max_tokens=6, **GREEDY)
    assert whole.usage.prompt_tokens == len("once upon")
    streamed = client.completions.create(prompt=[ord(c) for c in "x"] + [1, 2], max_tokens=6, stream=True, **GREEDY)
    assert [chunk.choices[0].finish_reason for chunk in streamed][-1] in ("stop", "length")


def test_seed_gives_the_same_answer(server: Served) -> None:
    def ask(seed: int) -> Any:
        answer = server.client().completions.create(model="m", prompt="dice:", max_tokens=24, temperature=2.0, seed=seed)
        return answer.choices[0].text

    assert ask(7) == ask(7)
    assert ask(7) != ask(8)


def test_stop_text_ends_the_answer(server: Served) -> None:
    client = server.client()
    text = client.completions.create(prompt="abc", max_tokens=40, logit_bias=ASCII, **GREEDY).choices[0].text
    stop = next(c for c in text[1:] if c.isprintable())
    cut = client.completions.create(prompt="abc", max_tokens=40, stop=stop, logit_bias=ASCII, **GREEDY).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == text[: text.index(stop)]


def test_a_conversation_is_not_read_again(server: Served) -> None:
    client = server.client()
    first = client.chat.completions.create(messages=[{"role": "user", "content": "word " * 40}], max_tokens=8, **GREEDY)
    messages = [
        {"role": "user", "content": "word " * 40},
        {"role": "assistant", "content": "something"},
        {"role": "user", "content": "go on"},
    ]
    second = client.chat.completions.create(messages=messages, max_tokens=8, **GREEDY)
    assert first.usage.prompt_tokens_details.cached_tokens < 20
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    other = client.chat.completions.create(messages=HELLO, max_tokens=1, **GREEDY)
    assert other.usage.prompt_tokens_details.cached_tokens == 0  # the template's words alone are not worth keeping
    assert server.llm.kv.stats().tokens == other.usage.prompt_tokens


def test_reuse_changes_no_answer(serve: Start) -> None:
    """A prefix that is kept must be as good as one that is read: everything at 8 bits, one batch, no demotion."""
    served = serve(kv="q8")
    messages = [*HELLO, {"role": "assistant", "content": "yes? " * 20}, {"role": "user", "content": "again"}]
    client = served.client()
    fresh = client.chat.completions.create(messages=messages, max_tokens=16, **GREEDY)
    kept = client.chat.completions.create(messages=messages, max_tokens=16, **GREEDY)
    assert kept.usage.prompt_tokens_details.cached_tokens == fresh.usage.prompt_tokens - 1
    assert kept.choices[0].message.content == fresh.choices[0].message.content


def test_models(server: Served) -> None:
    (model,) = server.client().models.list().data
    assert server.client().models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("other")


# --- embeddings ---------------------------------------------------------------------------------------------------------------


def test_embeddings(server: Served) -> None:
    client = server.client()
    answer = client.embeddings.create(model="m", input=["one text", "another"])
    plain = client.embeddings.create(model="m", input="another", encoding_format="float")
    assert answer.usage.prompt_tokens == len("one text") + len("another")
    assert sum(value**2 for value in answer.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert answer.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=2e-3)
    assert answer.data[0].embedding != pytest.approx(answer.data[1].embedding, abs=2e-3)
    with pytest.raises(openai.BadRequestError, match="128 are possible"):
        client.embeddings.create(model="m", input="long" * 40)


def test_embeddings_are_off_unless_asked_for(serve: Start) -> None:
    with pytest.raises(openai.InternalServerError, match="--embeddings"):
        serve().client().embeddings.create(model="m", input="x")


# --- tools and JSON -----------------------------------------------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "now": {"type": "boolean"}},
            "required": ["unit", "now"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_that_must_be_called(server: Served, stream: bool, choice: Any) -> None:
    tools = [WEATHER] if choice != "required" else [WEATHER, CLOCK]
    out = server.client().chat.completions.create(
        messages=HELLO, tools=tools, tool_choice=choice, max_tokens=200, stream=stream, **GREEDY
    )
    if stream:
        chunks = list(out)
        (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        finish = chunks[-1].choices[0].finish_reason
    else:
        (call,) = out.choices[0].message.tool_calls
        finish = out.choices[0].finish_reason
    assert finish == "tool_calls"
    assert call.function.name in [tool["function"]["name"] for tool in tools]
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert arguments["unit"] in ("C", "F")
        assert isinstance(arguments["now"], bool)


def test_json_of_a_schema(server: Served) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    answer = server.client().chat.completions.create(
        messages=HELLO,
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        **GREEDY,
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"ok"}


# --- several at once ----------------------------------------------------------------------------------------------------------


def test_cancel_frees_the_model(serve: Start) -> None:
    server = serve()
    server.slow_down()
    client = server.client()
    with client.chat.completions.create(messages=HELLO, max_tokens=900, stream=True, logit_bias=ENDLESS, **GREEDY) as stream:
        for _, _chunk in zip(range(3), stream):
            pass
    server.wait_idle()
    generated = server.llm.usage.generated
    assert 2 <= generated < 900  # the first piece says whose turn it is
    assert client.chat.completions.create(messages=HELLO, max_tokens=4, **GREEDY).choices


def test_eight_clients_at_once(server: Served) -> None:
    alone = [_ask(server, number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda number: _ask(server, number), range(8)))
    assert together == alone


def _ask(server: Served, number: int) -> Any:
    messages = [{"role": "user", "content": f"number {number}"}]
    answer = server.client().chat.completions.create(messages=messages, max_tokens=6, user=str(number), **GREEDY)
    return answer.usage.prompt_tokens, answer.choices[0].finish_reason


def test_clients_are_served_in_turn(serve: Start) -> None:
    """One that asks four times at once does not keep another waiting for all four."""
    served = serve()
    finished: list[str] = []

    def ask(client: openai.OpenAI, user: str) -> None:
        client.chat.completions.create(messages=HELLO, max_tokens=4, user=user, **GREEDY)
        finished.append(user)

    with ThreadPoolExecutor(8) as pool, held(served):
        for n_waiting, user in enumerate(["greedy"] * 4 + ["modest"], 1):
            pool.submit(ask, served.client(), user)
            _until_waiting(served, n_waiting)
    assert len(finished) == 5
    assert finished.index("modest") <= 2, finished


def test_a_full_queue_says_when_to_try_again(serve: Start) -> None:
    served = serve(max_waiting=1)
    client = served.client()
    with ThreadPoolExecutor(2) as pool:
        with held(served):
            waiting = pool.submit(client.chat.completions.create, messages=HELLO, max_tokens=4, **GREEDY)
            _until_waiting(served, 1)
            with pytest.raises(openai.RateLimitError) as refused:
                client.chat.completions.create(messages=HELLO, max_tokens=4, **GREEDY)
        assert waiting.result().choices
    assert int(refused.value.response.headers["retry-after"]) >= 1
    assert client.chat.completions.create(messages=HELLO, max_tokens=4, **GREEDY).choices


@contextlib.contextmanager
def held(served: Served) -> Iterator[None]:
    """Meanwhile the model answers nobody."""
    go_on = threading.Event()
    served.service.desk.glance(lambda _: go_on.wait(60))
    try:
        yield
    finally:
        go_on.set()


def _until_waiting(served: Served, n_waiting: int) -> None:
    end = time.monotonic() + 20
    while served.service.desk.n_waiting < n_waiting:
        assert time.monotonic() < end
        time.sleep(0.001)
