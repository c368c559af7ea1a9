"""Bytes that a cache takes in memory, whosever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from mikv_cpp.caches import PLAIN_BITS
from mikv_cpp.engine import Engine, Models
from mikv_cpp.plan import in_mib, n_cells


@dataclass(frozen=True)
class Footprint:
    """Memory allocated for a context's cache, all metadata included.

    Attributes:
        bits_per_value: of each value that the cache can hold.
        bytes_total: of the whole cache; None where the model's header does not tell (MLA).
        bytes_f16: what llama.cpp's f16 cache of the same cells takes; None in the same case.
    """

    bits_per_value: float
    bytes_total: Optional[int]
    bytes_f16: Optional[int]

    @classmethod
    def of(cls, models: Models, engine: Engine) -> Footprint:
        """The footprint of a context that has decoded something: all layers, those that MIKV leaves to llama.cpp too."""
        stats = engine.kv.stats() if engine.kv is not None else None
        held, held_f16 = (stats.bytes_total, stats.bytes_f16) if stats else (0, 0)
        if not models.file.is_plain_attention:
            return cls(stats.bits_per_value, held, held_f16) if stats else cls(PLAIN_BITS[engine.cache_type], None, None)
        bytes_f16 = max(models.file.f16_bytes(n_cells(engine.n_ctx)), held_f16)
        bytes_total = held + round((bytes_f16 - held_f16) * PLAIN_BITS[engine.cache_type] / 16)
        return cls(16 * bytes_total / bytes_f16, bytes_total, bytes_f16)

    @classmethod
    def from_list(cls, values: list[float]) -> Footprint:
        """The footprint that to_list made a list of."""
        bits, bytes_total, bytes_f16 = values
        return cls(bits, int(bytes_total) if bytes_total >= 0 else None, int(bytes_f16) if bytes_f16 >= 0 else None)

    def to_list(self) -> list[float]:
        """Three numbers for an array; -1 where one is not known."""
        return [
            self.bits_per_value,
            -1 if self.bytes_total is None else self.bytes_total,
            -1 if self.bytes_f16 is None else self.bytes_f16,
        ]

    def fields(self) -> dict[str, Any]:
        """The fields, as `--json` prints them."""
        return {"bits_per_value": self.bits_per_value, "bytes_total": self.bytes_total, "bytes_f16": self.bytes_f16}


def size_text(size_bytes: Optional[int]) -> str:
    """Bytes for a table: "12.3 MiB", or "-"."""
    return "-" if size_bytes is None else in_mib(size_bytes)
