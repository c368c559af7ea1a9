"""llama.cpp without sampling: token batches in, logits out. What the measuring commands are built on.

    with Models("model.gguf") as models:
        engine = models.open(CacheSpec("q8_0"), n_ctx=2048, ubatch=128)
        logits = engine.decode(models.vocabulary.tokenize("Hello"))

Contexts on the plain device share one loaded model, those on the MIKV device another: devices belong to a model. Both map the
same file, so the second costs little memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import llama_cpp.llama_cpp as api
import numpy as np
import numpy.typing as npt

from mikv_cpp.cache import KVCache
from mikv_cpp.caches import PLAIN_BITS, CacheSpec
from mikv_cpp.config import KVConfig
from mikv_cpp.errors import ConfigError, MikvError, ModelError
from mikv_cpp.model_file import read_model_file
from mikv_cpp.plan import plan_cache
from mikv_cpp.plugin import chosen_devices, device_list, mikv_device, native_library, silence_log

CACHE_TYPES = {name: getattr(api, f"GGML_TYPE_{name.upper()}") for name in PLAIN_BITS}
Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


class Vocabulary:
    """Text to tokens and back, for one loaded model."""

    def __init__(self, model: Any) -> None:
        self._vocab = api.llama_model_get_vocab(model)
        template = api.llama_model_chat_template(model, None)
        self.chat_template: Optional[bytes] = template or None
        self.n_tokens = int(api.llama_vocab_n_tokens(self._vocab))
        self.bos = int(api.llama_vocab_bos(self._vocab))
        self.add_bos = bool(api.llama_vocab_get_add_bos(self._vocab))

    def tokenize(self, text: str, special: bool = False) -> Tokens:
        """The tokens of a text, BOS first where the model asks for it; `special`: "<|im_start|>" and the like are one token."""
        data = text.encode("utf-8")
        tokens = np.empty(len(data) + 2, dtype=np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(api.llama_token))
        count = api.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), True, special)
        if count < 0:
            raise MikvError(f"llama.cpp cannot tokenize this text of {len(data)} bytes with the model's vocabulary")
        return tokens[:count]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens are left out, a broken UTF-8 sequence becomes U+FFFD."""
        pieces = []
        for token in tokens:
            size = 64
            buffer = ctypes.create_string_buffer(size)
            written = api.llama_token_to_piece(self._vocab, int(token), buffer, size, 0, False)
            if written < 0:  # too long: llama.cpp says how long
                buffer = ctypes.create_string_buffer(-written)
                written = api.llama_token_to_piece(self._vocab, int(token), buffer, -written, 0, False)
            pieces.append(buffer.raw[:written])
        return b"".join(pieces).decode("utf-8", errors="replace")

    def is_end(self, token: int) -> bool:
        """Whether a token ends the model's turn."""
        return bool(api.llama_vocab_is_eog(self._vocab, int(token)))

    def chat(self, message: str) -> str:
        """One user message in the model's chat template, up to where the answer starts; unchanged if the model has none."""
        if self.chat_template is None:
            return message
        messages = (api.llama_chat_message * 1)(api.llama_chat_message(role=b"user", content=message.encode("utf-8")))
        size = 2 * len(message.encode("utf-8")) + 1024
        buffer = ctypes.create_string_buffer(size)
        written = api.llama_chat_apply_template(self.chat_template, messages, 1, True, buffer, size)
        if written < 0 or written > size:
            raise ConfigError("llama.cpp does not know this model's chat template: give --prompts-file with finished prompts")
        return buffer.raw[:written].decode("utf-8")


@dataclass(frozen=True)
class Loaded:
    """A model on one device, and the array of devices that its parameters point to."""

    model: Any
    devices: Any
    vocabulary: Vocabulary


