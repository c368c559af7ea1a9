"""Calls of tools, and texts that end an answer, in whole answers and in pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp.serve.stops import Stops
from mikv_cpp.serve.tool_calls import CallReader, parse_tool_calls

CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'


@pytest.mark.parametrize(
    ("text", "rest", "n_calls"),
    [
        ("just text", "just text", 0),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
        (f"<tool_call>{CALL}", "", 1),
        (f"Let me see. <tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "Let me see.", 2),
        (CALL, "", 1),
        (f"```json\n{CALL}\n```", "", 1),
        ('{"name": "weather", "parameters": {}}', "", 1),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', 0),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", 0),
        ('{"city": "Paris"}', '{"city": "Paris"}', 0),
        ("[" * 5000, "[" * 5000, 0),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls(text: str, rest: str, n_calls: int, size: int) -> None:
    whole = parse_tool_calls(text, ["weather"])
    reader = CallReader(["weather"])
    shown = "".join(reader.feed(text[start : start + size]) for start in range(0, len(text), size))
    more, calls = reader.close()
    assert (whole[0], len(whole[1])) == (rest, n_calls)
    assert ((shown + more).strip(), len(calls)) == (rest, n_calls)
    for call in calls:
        assert call["function"]["name"] == "weather"
        assert isinstance(json.loads(call["function"]["arguments"]), dict)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_stops(text: str, endings: list[str], size: int) -> None:
    stops = Stops(endings)
    shown = ""
    for start in range(0, len(text), size):
        shown += stops.feed(text[start : start + size])
        assert not any(ending in shown for ending in endings)
        if stops.reached:
            break
    shown += "" if stops.reached else stops.close()
    present = [ending for ending in endings if ending in text]
    assert stops.reached == bool(present)
    assert text.startswith(shown)
    if not present:
        assert shown == text
    elif size == 1:
        assert any(text[len(shown) :].startswith(ending) for ending in present)
