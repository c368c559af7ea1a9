"""What a Llama can do with state files."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from typing import Any, Optional, Union

from numpy.typing import NDArray

from mikv_cpp.carrier import Carrier
from mikv_cpp.config import KVConfig
from mikv_cpp.errors import StateError
from mikv_cpp.model_file import ModelFile
from mikv_cpp.plugin import LLAMA_CPP_VERSION
from mikv_cpp.state import State, model_identity, read_state, write_state

_identity = functools.lru_cache(maxsize=16)(model_identity)


class Stateful:
    """The part of Llama that asks llama.cpp nothing."""

    kv_config: Optional[KVConfig]
    model_file: ModelFile
    input_ids: NDArray[Any]
    n_tokens: int
    _logical_type: str  # what llama.cpp is told to store; "" with kv="off"

    @abstractmethod
    def take_state(self, notes: Optional[dict[str, Any]] = None) -> State:
        """What save_kv writes."""

    @abstractmethod
    def _carrier(self) -> Carrier:
        """Of this context."""

    def save_kv(self, path: Union[str, os.PathLike[str]], notes: Optional[dict[str, Any]] = None) -> int:
        """Save the conversation's tokens and its cache, packed as it is, in place of a file that is there; its size in bytes.

        notes: ready for JSON; load_kv returns them.

        Raises:
            StateError: it cannot be written there, and what was there is as it was.
        """
        return write_state(path, self.take_state(notes))

    def load_kv(self, path: Union[str, os.PathLike[str]]) -> dict[str, Any]:
        """Go back to what save_kv saved; the notes that came with it. The next token's logits are those that it would have had.

        The model must be the same, the context large enough. Under another configuration rows are stored again in its bits.

        Raises:
            StateError: damaged, of another model, or too long; the conversation at hand is then as it was.
        """
        state = read_state(path)
        self.put_state(state)
        return state.notes

    def put_state(self, state: State) -> None:
        """What load_kv does with a file's content.

        Raises:
            StateError: as load_kv.
        """
        own, n_tokens = self.state_identity(), int(state.tokens.size)
        for name, what in (
            ("model", "of another model"),
            ("llama_cpp", "of another llama-cpp-python"),
            ("type", "under another logical type"),
        ):
            if state.about.get(name) != own[name]:
                raise StateError(
                    f"the state was saved {what} ({state.about.get(name)}, here {own[name]}): load it where it was saved"
                )
        if n_tokens > self.input_ids.size:
            raise StateError(
                f"the state has {n_tokens} tokens, and the context holds {self.input_ids.size}: "
                f"use a context of {n_tokens} or more"
            )
        self._carrier().give(state.host, state.caches)
        self.input_ids[:n_tokens] = state.tokens
        self.n_tokens = n_tokens

    def state_identity(self) -> dict[str, Any]:
        """What must be equal for a state to be this model's ("config" may differ), ready for JSON."""
        config = None if self.kv_config is None else {name: str(value) for name, value in vars(self.kv_config).items()}
        return {
            "model": _identity(self.model_file.path),
            "llama_cpp": LLAMA_CPP_VERSION,
            "type": self._logical_type,
            "config": config,
        }
