"""Calls of tools in what a model writes.

Templates of the Hermes family (Qwen2.5 and later, Hermes, Granite, ...) have the model write

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

and many small models leave the tags out, or write "parameters" as Llama 3 does. What is neither stays text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from typing import Any, Optional

from mikv_cpp.serve.stops import certain_length

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", flags=re.DOTALL)


def parse_tool_calls(text: str, names: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """The text around the calls, and the calls in OpenAI's form. An answer with a broken call is all text.

    names: of the tools that there are; calls of others are none.
    """
    if _OPEN in text:
        before, *blocks = text.split(_OPEN)
        parts = [block.partition(_CLOSE) for block in blocks]
        calls = [_call(inside, names) for inside, _, _ in parts]
        rest = (before + "".join(after for _, _, after in parts)).strip()
    else:
        fenced = _FENCED.fullmatch(text.strip())
        calls, rest = [_call(fenced[1] if fenced else text, names)], ""
    found = [call for call in calls if call is not None]
    return (rest, found) if len(found) == len(calls) else (text, [])


def _call(text: str, names: Collection[str]) -> Optional[dict[str, Any]]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("name") not in names:
        return None
    arguments = said.get("arguments", said.get("parameters", {}))
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {
            "name": said["name"],
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
        },
    }


class CallReader:
    """Splits an answer that comes in pieces: text is passed on at once, what may be a call is kept until the end."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._kept = ""
        self._passed_on = False

    def feed(self, piece: str) -> str:
        """What of the answer so far may be shown."""
        self._kept += piece
        show = self._certain()
        self._kept = self._kept[len(show) :]
        self._passed_on = self._passed_on or bool(show.strip())
        return show

    def close(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls."""
        return parse_tool_calls(self._kept, self._names) if self._kept.strip() else ("", [])

    def _certain(self) -> str:
        """What of the kept text cannot be part of a call."""
        start = self._kept.lstrip()
        if not self._passed_on and (not start or start[0] in "{`"):
            return ""  # a call without tags
        at = self._kept.find(_OPEN)
        if at < 0:
            at = certain_length(self._kept, [_OPEN])
        return self._kept[:at]


def call_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    """JSON schema of a call of one of these functions, {"name": ..., "parameters": schema}."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": tool.get("parameters") or {"type": "object"}},
            "required": ["name", "arguments"],
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
