"""What `python -m mikv_cpp.run` keeps on disk: the conversation of --session, and what --prompt-cache has of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from mikv_cpp.chat import Conversation
from mikv_cpp.errors import StateError
from mikv_cpp.prompt_cache import PromptCache

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama


class Session:
    """Loads what there is when it is made.

    Raises:
        StateError: --session names a file that is damaged, of another model or no session; it is left as it is.
    """

    def __init__(self, file: Optional[str], cache: Optional[PromptCache], llm: Llama, conversation: Conversation) -> None:
        self._llm = llm
        self._conversation = conversation
        self._file = Path(file) if file else None
        self._cache = cache
        if self._file is not None and self._file.exists():
            notes = llm.load_kv(self._file)
            turns = notes.get("turns")
            if not isinstance(turns, list):
                raise StateError(f"{str(self._file)!r} is no session: name a file that --session saved, or a new one")
            conversation.resume(turns)

    def before(self, tokens: Sequence[int]) -> None:
        """Fetch what the prompt begins with, if the model does not hold it."""
        if self._cache is not None:
            self._cache.fetch(self._llm, tokens, self._llm.reusable(tokens))

    def save(self) -> None:
        """Save both.

        Raises:
            StateError: the session's file cannot be written.
        """
        if self._cache is not None:
            self._cache.keep(self._llm)
        if self._file is not None:
            self._llm.save_kv(self._file, {"turns": self._conversation.turns})