class Engine:
    """One context: a cache being filled, position by position, by sequence 0. Made by Models.open.

    Attributes:
        spec: the cache.
        cache_type: llama.cpp's type of it; of a MIKV cache the logical one, which layers that are not compressed keep.
        vocabulary: of its model.
        n_ctx: tokens that fit.
        n_past: tokens held.
        kv: what a MIKV cache holds now; None for llama.cpp's own caches.
    """

    def __init__(self, loaded: Loaded, spec: CacheSpec, cache_type: str, n_ctx: int, ubatch: int, n_threads: int) -> None:
        self.spec = spec
        self.cache_type = cache_type
        self.vocabulary = loaded.vocabulary
        self.n_past = 0
        self.kv: Optional[KVCache] = None
        self._ubatch = min(ubatch, n_ctx)
        params = api.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = self._ubatch
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.offload_kqv = True
        params.no_perf = True
        self._context = api.llama_init_from_model(loaded.model, params)
        if not self._context:
            raise MikvError(
                f"llama.cpp cannot make a context of {n_ctx} tokens with the cache {spec.name}: a smaller -c needs less memory"
            )
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(self._ubatch, 0, 1)
        self.n_ctx = int(api.llama_n_ctx(self._context))

    def decode(self, tokens: Tokens, first_logits: int = 0) -> Logits:
        """Append tokens [n]; logits [n - first_logits, n_vocab] of those from `first_logits` on (negative: from the end).

        Raises MikvError when the context is full or llama.cpp fails.
        """
        first = max(len(tokens) + first_logits, 0) if first_logits < 0 else min(first_logits, len(tokens))
        if self.n_past + len(tokens) > self.n_ctx:
            raise ConfigError(f"{self.n_past + len(tokens)} tokens do not fit a context of {self.n_ctx}: give a larger -c")
        rows = np.empty((len(tokens) - first, self.vocabulary.n_tokens), dtype=np.float32)
        for start in range(0, len(tokens), self._ubatch):
            part = tokens[start : start + self._ubatch]
            n_wanted = len(part) - min(max(first - start, 0), len(part))
            self._decode_micro_batch(part, n_wanted)
            if n_wanted:
                logits = np.ctypeslib.as_array(api.llama_get_logits(self._context), (n_wanted, self.vocabulary.n_tokens))
                done = start + len(part) - first
                rows[done - n_wanted : done] = logits
        return rows

    def _decode_micro_batch(self, tokens: Tokens, n_wanted: int) -> None:
        """Decode tokens [n <= ubatch] and keep the logits of the last n_wanted."""
        batch, n = self._batch, len(tokens)
        batch.n_tokens = n
        for index in range(n):
            batch.token[index] = int(tokens[index])
            batch.pos[index] = self.n_past + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= n - n_wanted
        status = api.llama_decode(self._context, batch)
        if status != 0:
            raise MikvError(f"llama_decode failed with {status} at token {self.n_past} of the cache {self.spec.name}")
        self.n_past += n

    @property
    def bits_per_value(self) -> float:
        """Bits of memory for each value that the cache can hold, everything included."""
        return PLAIN_BITS[self.spec.name] if self.kv is None else self.kv.stats().bits_per_value

    def remove_from(self, position: int) -> None:
        """Remove the tokens at `position` and after it."""
        if not api.llama_memory_seq_rm(self._memory, 0, position, -1):
            raise MikvError(
                f"this model's cache cannot drop its last tokens (from {position} on), so it cannot be measured this way"
            )
        self.n_past = position

    def state(self) -> npt.NDArray[np.uint8]:
        """What the cache holds, as llama.cpp saves a sequence."""
        data = np.empty(api.llama_state_seq_get_size(self._context, 0), np.uint8)
        size = api.llama_state_seq_get_data(self._context, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), data.size, 0)
        return data[:size]

    def load_state(self, data: npt.NDArray[np.uint8], n_tokens: int) -> None:
        """Hold what `state` gave, of so many tokens, instead of what is held now."""
        self.clear()
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if api.llama_state_seq_set_data(self._context, pointer, data.size, 0) != data.size:
            raise MikvError(f"llama.cpp does not take a state of {n_tokens} tokens with the cache {self.spec.name}")
        self.n_past = n_tokens

    def clear(self) -> None:
        """Empty the cache."""
        api.llama_memory_clear(self._memory, True)
        self.n_past = 0

    def close(self) -> None:
        """Free the context. Harmless when done twice."""
        if self._context:
            api.llama_batch_free(self._batch)
            api.llama_free(self._context)
            self._context = None


