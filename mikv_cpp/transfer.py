"""What llama.cpp would have carried between a packed cache and a state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transfer:
    """Rows of one KV tensor: fields of mikv_transfer in mikv_decl.h. first_row is stream * n_cells + cell."""

    cache: int
    first_row: int
    n_rows: int
    offset_bytes: int
    size_bytes: int
    index: int
    value: int
