"""From a request to the model's tokens, and from these to OpenAI's answers. Runs in the desk's thread.

llama_cpp.Llama.create_completion is not used: in 0.3.36 its stream stalls, at a cost that grows with the cube of the length,
behind the first byte that is not UTF-8.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import random
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

from mikv_cpp.answer import context_size
from mikv_cpp.errors import ConfigError
from mikv_cpp.llama import bias_processor, json_grammar
from mikv_cpp.serve.desk import ServedLlama, Usage
from mikv_cpp.serve.requests import ChatRequest, CompletionRequest, Generation, Message, Tool
from mikv_cpp.serve.stops import Stops
from mikv_cpp.serve.tool_calls import CallReader, call_schema, parse_tool_calls


@dataclass
class _Text:
    """The text of an answer as it comes. `finish`, when it has ended: "stop" or "length"."""

    llm: ServedLlama
    tokens: list[int]
    request: Generation
    most: Optional[int]
    schema: Optional[dict[str, Any]] = None
    finish: str = field(default="length", init=False)

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stops = Stops(self.request.stop or [])
        with contextlib.closing(self.llm.generate(self.tokens, **self._arguments())) as generated:
            for n, token in enumerate(generated, 1):
                if self.llm.is_end(token):
                    self.finish = "stop"
                    break
                yield stops.feed(decoder.decode(self.llm.token_bytes(token)))
                if stops.reached:
                    self.finish = "stop"
                    return
                if n == self.most or self.llm.n_tokens >= context_size(self.llm):
                    break
        yield stops.feed(decoder.decode(b"", final=True))
        yield stops.close()

    def _arguments(self) -> dict[str, Any]:
        bias, seed = self.request.logit_bias, self.request.seed
        if bias and not all(0 <= token < self.llm.n_vocab() for token in bias):
            raise ConfigError(f"logit_bias names a token that the model does not know: it has 0 to {self.llm.n_vocab() - 1}")
        self.llm.set_seed(random.getrandbits(32) if seed is None else seed % 2**32)
        return {
            **self.request.picking(),
            "logits_processor": bias_processor(bias) if bias else None,
            "grammar": json_grammar(self.schema) if self.schema is not None else None,
        }


@dataclass
class _Form:
    """What all pieces of an answer have in common."""

    kind: str
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def __call__(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        choices = [{"index": 0, "logprobs": None, **choice} for choice in choices]
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model, "choices": choices, **more}


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's "usage"."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.generated,
        "total_tokens": usage.prompt + usage.generated,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _closing_usage(llm: ServedLlama, request: Generation, form: _Form) -> Iterator[dict[str, Any]]:
    """The last piece, for those who ask for it."""
    if request.stream_options and request.stream_options.include_usage:
        yield form([], usage=usage_object(llm.usage))


# --- text completions ---------------------------------------------------------------------------------------------------------


def completion(llm: ServedLlama, request: CompletionRequest, model: str) -> Iterator[dict[str, Any]]:
    """One answer, or its pieces."""
    text = _Text(llm, _prompt_tokens(llm, request.prompt), request, request.max_tokens)
    form = _Form("text_completion", model)
    if not request.stream:
        said = "".join(text)
        yield form([{"text": said, "finish_reason": text.finish}], usage=usage_object(llm.usage))
        return
    for piece in filter(None, text):
        yield form([{"text": piece, "finish_reason": None}])
    yield form([{"text": "", "finish_reason": text.finish}])
    yield from _closing_usage(llm, request, form)


def _prompt_tokens(llm: ServedLlama, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(llm.tokenize(prompt.encode(), add_bos=True, special=True)) or [llm.token_bos()]
    if not all(0 <= token < llm.n_vocab() for token in prompt):
        raise ConfigError(f"the prompt has a token that the model does not know: it has 0 to {llm.n_vocab() - 1}")
    return prompt or [llm.token_bos()]


# --- chat ---------------------------------------------------------------------------------------------------------------------


def chat(llm: ServedLlama, request: ChatRequest, model: str) -> Iterator[dict[str, Any]]:
    """One answer, or its pieces."""
    tools = request.wanted_tools()
    offered = [tool.model_dump(exclude_none=True) for tool in tools]
    tokens = llm.chat_tokens([_for_template(message) for message in request.messages], offered)
    most = request.max_completion_tokens or request.max_tokens
    text = _Text(llm, tokens, request, most, _schema(request, request.required_tools()))
    names = [tool.function.name for tool in tools]
    if request.stream:
        yield from _chat_pieces(llm, request, text, _Form("chat.completion.chunk", model), names)
        return
    said, calls = parse_tool_calls("".join(text), names)
    finish = text.finish
    message: dict[str, Any] = {"role": "assistant", "content": said}
    if calls:
        message, finish = {"role": "assistant", "content": said or None, "tool_calls": calls}, "tool_calls"
    form = _Form("chat.completion", model)
    yield form([{"message": message, "finish_reason": finish}], usage=usage_object(llm.usage))


def _chat_pieces(
    llm: ServedLlama, request: ChatRequest, text: _Text, form: _Form, names: list[str]
) -> Iterator[dict[str, Any]]:
    def delta(finish: Optional[str] = None, **said: Any) -> dict[str, Any]:
        return form([{"delta": said, "finish_reason": finish}])

    reader = CallReader(names) if names else None
    begun = False
    for piece in text:
        if not begun:  # not before the first token: what is wrong with the prompt has shown by now
            begun = True
            yield delta(role="assistant", content="")
        shown = reader.feed(piece) if reader else piece
        if shown:
            yield delta(content=shown)
    rest, calls = reader.close() if reader else ("", [])
    if rest:
        yield delta(content=rest)
    if calls:
        yield delta(tool_calls=[{**call, "index": index} for index, call in enumerate(calls)])
    yield delta(finish="tool_calls" if calls else text.finish)
    yield from _closing_usage(llm, request, form)


def _schema(request: ChatRequest, required: Iterable[Tool]) -> Optional[dict[str, Any]]:
    """The JSON schema that the answer must have, None if it is free."""
    functions = [tool.function.model_dump(exclude_none=True) for tool in required]
    if functions:
        return call_schema(functions)
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    return (wanted.json_schema or {}).get("schema") or {"type": "object"}


def _for_template(message: Message) -> dict[str, Any]:
    """A message as templates expect it: arguments of calls as objects, not as text."""
    said = message.model_dump(exclude_none=True)
    said["role"] = "system" if message.role == "developer" else message.role
    for call in said.get("tool_calls") or []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            with contextlib.suppress(ValueError):
                function["arguments"] = json.loads(function["arguments"])
    return said
