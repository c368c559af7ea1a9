"""Servers for the tests here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from served import Served, Start, serving

from mikv_cpp.serve.app import Settings


@pytest.fixture
def serve(tiny_model: Callable[..., Path]) -> Iterator[Start]:
    """serve(max_waiting=2, ...): a server with a tiny model; fields of Settings, `pooling`, and what Llama takes."""
    with contextlib.ExitStack() as stack:

        def start(model: Optional[Path] = None, **given: Any) -> Served:
            names = set(Settings.__dataclass_fields__)
            settings = Settings(**{name: value for name, value in given.items() if name in names})
            load = {name: value for name, value in given.items() if name not in names}
            return stack.enter_context(serving(model or tiny_model(chat_template=True), settings, **load))

        yield start


@pytest.fixture(scope="module")
def server(tiny_model: Callable[..., Path]) -> Iterator[Served]:
    """One server for all tests that change nothing about it."""
    with serving(tiny_model(chat_template=True), Settings(), pooling="mean") as served:
        yield served
