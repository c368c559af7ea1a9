"""One KV head and one stream's cells: the arrays of FORMAT.md, one row at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import codec, transform

BLOCK_CELLS = 128  #: cells that share one mean key
EXACT_BITS = 16  #: refined_bits of rows that are refined to float16
NOBODY = 0xFFFFFFFF  #: owner of a free slot


class RowFormat(NamedTuple):
    """What one row is."""

    dim: int  #: values in the row
    group: int  #: values that share a scale and a minimum
    bits: int  #: base bits per value
    refined_bits: int  #: base and refinement bits per value
    end_points: bool = False  #: the base is rounded to a group's extremes
    n_lead: int = 0  #: leading groups, whose base has
    lead_bits: int = 0  #: so many bits


@dataclass
class Rows:
    """Keys or values of one KV head: bytes of every cell, of every slot, and the exact rows."""

    dim: int
    group: int
    bits: int
    refined_bits: int
    params: np.ndarray  # uint16 [dim / group, n_cells]
    base: np.ndarray  # uint8 [n_cells, dim * bits / 8]
    refined: np.ndarray  # uint8 [n_slots, dim * (refined_bits - bits) / 8]
    exact: np.ndarray  # float16 [n_exact, dim], and [n_slots, dim] behind them where refined rows are float16
    end_points: bool = False
    n_lead: int = 0
    lead_bits: int = 0

    @staticmethod
    def empty(row: RowFormat, n_cells: int, n_slots: int, n_exact: int) -> Rows:
        """Rows that hold nothing yet, for so many cells, slots and exact rows."""
        dim, group, bits, refined_bits, end_points, n_lead, lead_bits = row
        n_halves = n_exact + (n_slots if refined_bits == EXACT_BITS else 0)
        refined_bits = bits if refined_bits == EXACT_BITS else refined_bits
        lead, extra = n_lead * group, refined_bits - bits
        lead_extra = max(lead_bits, refined_bits) - lead_bits
        return Rows(
            dim,
            group,
            bits,
            refined_bits,
            np.zeros((dim // group, n_cells), np.uint16),
            np.zeros((n_cells, (lead * lead_bits + (dim - lead) * bits) // 8), np.uint8),
            np.zeros((n_slots, (lead * lead_extra + (dim - lead) * extra) // 8), np.uint8),
            np.zeros((n_halves, dim), np.float16),
            end_points,
            n_lead,
            lead_bits,
        )

    def store(self, cell: int, slot: int | None, row: np.ndarray) -> None:
        """Encodes a row, float32 [dim], into its cell, and its refinement into the slot if it has one."""
        form = (self.group, self.bits, self.refined_bits, self.n_lead, self.lead_bits, self.end_points)
        encoded = codec.encode_leading(row, *form)
        self.params[:, cell] = encoded.params
        self.base[cell] = encoded.base
        if slot is not None:
            self.refined[slot] = encoded.refinement

    def norm_of(self, cell: int) -> float:
        """Estimated norm of the cell's row."""
        return codec.estimated_norm(self.params[:, cell], self.group)

    def norm_as_stored(self, row: np.ndarray) -> float:
        """Estimated norm of a row that may be stored."""
        encoded = codec.encode(row, self.group, self.bits, self.refined_bits, self.end_points)
        return codec.estimated_norm(encoded.params, self.group)

    def load(self, cell: int, slot: int | None) -> np.ndarray:
        """The row of a cell as it reads back, float32 [dim]."""
        refinement = None if slot is None else self.refined[slot]
        form = (self.group, self.bits, self.refined_bits, self.n_lead, self.lead_bits)
        return codec.decode_leading(self.params[:, cell], self.base[cell], refinement, *form)


@dataclass
class Head:
    """One KV head of one layer and stream."""

    k: Rows
    v: Rows
    k_mean: np.ndarray  # float16 [n_blocks, head_dim_k]
    slot_cell: np.ndarray  # uint32 [n_slots]
    slot_mass: np.ndarray  # float32 [n_slots]
    exact_cell: np.ndarray  # uint32 [n_exact]
    kept: np.ndarray  # bool [n_cells], cells whose row is there: all but what a pool dropped
    row_mass: np.ndarray  # float32 [n_cells], of a pool: the rows' scores
    settled: bool = False  # whether keys are balanced is decided
    balancer: transform.Settled = None

    def slot_of(self, cell: int) -> int | None:
        """The slot that holds the cell's refinement, if any."""
        return first_true(self.slot_cell == cell)

    def exact_of(self, cell: int) -> int | None:
        """The exact row that is the cell's, if any."""
        return first_true(self.exact_cell == cell)

    def half_of(self, cell: int) -> int | None:
        """The float16 row that the cell reads back from, if any: a sink's, or its refinement's."""
        exact, slot = self.exact_of(cell), self.slot_of(cell)
        refined_to_half = slot is not None and len(self.k.exact) > len(self.exact_cell)
        return len(self.exact_cell) + slot if exact is None and slot is not None and refined_to_half else exact

    def release(self, cell: int) -> None:
        """Frees the cell's slot and exact row."""
        self.slot_cell[self.slot_cell == cell] = NOBODY
        self.exact_cell[self.exact_cell == cell] = NOBODY

    def load(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """Key and value of a committed cell, float64."""
        exact = self.half_of(cell)
        if exact is not None:
            return self.k.exact[exact].astype(np.float64), self.v.exact[exact].astype(np.float64)
        slot = self.slot_of(cell)
        mean = self.k_mean[cell // BLOCK_CELLS].astype(np.float64)
        return self.k.load(cell, slot) + mean, self.v.load(cell, slot).astype(np.float64)

    def rewrite(self, cell: int, value: int, row: np.ndarray) -> None:
        """Stores the key (value 0) or the value (1) of a cell at the precision that the cell has."""
        rows = self.v if value else self.k
        half = self.half_of(cell)
        if half is not None:
            rows.exact[half] = codec.clean(row).astype(np.float16)
        if self.exact_of(cell) is not None:
            return
        mean = np.float32(0) if value else self.k_mean[cell // BLOCK_CELLS].astype(np.float32)
        rows.store(cell, self.slot_of(cell), np.asarray(row, np.float32) - mean)


@dataclass
class Cells:
    """What all layers and heads of a stream share, per cell."""

    born: np.ndarray  # uint32 [n_cells], `now` when the row was stored; 0: empty
    seen: np.ndarray  # uint32 [n_cells], `batch` when a query last saw it
    windowed: np.ndarray  # bool [n_cells], among the last `window` tokens of its sequence
    sink: np.ndarray  # bool [n_cells], among the first `sinks` tokens of its sequence
    now: int = 0  # tokens stored so far
    batch: int = 0  # micro-batches so far

    @staticmethod
    def empty(n_cells: int) -> Cells:
        """Cells that hold nothing."""
        return Cells(*np.zeros((2, n_cells), np.uint32), *np.zeros((2, n_cells), bool))


def first_true(found: np.ndarray) -> int | None:
    """Index of the first True, or None."""
    index = np.flatnonzero(found)
    return int(index[0]) if index.size else None
