"""FORMAT.md's arrays in bytes, counted from its tables alone."""

from __future__ import annotations

from mikv_cpp.reference.layout import Config, Shape, is_pool, leading_groups, rows_for


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 64) * 64


def head_bytes(config: Config, shape: Shape, n_slots: int, n_exact: int) -> dict[str, int]:
    """Bytes of one KV head's arrays: base, refined and metadata, as mikv_stats divides them."""
    n, pool = rows_for(config, shape), is_pool(config, shape)
    whole = pool and n_slots == n  # no maps of slots
    halves = n_exact + (n_slots if config.refined_bits == 16 else 0)
    group = config.group or (64 if not config.lead_share and shape.head_dim_k % 64 == 0 and shape.head_dim_v % 64 == 0 else 32)
    base = refined = 0
    lead = leading_groups(config, shape.head_dim_k, group) * group
    for dim, bits, n_lead in ((shape.head_dim_k, config.k_bits, lead), (shape.head_dim_v, config.v_bits, 0)):
        if not (whole and config.refined_bits == 16):
            base += _padded(2 * dim // group * n) + _padded(n * ((dim - n_lead) * bits + n_lead * config.lead_bits) // 8)
        extra, more = (max(0, config.refined_bits % 16 - less) for less in (bits, config.lead_bits))
        refined += _padded(n_slots * ((dim - n_lead) * extra + n_lead * more) // 8) + _padded(2 * halves * dim)
    n_blocks, n_maps = (-(-n // 128) if base else 0), (0 if whole else n_slots)
    metadata = (
        _padded(2 * n_blocks * shape.head_dim_k) + 2 * _padded(4 * n_maps) + _padded(4 * n_exact) + 2 * _padded(4 * n * pool)
    )
    return {"base": base, "refined": refined, "metadata": metadata}


def table_bytes(shape: Shape) -> int:
    """Bytes of the per-cell tables of all streams: born, seen, staged (4 each) and flags (1)."""
    return shape.n_stream * shape.n_cells * 13


def head_count(shape: Shape) -> int:
    """KV heads of all layers and streams."""
    return shape.n_layer * shape.n_stream * shape.n_head_kv
