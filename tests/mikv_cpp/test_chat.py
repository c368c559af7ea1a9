"""Conversations: what is kept, what is forgotten, and that nothing ends the loop but the person."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
from fake_llama import FakeLlama

from mikv_cpp import ConfigError
from mikv_cpp.answer import Answer
from mikv_cpp.chat import Chat, Conversation


def _text(tokens: list[int]) -> str:
    return bytes(tokens).decode()


def _conversation(n_ctx: int = 256, **settings: Any) -> Conversation:
    llm: Any = FakeLlama(n_ctx=n_ctx)
    return Conversation(llm, **settings)


def test_history_is_told_in_the_models_template() -> None:
    conversation = _conversation(system="be brief")
    assert _text(conversation.ask("one")) == "s:be brief;u:one;"
    conversation.answered("1")
    assert _text(conversation.ask("two")) == "s:be brief;u:one;a:1;u:two;"


def test_raw_text_is_continued() -> None:
    conversation = _conversation(raw=True)
    conversation.ask("Once ")
    conversation.answered("upon ")
    assert _text(conversation.ask("a time")) == "Once upon a time"


def test_the_oldest_turns_are_forgotten_first_and_never_the_system_prompt() -> None:
    conversation = _conversation(n_ctx=64, system="S", n_predict=8)
    for word in ("aaaaaaaaaa", "bbbbbbbbbb"):
        conversation.ask(word)
        conversation.answered("0123456789")
    assert _text(conversation.ask("cccccccccc")) == "s:S;u:bbbbbbbbbb;a:0123456789;u:cccccccccc;"
    assert conversation.n_forgotten == 2


def test_a_message_beyond_the_context_is_refused_and_the_conversation_kept() -> None:
    conversation = _conversation(n_ctx=64)
    conversation.ask("hello")
    conversation.answered("hi")
    with pytest.raises(ConfigError, match=r"prompt of 103 tokens, but the context holds 64: shorten it, or start with -c 359"):
        conversation.ask("x" * 100)
    assert _text(conversation.ask("still there?")) == "u:hello;a:hi;u:still there?;"


def test_clear_and_take_back() -> None:
    conversation = _conversation(system="S")
    conversation.ask("one")
    conversation.take_back()
    assert _text(conversation.ask("two")) == "s:S;u:two;"
    conversation.clear()
    assert _text(conversation.ask("three")) == "s:S;u:three;"


class _Person:
    """Types lines; an exception in the list is raised instead. At the end: Ctrl-D."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: list[Any]) -> None:
        self._lines: Iterator[Any] = iter(lines)
        monkeypatch.setattr(builtins, "input", self._input)

    def _input(self, _prompt: str = "") -> str:
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return str(line)


def _talk(monkeypatch: pytest.MonkeyPatch, lines: list[Any], outcomes: list[Any]) -> list[str]:
    """Run a chat in which the replies are `outcomes`; the prompts that were answered."""
    _Person(monkeypatch, lines)
    prompts: list[str] = []
    left = iter(outcomes)

    def reply(tokens: list[int]) -> Answer:
        prompts.append(_text(tokens))
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return Answer(len(tokens), text=str(outcome))

    Chat(_conversation(n_ctx=64), reply, lambda: "REPORT").run()
    return prompts


def test_turns_until_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _talk(monkeypatch, ["one", "", "two", "/exit", "three"], ["1", "2"]) == ["u:one;", "u:one;a:1;u:two;"]


def test_ctrl_c_at_the_prompt_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _talk(monkeypatch, [KeyboardInterrupt(), "one"], ["1"]) == ["u:one;"]


def test_a_failed_answer_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = _talk(monkeypatch, ["one", "two", "three"], ["1", RuntimeError("llama_decode returned 1"), "3"])
    assert prompts == ["u:one;", "u:one;a:1;u:two;", "u:one;a:1;u:three;"]
    assert "llama_decode returned 1: the message is taken back" in capsys.readouterr().err


def test_a_message_too_long_does_not_end_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _talk(monkeypatch, ["x" * 100, "one"], ["1"]) == ["u:one;"]
    assert "error: the message makes a prompt of 103 tokens" in capsys.readouterr().err


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _talk(monkeypatch, ["one", "/clear", "/stats", "/help", "/what", "/usr/bin is a folder"], ["1", "2"]) == [
        "u:one;",
        "u:/usr/bin is a folder;",
    ]
    said = capsys.readouterr().err
    assert "REPORT" in said
    assert "unknown command '/what'" in said


def test_a_line_ending_in_a_backslash_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _talk(monkeypatch, ["one\\", "two"], ["1"]) == ["u:one\ntwo;"]
