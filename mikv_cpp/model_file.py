"""The header of a GGUF file: enough of it to size a cache and to refuse a bad file before llama.cpp loads it."""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_BIAS = re.compile(r"blk\.\d+\.attn_[qk]\.bias")
_FLOATS: dict[int, type[Any]] = {0: np.float32, 1: np.float16}  # ggml's types
_WINDOWED = {"gemma2": 2, "gemma3": 6}  # of so many layers all but the last have a sliding window, if the file does not say
_LONGEST_KEPT_ARRAY = 4096  # per-layer arrays are kept, vocabularies are skipped


@dataclass(frozen=True)
class AttentionShape:
    """KV heads of one layer; head sizes in values."""

    n_head_kv: int
    head_dim_k: int
    head_dim_v: int

    @property
    def f16_bytes_per_cell(self) -> int:
        """Bytes of one token's key and value in f16."""
        return 2 * self.n_head_kv * (self.head_dim_k + self.head_dim_v)


@dataclass(frozen=True)
class ModelFile:
    """A GGUF model's header.

    Attributes:
        path: the file.
        size_bytes: its size.
        fields: scalar, text and short array fields by their GGUF names.
        biases: float32, of the queries and keys where the model has them: "blk.0.attn_k.bias".
    """

    path: Path
    size_bytes: int
    fields: dict[str, Any] = field(repr=False)
    biases: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @property
    def arch(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.fields.get("general.architecture", ""))

    @property
    def n_ctx_train(self) -> int:
        """Context that the model was trained for, in tokens; 0 if the file does not say."""
        return int(self._arch_field("context_length", 0))

    @property
    def n_layer(self) -> int:
        """Layers of the model."""
        return int(self._arch_field("block_count", 0))

    @property
    def name(self) -> str:
        """The model's name, else its file name."""
        return str(self.fields.get("general.name") or self.path.stem)

    @property
    def has_chat_template(self) -> bool:
        """Whether the model brings a chat template, as instruct models do."""
        return bool(self.fields.get("tokenizer.chat_template"))

    @property
    def sliding_window(self) -> int:
        """Tokens that the model's windowed layers see; 0 without such layers."""
        return int(self._arch_field("attention.sliding_window", 0))

    @property
    def windowed_layers(self) -> Optional[list[bool]]:
        """Of each layer whether it has the sliding window; None where that is not known of this architecture."""
        if not self.sliding_window:
            return [False] * self.n_layer
        if self.arch not in _WINDOWED:
            return None
        given = self.fields.get(f"{self.arch}.attention.sliding_window_pattern", _WINDOWED[self.arch])
        if isinstance(given, list):
            return [bool(windowed) for windowed in given[: self.n_layer]]
        return [given == 0 or layer % given < given - 1 for layer in range(self.n_layer)]

    @property
    def is_plain_attention(self) -> bool:
        """Whether every cached value is an ordinary key or value: not MLA, where llama.cpp keeps a latent vector."""
        return not self._arch_field("attention.kv_lora_rank", 0)

    def attention_layers(self, windowed: Optional[bool] = None) -> Counter[AttentionShape]:
        """How many layers have KV heads of which shape; layers without attention are left out.

        windowed: only of layers with the sliding window (True) or without it (False), as far as that is known.
        """
        heads = self._per_layer("attention.head_count", 0)
        heads_kv = self._per_layer("attention.head_count_kv", None)
        n_embd = int(self._arch_field("embedding_length", 0))
        shapes: Counter[AttentionShape] = Counter()
        wanted = [windowed is None or is_windowed == windowed for is_windowed in self.windowed_layers or [False] * self.n_layer]
        for n_head, given, is_wanted in zip(heads, heads_kv, wanted):
            n_head_kv = n_head if given is None else given
            if n_head_kv > 0 and is_wanted:
                natural = n_embd // n_head if n_head else 0
                dim_k = int(self._arch_field("attention.key_length", natural))
                dim_v = int(self._arch_field("attention.value_length", natural))
                shapes[AttentionShape(int(n_head_kv), dim_k, dim_v)] += 1
        return shapes

    def rope_frequencies(self, head_dim: int) -> NDArray[np.float64]:
        """Radians per token by which RoPE turns the pairs of a head, the quickest first; RoPE scaling is left out."""
        n_turning = int(self._arch_field("rope.dimension_count", head_dim))
        base = float(self._arch_field("rope.freq_base", 10000.0))
        return np.asarray(base ** (-np.arange(min(n_turning, head_dim) // 2) * 2.0 / max(n_turning, 1)), np.float64)

    def f16_bytes(self, n_cells: int) -> int:
        """Bytes of llama.cpp's f16 cache of n_cells tokens, every layer at full length."""
        return n_cells * sum(n * shape.f16_bytes_per_cell for shape, n in self.attention_layers().items())

    def _arch_field(self, name: str, default: Any) -> Any:
        value = self.fields.get(f"{self.arch}.{name}", default)
        return value[0] if isinstance(value, list) and value else value

    def _per_layer(self, name: str, default: Any) -> list[Any]:
        value = self.fields.get(f"{self.arch}.{name}", default)
        values = value if isinstance(value, list) else [value] * self.n_layer
        return (values + [default] * self.n_layer)[: self.n_layer]


def read_model_file(path: Union[str, os.PathLike[str]]) -> ModelFile:
    """Read a GGUF header.

    Raises:
        ModelError: the file is missing, unreadable, not GGUF, or shorter than its header says.
    """
    place = Path(path)
    if not place.exists():
        raise ModelError(f"model {str(place)!r} does not exist: check the path")
    if not place.is_file():
        raise ModelError(f"model {str(place)!r} is not a file: name the .gguf file itself")
    try:
        with place.open("rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                raise ModelError(
                    f"model {str(place)!r} is not a GGUF file (it starts with {magic!r}): convert it or download a .gguf file"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, place).read()
    except OSError as error:
        raise ModelError(f"model {str(place)!r} cannot be read ({error.strerror or error}): check its permissions") from error


class _Reader:
    """Walks through the header of one file; every length is checked against the file's size before it is believed."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._at = len(b"GGUF")
        self._path = path

    def read(self) -> ModelFile:
        version = self._number("<I")
        if not 2 <= version <= 3:
            raise ModelError(
                f"model {str(self._path)!r} is GGUF version {version}, but llama.cpp reads versions 2 and 3, little-endian: "
                "convert it again"
            )
        n_tensors, n_fields = self._number("<Q"), self._number("<Q")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            name = self._string()
            value = self._value(self._number("<I"))
            if value is not None:
                fields[name] = value
        biases = self._tensors(n_tensors, max(int(fields.get("general.alignment", 32)), 1))
        return ModelFile(self._path, len(self._data), fields, biases)

    def _tensors(self, n_tensors: int, alignment: int) -> dict[str, NDArray[np.float32]]:
        """The biases among the tensors.

        Every tensor's data must begin inside the file; llama.cpp checks where the last one ends.
        """
        last_offset = -1
        found: dict[str, tuple[int, int, int]] = {}  # values, type, offset
        for _ in range(n_tensors):
            name = self._string()
            sizes = [self._number("<Q") for _ in range(self._number("<I"))]
            kind, offset = self._number("<I"), self._number("<Q")
            last_offset = max(last_offset, offset)
            if _BIAS.fullmatch(name) and kind in _FLOATS:
                found[name] = (math.prod(sizes), kind, offset)
        data_start = -(-self._at // alignment) * alignment
        if last_offset >= 0 and data_start + last_offset >= len(self._data):
            raise self._damaged()
        return {name: self._floats(n, _FLOATS[kind], data_start + offset) for name, (n, kind, offset) in found.items()}

    def _floats(self, n: int, kind: type[Any], begin: int) -> NDArray[np.float32]:
        size_bytes = n * np.dtype(kind).itemsize
        if begin + size_bytes > len(self._data):
            raise self._damaged()
        return np.frombuffer(self._data[begin : begin + size_bytes], dtype=kind).astype(np.float32)

    def _value(self, kind: int) -> Any:
        """One value; None for an array that is too long to keep."""
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged()
        item_kind, n_items = self._number("<I"), self._number("<Q")
        if n_items <= _LONGEST_KEPT_ARRAY:
            return [self._value(item_kind) for _ in range(n_items)]
        if item_kind in _SCALARS:
            self._take(n_items * struct.calcsize(_SCALARS[item_kind]))
        else:
            for _ in range(n_items):
                self._take(self._number("<Q")) if item_kind == _STRING else self._value(item_kind)
        return None

    def _number(self, form: str) -> Any:
        return struct.unpack_from(form, self._data, self._take(struct.calcsize(form)))[0]

    def _string(self) -> str:
        n_bytes = self._number("<Q")
        begin = self._take(n_bytes)
        return self._data[begin : begin + n_bytes].decode("utf-8", errors="replace")

    def _take(self, n_bytes: int) -> int:
        """Step over n_bytes and return where they begin."""
        begin = self._at
        if n_bytes > len(self._data) - begin:
            raise self._damaged()
        self._at = begin + n_bytes
        return begin

    def _damaged(self) -> ModelError:
        return ModelError(
            f"model {str(self._path)!r} is truncated or damaged ({len(self._data)} bytes do not hold what its header "
            "announces): download or convert it again"
        )
