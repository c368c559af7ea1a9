"""A stand-in for Llama: one token per byte, a context that can be filled, an answer that is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import numpy as np

END = 256


class FakeLlama:
    """Answers every prompt with `reply` and the end token. A template of "u:TEXT;a:TEXT;" stands for the model's."""

    def __init__(self, n_ctx: int = 256, reply: bytes = b"yes") -> None:
        self.reply = list(reply)
        self.input_ids = np.zeros(n_ctx, dtype=np.intc)
        self.n_tokens = 0
        self.on_prompt: Optional[Callable[[int, int], None]] = None
        self.fail_with: Optional[BaseException] = None
        self.closed_generators = 0

    def n_ctx(self) -> int:
        return -(-len(self.input_ids) // 256) * 256

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:  # noqa: ARG002
        return list(text)

    def chat_tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return list("".join(f"{message['role'][0]}:{message['content']};" for message in messages).encode())

    def is_end(self, token: int) -> bool:
        return token == END

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def generate(self, tokens: list[int], **_sampling: Any) -> Iterator[int]:
        try:
            self.n_tokens = len(tokens)
            if self.on_prompt:
                self.on_prompt(len(tokens) // 2, len(tokens))
                self.on_prompt(len(tokens), len(tokens))
            for count, token in enumerate([*self.reply, END]):
                if count == 1 and self.fail_with is not None:
                    raise self.fail_with
                yield token
                self.n_tokens += 1
        finally:
            self.closed_generators += 1
