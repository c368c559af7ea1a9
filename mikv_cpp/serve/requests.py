"""What a client may ask: OpenAI's requests, and llama.cpp's words for sampling beside theirs. Unknown fields are ignored."""

from __future__ import annotations

from typing import Any, Literal, Optional, Union

from pydantic import BaseModel, Field, field_validator, model_validator

from mikv_cpp.answer import Sampling

_DEFAULT = Sampling()


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool = False


class Generation(BaseModel):
    """What chat and text completions have in common."""

    model: Optional[str] = None
    stream: bool = False
    stream_options: Optional[StreamOptions] = None
    stop: Union[str, list[str], None] = None
    seed: Optional[int] = None
    user: Optional[str] = Field(None, description="whose turn it is: the queue serves users in turn")
    n: Optional[int] = None

    temperature: Optional[float] = Field(None, ge=0.0, le=100.0)
    top_p: Optional[float] = Field(None, ge=0.0, le=1.0)
    top_k: Optional[int] = Field(None, ge=0)
    min_p: Optional[float] = Field(None, ge=0.0, le=1.0)
    repeat_penalty: Optional[float] = Field(None, ge=0.0, le=100.0)
    presence_penalty: Optional[float] = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: Optional[float] = Field(None, ge=-2.0, le=2.0)
    logit_bias: Optional[dict[int, float]] = None

    @field_validator("n")
    @classmethod
    def _one(cls, n: Optional[int]) -> Optional[int]:
        if n not in (None, 1):
            raise ValueError("only one answer to a request is possible: leave n out, or ask several times")
        return n

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: Union[str, list[str], None]) -> list[str]:
        return [text for text in ([stop] if isinstance(stop, str) else stop or []) if text]

    def picking(self) -> dict[str, Any]:
        """Arguments of llama_cpp.Llama.generate that say how tokens are picked."""
        given = {
            "temp": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return {**vars(_DEFAULT), **{name: value for name, value in given.items() if value is not None}}


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: Union[str, list[int], list[str], list[list[int]]] = ""
    max_tokens: Optional[int] = Field(16, ge=1)
    echo: Optional[bool] = None
    best_of: Optional[int] = None
    suffix: Optional[str] = None
    logprobs: Optional[int] = None

    @field_validator("prompt")
    @classmethod
    def _single(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise ValueError("several prompts in one request are not possible: ask once for each")
            return prompt[0]
        return prompt

    @field_validator("echo", "suffix", "logprobs")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        if value not in (None, False, ""):
            raise ValueError("it is not possible here: leave it out")
        return value


class ContentPart(BaseModel):
    """A part of a message."""

    type: str
    text: str = ""


class Message(BaseModel):
    """A message of a conversation; fields that only a template knows are passed on to it."""

    model_config = {"extra": "allow"}

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Union[str, list[ContentPart], None] = None

    @field_validator("content")
    @classmethod
    def _text_only(cls, content: Union[str, list[ContentPart], None]) -> str:
        if isinstance(content, list):
            other = next((part.type for part in content if part.type not in ("text", "input_text")), None)
            if other:
                raise ValueError(f"parts of type {other!r} are not possible: this server takes text")
            return "".join(part.text for part in content)
        return content or ""


class Function(BaseModel):
    """A function that a model may call."""

    model_config = {"extra": "allow"}

    name: str
    parameters: Optional[dict[str, Any]] = None


class Tool(BaseModel):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class ResponseFormat(BaseModel):
    """What an answer must be: text, JSON, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Optional[dict[str, Any]] = None


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Optional[int] = Field(None, ge=1)
    max_completion_tokens: Optional[int] = Field(None, ge=1)
    tools: Optional[list[Tool]] = None
    tool_choice: Union[Literal["none", "auto", "required"], dict[str, Any], None] = None
    response_format: Optional[ResponseFormat] = None
    logprobs: Optional[bool] = None

    @field_validator("logprobs")
    @classmethod
    def _absent(cls, value: Optional[bool]) -> Optional[bool]:
        if value:
            raise ValueError("they are not kept here: leave it out")
        return value

    @model_validator(mode="after")
    def _chosen_tool_is_there(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or []]
        if isinstance(self.tool_choice, dict):
            chosen = (self.tool_choice.get("function") or {}).get("name")
            if chosen not in names:
                raise ValueError(f"tool_choice names {chosen!r}, which is not among the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError('tool_choice is "required", but there are no tools')
        return self

    def wanted_tools(self) -> list[Tool]:
        """Tools that the model may call now."""
        return [] if self.tool_choice == "none" else self.tools or []

    def required_tools(self) -> list[Tool]:
        """Tools one of which the model must call now."""
        if isinstance(self.tool_choice, dict):
            return [tool for tool in self.tools or [] if tool.function.name == self.tool_choice["function"]["name"]]
        return self.tools or [] if self.tool_choice == "required" else []


class EmbeddingRequest(BaseModel):
    """POST /v1/embeddings."""

    model: Optional[str] = None
    input: Union[str, list[str]]
    encoding_format: Literal["float", "base64"] = "float"
    user: Optional[str] = None

    @field_validator("input")
    @classmethod
    def _some(cls, texts: Union[str, list[str]]) -> list[str]:
        texts = [texts] if isinstance(texts, str) else texts
        if not texts or not all(texts):
            raise ValueError("there must be some text")
        return texts
