"""FORMAT.md's arrays in bytes, counted from its tables alone."""

from __future__ import annotations

from mikv_cpp.reference.cache import Config, Shape


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 64) * 64


def head_bytes(config: Config, shape: Shape, n_slots: int, n_exact: int) -> dict[str, int]:
    """Bytes of one KV head's arrays: base, refined and metadata, as mikv_stats divides them."""
    n = shape.n_cells
    group = config.group or (64 if shape.head_dim_k % 64 == 0 and shape.head_dim_v % 64 == 0 else 32)
    base = refined = 0
    for dim, bits in ((shape.head_dim_k, config.k_bits), (shape.head_dim_v, config.v_bits)):
        base += _padded(2 * dim // group * n) + _padded(n * dim * bits // 8)
        refined += _padded(n_slots * dim * (config.refined_bits - bits) // 8) + _padded(2 * n_exact * dim)
    n_blocks = -(-n // 128)
    metadata = _padded(2 * n_blocks * shape.head_dim_k) + 2 * _padded(4 * n_slots) + _padded(4 * n_exact)
    return {"base": base, "refined": refined, "metadata": metadata}


def table_bytes(shape: Shape) -> int:
    """Bytes of the per-cell tables of all streams: born, seen, staged (4 each) and flags (1)."""
    return shape.n_stream * shape.n_cells * 13


def head_count(shape: Shape) -> int:
    """KV heads of all layers and streams."""
    return shape.n_layer * shape.n_stream * shape.n_head_kv
