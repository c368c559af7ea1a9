"""A conversation: its history, what of it fits the context, and the loop that people type into."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Optional

from mikv_cpp.answer import Answer, context_size
from mikv_cpp.errors import ConfigError, MikvError, StateError
from mikv_cpp.terminal import quiet

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama

_HELP = """  /clear  forget the conversation      /stats  what the cache holds now
  /exit   leave (or Ctrl-D)            Ctrl-C  stop an answer
  a line that ends in \\ goes on in the next one"""


class Conversation:
    """Messages, kept within the model's context: when it is full, the oldest turns are forgotten, never the system prompt."""

    def __init__(self, llm: Llama, system: Optional[str] = None, raw: bool = False, n_predict: int = -1) -> None:
        self._llm = llm
        self._raw = raw
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        size = context_size(llm)
        self._reserve = min(n_predict, size // 2) if n_predict > 0 else size // 4  # room for the answer
        self.n_forgotten = 0

    def ask(self, text: str) -> list[int]:
        """Add a message of the user's; tokens of all that fits, up to where the answer begins.

        Raises:
            ConfigError: the message alone does not fit the context; the conversation is then as it was.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        tokens = self._tokens(turns)
        n_forgotten = 0
        while len(tokens) + self._reserve > context_size(self._llm) and len(turns) > 1:
            dropped = 2 if turns[1]["role"] == "assistant" else 1
            turns, n_forgotten = turns[dropped:], n_forgotten + dropped
            tokens = self._tokens(turns)
        if len(tokens) >= context_size(self._llm):
            raise ConfigError(
                f"the message makes a prompt of {len(tokens)} tokens, but the context holds {context_size(self._llm)}: "
                f"shorten it, or start with -c {len(tokens) + max(self._reserve, 256)}"
            )
        self._turns, self.n_forgotten = turns, n_forgotten
        return tokens

    def answered(self, text: str) -> None:
        """Add the model's answer."""
        self._turns.append({"role": "assistant", "content": text})

    @property
    def turns(self) -> list[dict[str, str]]:
        """Messages since the beginning, or since what was forgotten; not the system prompt."""
        return list(self._turns)

    def resume(self, turns: Sequence[Any]) -> None:
        """Go on after these messages.

        Raises:
            StateError: they are no messages.
        """
        for turn in turns:
            if (
                not isinstance(turn, dict)
                or set(turn) != {"role", "content"}
                or not all(isinstance(x, str) for x in turn.values())
            ):
                raise StateError("the session has something else than messages: name a file that --session saved")
        self._turns = [dict(turn) for turn in turns]

    def take_back(self) -> None:
        """Remove the last message, which got no answer."""
        self._turns.pop()

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self._turns.clear()

    def _tokens(self, turns: list[dict[str, str]]) -> list[int]:
        if self._raw:
            text = "".join(turn["content"] for turn in [*self._system, *turns])
            return list(self._llm.tokenize(text.encode(), add_bos=True, special=False))
        return self._llm.chat_tokens([*self._system, *turns])


class Chat:
    """The loop at the terminal. Nothing that goes wrong with one message ends it.

    Args:
        conversation: the history to go on with.
        reply: generates and prints the answer to a prompt of tokens.
        report: one line about the cache, for /stats.
    """

    def __init__(self, conversation: Conversation, reply: Callable[[list[int]], Answer], report: Callable[[], str]) -> None:
        self._conversation = conversation
        self._reply = reply
        self._report = report

    def run(self) -> None:
        """Talk until /exit or Ctrl-D."""
        with contextlib.suppress(ImportError):  # line editing and history, where Python has them
            import readline  # noqa: F401, PLC0415 - its import is its effect
        _say("Talk to the model; /help shows the commands, /exit or Ctrl-D leaves.")
        while True:
            try:
                line = _read_message()
            except EOFError:
                print(flush=True)
                return
            except KeyboardInterrupt:
                _say("\n/exit or Ctrl-D leaves")
                continue
            if line == "/exit":
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        if line == "/help":
            _say(_HELP)
        elif line == "/stats":
            _say(self._report())
        elif line == "/clear":
            self._conversation.clear()
            _say("(forgotten)")
        elif line.startswith("/") and " " not in line:
            _say(f"unknown command {line!r}\n{_HELP}")
        else:
            self._turn(line)

    def _turn(self, line: str) -> None:
        try:
            tokens = self._conversation.ask(line)
        except MikvError as error:
            _say(f"error: {error}")
            return
        if self._conversation.n_forgotten:
            _say(f"(the context is full: the oldest {self._conversation.n_forgotten} messages are forgotten)")
        try:
            out = self._reply(tokens)
        except (MikvError, RuntimeError) as error:
            self._conversation.take_back()
            _say(f"\nerror: {error}: the message is taken back, the conversation goes on")
            return
        self._conversation.answered(out.text)
        print(flush=True)
        ends = {"interrupted": "(stopped)", "context": "(the context is full; the next message makes room)"}
        if out.finish in ends:
            _say(ends[out.finish])


def _read_message() -> str:
    if not sys.stdout.isatty():  # the answers go to a file: only they
        sys.stderr.write("> ")
        sys.stderr.flush()
    prompt = "> " if sys.stdout.isatty() else ""
    line = input(prompt)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("")
    return line.strip()


def _say(text: str) -> None:
    print(quiet(text), file=sys.stderr, flush=True)
