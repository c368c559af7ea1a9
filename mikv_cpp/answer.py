"""One answer: prompt tokens in, text out as it comes, and how long that took."""

from __future__ import annotations

import codecs
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked, by the names of llama_cpp.Llama.generate."""

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0


@dataclass
class Speed:
    """Tokens and seconds, summed over answers. The first token of an answer comes out of its prompt."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0

    def add(self, other: Speed) -> None:
        """Add another answer's."""
        self.prompt_tokens += other.prompt_tokens
        self.prompt_seconds += other.prompt_seconds
        self.decode_tokens += other.decode_tokens
        self.decode_seconds += other.decode_seconds

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tps(self) -> float:
        """Generated tokens per second."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass
class Answer:
    """What came out. `finish`: "end" of the turn, "length" asked for, "context" full, or "interrupted" by Ctrl-C."""

    prompt_tokens: int
    text: str = ""
    generated_tokens: int = 0
    finish: str = "end"
    speed: Speed = field(default_factory=Speed)


def context_size(llm: Llama) -> int:
    """Tokens that the model's context can really hold: llama.cpp rounds it up, llama_cpp.Llama does not."""
    return min(int(llm.n_ctx()), int(llm.input_ids.size))


def answer(
    llm: Llama,
    tokens: Sequence[int],
    sampling: Sampling,
    n_predict: int,
    write: Callable[[str], None],
    on_prompt: Optional[Callable[[int, int], None]] = None,
) -> Answer:
    """Generate at most n_predict tokens (negative: until the turn or the context ends), handing text to `write` as it comes.

    on_prompt is told (done, of how many) while the prompt is processed. Ctrl-C ends the answer, not the program.
    """
    out = Answer(len(tokens))
    clock = _Clock(out.speed, on_prompt)
    llm.on_prompt = clock.on_prompt
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    picking: dict[str, Any] = vars(sampling)

    def emit(text: str) -> None:
        if text:
            out.text += text
            write(text)

    try:
        with contextlib.closing(llm.generate(list(tokens), **picking)) as generated:
            for token in generated:
                clock.on_token()
                if llm.is_end(token):
                    break
                out.generated_tokens += 1
                emit(decoder.decode(llm.token_bytes(token)))
                if out.generated_tokens == n_predict:
                    out.finish = "length"
                    break
                if llm.n_tokens >= context_size(llm):
                    out.finish = "context"
                    break
    except KeyboardInterrupt:
        out.finish = "interrupted"
    finally:
        llm.on_prompt = None
    emit(decoder.decode(b"", final=True))
    return out


class _Clock:
    """Measures where the time goes."""

    def __init__(self, speed: Speed, on_prompt: Optional[Callable[[int, int], None]]) -> None:
        self._speed = speed
        self._tell = on_prompt
        self._last = time.perf_counter()
        self._started = False

    def on_prompt(self, done: int, total: int) -> None:
        self._speed.prompt_tokens = done
        if self._tell:
            self._tell(done, total)

    def on_token(self) -> None:
        now = time.perf_counter()
        if self._started:
            self._speed.decode_tokens += 1
            self._speed.decode_seconds += now - self._last
        else:
            self._started = True
            self._speed.prompt_tokens = max(self._speed.prompt_tokens, 1)
            self._speed.prompt_seconds = now - self._last
        self._last = now
