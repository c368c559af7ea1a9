"""`Llama`: a llama_cpp.Llama whose KV cache is kept in mixed precision."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Optional, Union

from mikv_cpp.plugin import ErrorLog, check_version, device_list, mikv_device, native_library, plain_devices

# plugin comes first: it says what to do where llama_cpp cannot be loaded
# isort: split
import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from llama_cpp.llama_grammar import LlamaGrammar
from numpy.typing import NDArray

from mikv_cpp.cache import KVCache, KVStats, plain_stats
from mikv_cpp.carrier import Carrier
from mikv_cpp.config import AUTOMATIC, KVConfig, KVSetting, resolve_config
from mikv_cpp.errors import ConfigError, ModelError, StateError
from mikv_cpp.model_file import ModelFile, read_model_file
from mikv_cpp.plan import Plan, check_memory, n_cells, plan_cache
from mikv_cpp.plan.choice import choose_for_this_machine
from mikv_cpp.state import MAGIC, State
from mikv_cpp.stateful import Stateful

_ALL_LAYERS = 0x7FFFFFFF
_making = threading.Lock()  # a device's configuration belongs to the next cache on it: one is made at a time


class Llama(Stateful, llama_cpp.Llama):
    """A llama_cpp.Llama in every other respect, whose KV cache is kept in mixed precision.

    It runs on the device MIKV0, with all layers there, flash attention on, and llama.cpp's q8_0 as the cache's logical type:
    n_gpu_layers, flash_attn, type_k, type_v and offload_kqv are set for that. With embedding=True and no kv, or kv="off",
    llama.cpp does as it does without mikv_cpp.

    Args:
        model_path: a GGUF file.
        kv: a KVConfig, the name of a preset or of a profile's .toml file, None for the preset "mikv", "off" for
            llama.cpp's own cache, or "auto" for the best preset that the free memory has room for.
        on_load: called with the share of the model that is loaded, 0 to 1.
        kwargs: everything else that llama_cpp.Llama takes.

    Raises:
        ModelError: the file is missing, damaged or not GGUF, or llama.cpp cannot load it.
        BudgetError: the budget is too small, or the context is larger than the memory.
        ConfigError: a setting that cannot be used, alone or with the others.
        LibraryError: the native library or llama-cpp-python is missing or of another version.
    """

    def __init__(
        self,
        model_path: Union[str, os.PathLike[str]],
        *,
        kv: KVSetting = None,
        on_load: Optional[Callable[[float], None]] = None,
        **kwargs: Any,
    ) -> None:
        self.on_prompt: Optional[Callable[[int, int], None]] = None
        check_version()
        self._kv_setting: KVSetting = "off" if kv is None and kwargs.get("embedding") else kv
        self.model_file: ModelFile = read_model_file(model_path)
        self._stopped: Optional[BaseException] = None  # what on_load raised, such as Ctrl-C: it cannot pass through llama.cpp
        self._progress = api.llama_progress_callback(self._pass_on(on_load)) if on_load else None
        n_ctx = int(kwargs.get("n_ctx", 512)) or self.model_file.n_ctx_train
        if n_ctx < 1:
            raise ConfigError(f"n_ctx={kwargs['n_ctx']} is not possible: use a positive number of tokens, or 0 for the model's")
        self._cache: Optional[KVCache] = None
        self._logical_type = ""
        if self._kv_setting == AUTOMATIC:
            self.kv_config: Optional[KVConfig] = choose_for_this_machine(native_library(), self.model_file, n_ctx).config
        else:
            self.kv_config = resolve_config(self._kv_setting)
        if self.kv_config is None:
            check_memory(self.model_file.f16_bytes(n_cells(n_ctx)) if self.model_file.is_plain_attention else 0, n_ctx)
            self._devices = device_list(plain_devices())
            with ErrorLog() as log:
                self._load(model_path, log, kwargs)
        else:
            swa_full = kwargs.get("swa_full") is not False  # llama.cpp's own default: True
            plan = plan_cache(native_library(), self.model_file, self.kv_config, n_ctx, swa_full)
            self._logical_type = plan.logical_type
            self._load_on_mikv(model_path, plan, _settle(kwargs, plan.logical_type))

    def _load_on_mikv(self, model_path: Union[str, os.PathLike[str]], plan: Plan, kwargs: dict[str, Any]) -> None:
        library, device = native_library(), mikv_device()
        self._devices = device_list([device])
        with _making, ErrorLog() as log:
            before = set(library.caches(device))
            library.configure(device, plan.config, plan.shape, plan.budget_bytes)
            self._load(model_path, log, kwargs)
            made = [cache for cache in library.caches(device) if cache not in before]
            self._cache = KVCache(library, made, library.note(device))

    def _load(self, model_path: Union[str, os.PathLike[str]], log: ErrorLog, kwargs: dict[str, Any]) -> None:
        try:
            super().__init__(os.fspath(model_path), **kwargs)
        except ValueError as error:
            if self._stopped is not None:
                raise self._stopped from None
            if "Failed to load model" in str(error):
                reason = f" ({log.first})" if log.first else ""
                raise ModelError(
                    f"llama.cpp cannot load {os.fspath(model_path)!r}{reason}: give a complete GGUF file of an architecture "
                    "it knows"
                ) from error
            if "llama_context" in str(error):
                raise ConfigError(
                    f"llama.cpp cannot make a context ({log.first or error}): ask for fewer tokens, or change the setting that "
                    "it names"
                ) from error
            raise

    def _pass_on(self, on_load: Callable[[float], None]) -> Callable[[float, Any], bool]:
        """on_load as llama.cpp calls it: False stops the loading."""

        def progress(share: float, _data: Any) -> bool:
            try:
                on_load(share)
            except BaseException as error:  # noqa: BLE001 - raised again when llama.cpp has returned
                self._stopped = error
            return self._stopped is None

        return progress

    @property
    def model_params(self) -> Any:
        """llama.cpp's parameters for the model."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        # llama_cpp.Llama takes no devices, but keeps its parameters in this attribute before it loads the model.
        params.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        if self._progress:
            params.progress_callback = self._progress
        self._model_params = params

    # --- the cache --------------------------------------------------------------------------------------------------------

    @property
    def kv(self) -> KVCache:
        """The mixed-precision cache.

        Raises:
            ConfigError: this model was loaded with kv="off".
        """
        if self._cache is None:
            raise ConfigError(
                'this model runs on llama.cpp\'s own cache (kv="off"): load it with another kv to ask about precision'
            )
        return self._cache.held_by(self)

    def kv_stats(self) -> KVStats:
        """`kv.stats()`; with kv="off", the numbers of llama.cpp's f16 cache."""
        if self._cache is not None:
            return self._cache.stats()
        cells = n_cells(self.n_ctx())
        plain = self.model_file.is_plain_attention
        note = (
            'kv="off": llama.cpp\'s own f16 cache' if plain else 'kv="off": llama.cpp\'s own cache, its size is not known here'
        )
        return plain_stats(self.model_file.f16_bytes(cells) if plain else 0, cells, int(self.n_tokens), note)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens, telling `on_prompt` (done, of how many) after each batch of a prompt."""
        if self.on_prompt is None or len(tokens) < 2:
            super().eval(tokens)
            return
        for start in range(0, len(tokens), self.n_batch):
            super().eval(tokens[start : start + self.n_batch])
            self.on_prompt(min(start + self.n_batch, len(tokens)), len(tokens))

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Optional[Sequence[int]], None]:
        """As llama_cpp.Llama.generate, and right for sliding windows too: a window that has moved on cannot be rolled back."""
        tokens = list(tokens)
        if kwargs.get("reset", True) and self.n_tokens and self._lost_by_rollback(self.reusable(tokens)):
            self.forget()
        return super().generate(tokens, *args, **kwargs)

    def forget(self) -> None:
        """Empty the cache."""
        self.reset()  # type: ignore[no-untyped-call]
        api.llama_memory_clear(api.llama_get_memory(self.ctx), True)

    def reusable(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` the cache holds already."""
        return int(self.longest_token_prefix(self._input_ids[: len(tokens)].tolist(), tokens))

    def _lost_by_rollback(self, n_kept: int) -> bool:
        window = api.llama_model_n_swa(self.model)
        if window <= 0 or n_kept >= self.n_tokens:
            return False
        first = int(api.llama_memory_seq_pos_min(api.llama_get_memory(self.ctx), 0))
        return first > max(0, n_kept - 1 - int(window))

    # --- text ---------------------------------------------------------------------------------------------------------------

    def chat_tokens(self, messages: Sequence[dict[str, Any]], tools: Optional[Sequence[dict[str, Any]]] = None) -> list[int]:
        """Tokens of a conversation in the model's own chat template, up to where the answer begins.

        tools: offered to the model, in OpenAI's form, as far as the template speaks of tools.

        Raises:
            ConfigError: the model has no template, or it refuses the messages.
        """
        template = self.metadata.get("tokenizer.chat_template")
        if not template:
            raise ConfigError(f"model {self.model_file.name!r} has no chat template: use plain completion (--raw)")
        texts = [self._model.token_get_text(token) if token >= 0 else "" for token in (self.token_eos(), self.token_bos())]
        try:
            fill = Jinja2ChatFormatter(template, eos_token=texts[0], bos_token=texts[1])
            filled = fill(messages=list(messages), tools=list(tools) if tools else None)  # type: ignore[arg-type]
        except Exception as error:  # a template is a program by others: whatever it raises, it is about these messages
            raise ConfigError(
                f"the model's chat template refuses these messages ({error}): change them, or use --raw"
            ) from error
        return self.tokenize(filled.prompt.encode(), add_bos=not filled.added_special, special=True)

    def is_end(self, token: int) -> bool:
        """Whether a token ends the model's turn."""
        return bool(api.llama_vocab_is_eog(self._model.vocab, token))

    def token_text(self, token: int) -> str:
        """How the vocabulary spells a token: "<|im_end|>"."""
        return str(self._model.token_get_text(token))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; part of a UTF-8 character perhaps, nothing for a control token."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            written: int = api.llama_token_to_piece(self._model.vocab, token, buffer, size, 0, False)
            if written >= 0:
                return buffer.raw[:written]
            size = -written

    # --- state ----------------------------------------------------------------------------------------------------------------

    def take_state(self, notes: Optional[dict[str, Any]] = None) -> State:
        """What save_kv writes."""
        memory = api.llama_get_memory(self.ctx)
        n_tokens = int(self.n_tokens)
        if int(api.llama_memory_seq_pos_max(memory, 0)) >= n_tokens:  # an answer that was taken back: still in the cells
            api.llama_memory_seq_rm(memory, -1, n_tokens, -1)
        if int(api.llama_memory_seq_pos_max(memory, 0)) >= n_tokens:
            raise StateError("this model cannot take back the end of a conversation: save it before that, or read it again")
        host, caches = self._carrier().take()
        return State(self.state_identity(), self.input_ids[:n_tokens].astype(np.int32), host, caches, notes or {})

    def _carrier(self) -> Carrier:
        def pointer(state: NDArray[np.uint8]) -> Any:
            return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))

        return Carrier(
            native_library() if self._cache is not None else None,
            self._cache.ids if self._cache is not None else [],
            lambda: int(api.llama_state_get_size(self.ctx)),
            lambda state: int(api.llama_state_get_data(self.ctx, pointer(state), state.size)),
            lambda state: int(api.llama_state_set_data(self.ctx, pointer(state), state.size)),
        )

    def save_state(self) -> llama_cpp.LlamaState:
        """As llama_cpp.Llama.save_state, the cache packed as it is."""
        if self._cache is None:
            return super().save_state()
        data = self.take_state().to_bytes()
        return llama_cpp.LlamaState(
            input_ids=self.input_ids.copy(),
            scores=self._scores.copy(),
            n_tokens=self.n_tokens,
            llama_state=data,
            llama_state_size=len(data),
            seed=self._seed,
        )

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Go back to a state of save_state, of llama_cpp.Llama's too.

        Raises:
            StateError: it is of another model, context or cache type; this model's state is then as it was.
        """
        before = self.save_state()
        try:
            self._take_over(state)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            self._take_over(before)
            raise StateError(
                f"a saved state of {state.n_tokens} tokens does not fit ({error}): load it into the same model, with the same "
                'n_ctx, n_batch and logits_all, and kv="off" only if it was saved so'
            ) from error

    def _take_over(self, state: llama_cpp.LlamaState) -> None:
        if not state.llama_state.startswith(MAGIC):
            super().load_state(state)
            return
        self.scores[: state.n_tokens, :] = state.scores
        self.put_state(State.from_bytes(state.llama_state))
        self.input_ids[:] = state.input_ids
        self._seed = state.seed

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the settings, not the cache."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "kv": self._kv_setting}

    def close(self) -> None:
        """Free the model and its cache."""
        if hasattr(self, "_stack"):  # not there if a setting was refused before anything was loaded
            super().close()


def _settle(kwargs: dict[str, Any], logical_type: str) -> dict[str, Any]:
    """The arguments for llama_cpp.Llama, with those set that mixed precision needs; logical_type is the Plan's.

    Raises:
        ConfigError: one is given that contradicts it.
    """
    logical = getattr(api, f"GGML_TYPE_{logical_type.upper()}")
    allowed: dict[str, tuple[Any, ...]] = {
        "type_k": (None, logical),
        "type_v": (None, logical),
        "flash_attn": (True,),
        "offload_kqv": (True,),
        "n_gpu_layers": (0, -1, _ALL_LAYERS),  # 0 is llama_cpp's default, and the device computes on the CPU anyway
    }
    for name, values in allowed.items():
        if name in kwargs and kwargs[name] not in values:
            raise ConfigError(
                f'{name}={kwargs[name]!r} cannot be combined with a mixed-precision cache: leave it out, or use kv="off"'
            )
    return {**kwargs, "n_gpu_layers": -1, "flash_attn": True, "offload_kqv": True, "type_k": logical, "type_v": logical}


def bias_processor(bias: Mapping[int, float]) -> llama_cpp.LogitsProcessorList:
    """What `generate` takes to have these added to the logits of these tokens."""
    tokens, values = np.array(list(bias)), np.array(list(bias.values()), dtype=np.float32)

    def add(_tokens: NDArray[np.intc], logits: NDArray[np.single]) -> NDArray[np.single]:
        logits[tokens] += values
        return logits

    return llama_cpp.LogitsProcessorList([add])


def json_grammar(schema: dict[str, Any]) -> LlamaGrammar:
    """llama.cpp's grammar of the JSON texts that a schema describes.

    Raises:
        ConfigError: it has something that llama.cpp cannot make a grammar of.
    """
    try:
        return LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    except Exception as error:  # the converter raises whatever it stumbles over
        raise ConfigError(f"the JSON schema cannot be used ({type(error).__name__}: {error}): simplify it") from error


#: Ways to make one embedding of a text's tokens, by llama.cpp's numbers.
POOLINGS = {"mean": 1, "cls": 2, "last": 3}