class Models:
    """A GGUF file, loaded at most once per device, and the contexts opened on it. Closing it closes them.

    Both compute on one device, the CPU unless another was asked for (plugin.use_device): the plain one as llama.cpp does
    without the plug-in, the other with MIKV's cache.
    """

    def __init__(self, path: str, n_threads: int) -> None:
        self.file = read_model_file(path)
        if n_threads < 1:
            raise ConfigError(f"{n_threads} threads cannot compute anything: give --threads at least 1")
        self.n_threads = n_threads
        self._loaded: dict[bool, Loaded] = {}  # on the MIKV device or not
        self._engines: list[Engine] = []
        silence_log()
        api.llama_backend_init()

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._load(next(iter(self._loaded), False)).vocabulary

    def open(self, spec: CacheSpec, n_ctx: int, ubatch: int = 512) -> Engine:
        """A new context of n_ctx tokens whose cache is `spec`, decoded in micro-batches of at most `ubatch` tokens.

        Raises:
            ConfigError: sizes that cannot be used, or a model whose cache cannot be compressed.
            MikvError: llama.cpp cannot load the model or make the context.
        """
        if n_ctx < 1 or ubatch < 1:
            raise ConfigError(f"a context of {n_ctx} tokens in micro-batches of {ubatch} cannot be made: both must be positive")
        loaded = self._load(spec.config is not None)
        if spec.config is None:
            engine = Engine(loaded, spec, spec.name, n_ctx, ubatch, self.n_threads)
        else:
            engine = self._open_mikv(loaded, spec, spec.config, n_ctx, ubatch)
        self._engines.append(engine)
        return engine

    def _open_mikv(self, loaded: Loaded, spec: CacheSpec, config: KVConfig, n_ctx: int, ubatch: int) -> Engine:
        library, device = native_library(), mikv_device()
        plan = plan_cache(library, self.file, config, n_ctx)
        before = set(library.caches(device))
        library.configure(device, plan.config, plan.shape, plan.budget_bytes)
        engine = Engine(loaded, spec, plan.logical_type, n_ctx, ubatch, self.n_threads)
        made = [cache for cache in library.caches(device) if cache not in before]
        note = library.note(device)
        if not made:
            engine.close()
            raise ConfigError(f"the cache {spec.name} cannot be measured: this model's cache stays llama.cpp's own ({note})")
        engine.kv = KVCache(library, made, note)
        return engine

    def _load(self, on_mikv: bool) -> Loaded:
        if on_mikv not in self._loaded:
            params = api.llama_model_default_params()
            # Plain gets an empty list and not NULL, which would let llama.cpp take every GPU-type device, the MIKV one too.
            chosen = [mikv_device()] if on_mikv else chosen_devices()
            devices = device_list(chosen)
            params.devices = ctypes.cast(devices, ctypes.c_void_p)
            params.n_gpu_layers = -1 if chosen else 0
            model = api.llama_model_load_from_file(os.fsencode(self.file.path), params)
            if not model:
                raise ModelError(
                    f"llama.cpp cannot load {str(self.file.path)!r}: give a complete GGUF file of an architecture it knows"
                )
            self._loaded[on_mikv] = Loaded(model, devices, Vocabulary(model))
        return self._loaded[on_mikv]

    def close(self) -> None:
        """Free contexts and models. Harmless when done twice."""
        for engine in self._engines:
            engine.close()
        for loaded in self._loaded.values():
            api.llama_model_free(loaded.model)
        self._engines.clear()
        self._loaded.clear()

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
