"""What a cache is asked for, and the counts of rows that follow from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .head import EXACT_BITS


@dataclass(frozen=True)
class Config:
    """How tokens are stored: the fields of mikv_config that decide it (their units and limits are said there)."""

    k_bits: int = 2
    v_bits: int = 2
    refined_bits: int = 8
    group: int = 0
    sinks: int = 0
    window: int = 0
    center_keys: bool = True
    refined_share: float = 0.2
    policy: str = "h2o"
    rotate: bool = False
    balance: str = "off"
    end_points: bool = False
    recent_share: float = 0.0
    rows: float = 1.0
    lead_share: float = 0.0
    lead_bits: int = 4


@dataclass(frozen=True)
class Shape:
    """What a cache is: its sizes, as in mikv_shape."""

    n_layer: int = 1
    n_head_kv: int = 1
    n_cells: int = 256
    n_stream: int = 1
    head_dim_k: int = 64
    head_dim_v: int = 64


def leading_groups(config: Config, dim: int, group: int) -> int:
    """Groups of a key's row [dim] that lead: the share, but at least one where there is a share."""
    return max(1, int(np.floor(config.lead_share * (dim // group) + 0.5))) if config.lead_share > 0 else 0


def is_pool(config: Config, shape: Shape) -> bool:
    """Whether there are fewer rows than cells."""
    return config.rows != 1 and config.rows < shape.n_cells


def rows_for(config: Config, shape: Shape) -> int:
    """Rows per KV head and stream: the cells, or of a pool the share or the number asked for, and room for sinks and window."""
    if not is_pool(config, shape):
        return shape.n_cells
    wanted = float(np.float32(config.rows)) * (shape.n_cells if config.rows < 1 else 1)
    return min(shape.n_cells, max(int(np.floor(wanted + 0.5)), config.window + config.sinks + 1))


def slots_for(config: Config, shape: Shape) -> int:
    """Refined rows per KV head and stream: the share, rounded, and room for sinks and window where there is one.

    Of a pool the share is of its rows, and none are refined at a share of 0.
    """
    n_rows = rows_for(config, shape)
    wanted = int(np.floor(float(np.float32(config.refined_share)) * n_rows + 0.5))
    least = min(shape.n_cells, config.window + config.sinks) if config.window else 0
    return 0 if is_pool(config, shape) and config.refined_share == 0 else min(n_rows, max(wanted, least))


def window_for(config: Config, shape: Shape, n_slots: int) -> int:
    """Most recent tokens of a sequence that are always refined, where heads are not kept whole; of a pool: always kept."""
    n_slots = rows_for(config, shape) if is_pool(config, shape) else n_slots
    return max(config.window, int(np.float32(config.recent_share) * n_slots)) if n_slots < shape.n_cells else config.window


def exact_for(config: Config, shape: Shape) -> int:
    """Exact rows per KV head and stream: the sinks of one sequence, and of one more for every 16384 cells.

    None where all rows of a pool are exact.
    """
    if is_pool(config, shape) and config.refined_bits == EXACT_BITS and slots_for(config, shape) == rows_for(config, shape):
        return 0
    return min(shape.n_cells, config.sinks * (1 + shape.n_cells // 16384))
