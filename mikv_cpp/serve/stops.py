"""Texts that end an answer, found while it comes in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def certain_length(text: str, endings: Iterable[str]) -> int:
    """How much of the text, in which none of the endings is, cannot be the beginning of one."""
    for start in range(len(text)):
        if any(ending.startswith(text[start:]) for ending in endings):
            return start
    return len(text)


class Stops:
    """Passes an answer on until one of these texts comes; neither it nor what follows is passed on."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._longest = max(map(len, texts), default=0)
        self._kept = ""
        self.reached = False

    def feed(self, piece: str) -> str:
        """What of the answer so far may be passed on."""
        self._kept += piece
        found = [at for at in (self._kept.find(text) for text in self._texts) if at >= 0]
        if found:
            self.reached = True
            out, self._kept = self._kept[: min(found)], ""
            return out
        before = max(len(self._kept) - self._longest, 0)  # of all that is kept only so much can begin a text
        n = before + certain_length(self._kept[before:], self._texts)
        out, self._kept = self._kept[:n], self._kept[n:]
        return out

    def close(self) -> str:
        """What was kept back, when the answer has ended."""
        out, self._kept = self._kept, ""
        return out
