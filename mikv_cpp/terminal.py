"""What people see while they wait: progress bars and quiet colours, on a terminal only."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any, Optional

from tqdm import tqdm

_SHOW_AFTER_SECONDS = 0.4  # what is done sooner needs no bar


class Bar:
    """A progress bar on stderr, gone when it is closed; nothing if stderr is not a terminal.

    It writes to its own copy of stderr: llama_cpp closes the original while it loads a model.
    """

    def __init__(self, label: str, unit: str, scale: bool = False, enabled: bool = True) -> None:
        self._label, self._unit, self._scale = label, unit, scale
        self._enabled = enabled and sys.stderr.isatty()
        self._bar: Optional[Any] = None

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` units are done."""
        if not self._enabled:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                desc=self._label,
                unit=self._unit,
                unit_scale=self._scale,
                unit_divisor=1024,
                leave=False,
                delay=_SHOW_AFTER_SECONDS,
                dynamic_ncols=True,
                file=os.fdopen(os.dup(sys.stderr.fileno()), "w"),
            )
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def share(self, share: float) -> None:
        """A share of 0 to 1 is done."""
        self(round(100 * share), 100)

    def close(self) -> None:
        """Take the bar away; the next call starts another."""
        if self._bar is not None:
            self._bar.close()
            self._bar.fp.close()
            self._bar = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def quiet(text: str) -> str:
    """Text in a colour that steps back, where stderr is a terminal that may have colours."""
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return f"\x1b[2m{text}\x1b[0m"
    return text
