"""One answer: streaming, where it ends, what is counted."""

from __future__ import annotations

from typing import Any

import pytest
from fake_llama import FakeLlama

from mikv_cpp.answer import Answer, Sampling, Speed, answer


def _answer(llm: Any, n_predict: int = -1, prompt: bytes = b"hello") -> tuple[Answer, list[str]]:
    written: list[str] = []
    return answer(llm, list(prompt), Sampling(), n_predict, written.append), written


def test_text_is_streamed_and_counted() -> None:
    out, written = _answer(FakeLlama(reply=b"yes"))
    assert written == ["y", "e", "s"]
    assert (out.text, out.finish, out.prompt_tokens, out.generated_tokens) == ("yes", "end", 5, 3)


def test_speed_counts_the_prompt_and_what_came_after_the_first_token() -> None:
    speed = _answer(FakeLlama(reply=b"yes"))[0].speed
    assert (speed.prompt_tokens, speed.decode_tokens) == (5, 3)  # y comes out of the prompt; e, s and the end are decoded
    assert speed.prefill_tps > 0
    assert speed.decode_tps > 0


def test_characters_of_several_tokens_come_whole() -> None:
    out, written = _answer(FakeLlama(reply="aé€😀".encode()))
    assert written == ["a", "é", "€", "😀"]
    assert out.text == "aé€😀"


def test_a_character_cut_off_is_replaced() -> None:
    assert _answer(FakeLlama(reply="é".encode()[:1]))[0].text == "\ufffd"


def test_length() -> None:
    out = _answer(FakeLlama(reply=b"yes"), n_predict=2)[0]
    assert (out.text, out.finish) == ("ye", "length")


def test_a_full_context_ends_the_answer() -> None:
    llm = FakeLlama(n_ctx=8, reply=b"a long answer")
    out = _answer(llm)[0]
    assert out.finish == "context"
    assert llm.n_tokens <= 8
    assert out.text == "a lo"  # the last one was sampled, but needs no cell


def test_ctrl_c_ends_the_answer_not_the_program() -> None:
    llm = FakeLlama(reply=b"yes")
    llm.fail_with = KeyboardInterrupt()
    out = _answer(llm)[0]
    assert (out.text, out.finish) == ("y", "interrupted")
    assert llm.on_prompt is None


def test_a_failure_closes_the_generator() -> None:
    llm = FakeLlama(reply=b"yes")
    llm.fail_with = RuntimeError("llama_decode returned 1")
    with pytest.raises(RuntimeError, match="returned 1"):
        _answer(llm)
    assert llm.closed_generators == 1
    assert llm.on_prompt is None


def test_speeds_add_up() -> None:
    total = Speed()
    total.add(Speed(10, 1.0, 20, 4.0))
    total.add(Speed(30, 1.0, 20, 1.0))
    assert (total.prefill_tps, total.decode_tps) == (20.0, 8.0)
    assert Speed().prefill_tps == Speed().decode_tps == 0.0
