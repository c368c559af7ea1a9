"""The whole cache in NumPy: what a step sees, what is committed, and who keeps its refinement.

Arrays are those of FORMAT.md. Attention reads the bytes back and works in float64.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from . import attention, codec, policy, transform
from .head import BLOCK_CELLS, NOBODY, Cells, Head, RowFormat, Rows, first_true
from .layout import Config, Shape, exact_for, is_pool, leading_groups, rows_for, slots_for, window_for

BLOCK_MEAN_ROWS = 32  #: rows of a step that make a mean of their own for an empty block
FORGOTTEN_AFTER = 64  #: micro-batches in which no query saw a cell: from then on its refinement goes first


@dataclass
class Step:
    """One micro-batch of one layer, as in mikv_step.

    cells: int [n_stream, n], the cell of each token within its stream; k, v: float32 [n_stream, n, n_head_kv, dim];
    q: float32 [n_stream, n, n_head, dim]; mask: float16 [n_stream, n, n_kv]; sinks: float32 [n_head] or None.
    """

    cells: np.ndarray
    k: np.ndarray
    v: np.ndarray
    q: np.ndarray
    mask: np.ndarray
    scale: float = 1.0
    max_bias: float = 0.0
    logit_softcap: float = 0.0
    sinks: np.ndarray | None = None
    first_stream: int = 0


class ReferenceCache:
    """The cache that mikv_cache_create makes, with the same operations."""

    def __init__(self, config: Config, shape: Shape, n_slots: int | None = None, n_exact: int | None = None):
        """n_slots, n_exact: refined and exact rows that fit, per KV head and stream; default: what the config asks."""
        self.config, self.shape = config, shape
        asked = 32 if config.lead_share > 0 and config.group == 0 else config.group
        self.group = codec.resolve_group((shape.head_dim_k, shape.head_dim_v), asked)
        self.n_lead = leading_groups(config, transform.row_dim(shape.head_dim_k), self.group)
        self.n_slots = slots_for(config, shape) if n_slots is None else n_slots
        self.n_exact = exact_for(config, shape) if n_exact is None else n_exact
        self.n_rows = rows_for(config, shape)
        self.window = window_for(config, shape, self.n_slots)
        self.clear()

    def clear(self) -> None:
        """Forgets every token."""
        s = self.shape
        self.heads = [[[self._empty_head() for _ in range(s.n_head_kv)] for _ in range(s.n_stream)] for _ in range(s.n_layer)]
        self.cells = [[Cells.empty(s.n_cells) for _ in range(s.n_stream)] for _ in range(s.n_layer)]
        nothing = (0, *np.zeros((2, transform.row_dim(s.head_dim_k))))
        self.queries = [
            [[policy.Queries(*copy.deepcopy(nothing)) for _ in range(s.n_head_kv)] for _ in range(s.n_stream)]
            for _ in range(s.n_layer)
        ]
        self.demotions = 0
        self.mass = {"exact": 0.0, "refined": 0.0, "base": 0.0}

    def _empty_head(self) -> Head:
        c, s = self.config, self.shape
        sizes = (s.n_cells, self.n_slots, self.n_exact)
        k_dim, v_dim = transform.row_dim(s.head_dim_k), transform.row_dim(s.head_dim_v)
        return Head(
            Rows.empty(
                RowFormat(
                    k_dim, self.group, c.k_bits, c.refined_bits, c.end_points, self.n_lead, c.lead_bits if self.n_lead else 0
                ),
                *sizes,
            ),
            Rows.empty(RowFormat(v_dim, self.group, c.v_bits, c.refined_bits, c.end_points), *sizes),
            np.zeros((-(-s.n_cells // BLOCK_CELLS), k_dim), np.float16),
            np.full(self.n_slots, NOBODY, np.uint32),
            np.zeros(self.n_slots, np.float32),
            np.full(self.n_exact, NOBODY, np.uint32),
            np.full(s.n_cells, not is_pool(c, s)),
            np.zeros(s.n_cells, np.float32),
        )

    # --- a step -----------------------------------------------------------------------------------------------------

    def step(self, layer: int, step: Step) -> np.ndarray:
        """Stores the rows of a micro-batch and returns its attention, float64 [n_stream, n, n_head, head_dim_v].

        Queries see committed rows as they read back and the rows of this step as float16 holds them, each through the
        mask's column of its cell. The rows are committed afterwards.
        """
        step = replace(step, k=_as_f16(step.k), v=_as_f16(step.v))
        outputs = []
        for i in range(step.cells.shape[0]):
            stream = step.first_stream + i
            k, v = self._visible_rows(layer, stream, step, i)
            dropped = np.stack([~head.kept[: len(k)] for head in self.heads[layer][stream]])
            dropped[:, step.cells[i][step.cells[i] < len(k)]] = False
            scores = attention.logits(step.q[i], k, step.mask[i], step.scale, step.max_bias, step.logit_softcap, dropped)
            p = attention.probabilities(scores, step.sinks)
            outputs.append(attention.weigh(p, v))
            mass = attention.mass(p, self.shape.n_head_kv)
            self._measure(layer, stream, step.cells[i], mass)
            drawn = policy.drawn_by(self.config.policy)(p, self.shape.n_head_kv)
            self._commit(layer, stream, step, i, drawn)
        return np.stack(outputs)

    def _visible_rows(self, layer: int, stream: int, step: Step, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values float64 [n_kv, n_head_kv, dim]; NaN where a cell holds nothing."""
        s, n_kv = self.shape, step.mask.shape[-1]
        k = np.full((n_kv, s.n_head_kv, s.head_dim_k), np.nan)
        v = np.full((n_kv, s.n_head_kv, s.head_dim_v), np.nan)
        for cell in np.flatnonzero(self.cells[layer][stream].born[:n_kv]):
            for h, head in enumerate(self.heads[layer][stream]):
                k[cell, h], v[cell, h] = self._load(head, int(cell))
        for token, cell in enumerate(step.cells[i]):
            if cell < n_kv:
                k[cell], v[cell] = step.k[i, token], step.v[i, token]
        return k, v

    def _load(self, head: Head, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """Key and value of a committed cell in the model's space, float64."""
        k, v = head.load(cell)
        s, rotate = self.shape, self.config.rotate
        lead = self.n_lead * self.group
        return transform.leave(k, s.head_dim_k, rotate, head.balancer, lead), transform.leave(v, s.head_dim_v, rotate)

    def _entered(self, head: Head, value: int, rows: np.ndarray) -> np.ndarray:
        """Keys (value 0) or values (1) of a head in the cache's space, float32."""
        lead = 0 if value else self.n_lead * self.group
        return transform.enter(rows, self.config.rotate, None if value else head.balancer, lead).astype(np.float32)

    def _settle_balancer(self, head: Head, h: int, step: Step, i: int) -> None:
        """The first micro-batch that a head meets decides whether and how its keys are balanced, until the cache is cleared."""
        q, k = step.q[i], step.k[i]
        if self.config.balance != "off" and not head.settled and len(k) >= transform.ENOUGH_TOKENS:
            group = q.shape[1] // self.shape.n_head_kv
            queries = q[:, h * group : (h + 1) * group].reshape(-1, q.shape[-1])
            head.balancer = transform.settle(self.config.balance, queries, k[:, h])
        head.settled = True

    def _measure(self, layer: int, stream: int, fresh: np.ndarray, mass: np.ndarray) -> None:
        """Adds attention mass to the share of each precision; rows of the step count as exact."""
        bits = self.precision(layer, stream)[:, : mass.shape[1]].astype(int)
        bits[:, fresh[fresh < mass.shape[1]]] = 16
        c = self.config
        self.mass["exact"] += float(mass[bits == 16].sum())
        refined = (bits == c.refined_bits) & (c.refined_bits > c.k_bits)
        self.mass["refined"] += float(mass[refined].sum())
        self.mass["base"] += float(mass[(bits < 16) & ~refined].sum())

    def _commit(self, layer: int, stream: int, step: Step, i: int, mass: np.ndarray) -> None:
        fresh = step.cells[i].astype(int)
        seen = np.isfinite(step.mask[i].astype(np.float32))
        cells = self.cells[layer][stream]
        for head in self.heads[layer][stream]:
            for cell in fresh:
                head.release(cell)
        cells.born[fresh] = 0
        heads = self.heads[layer][stream]
        for h, head in enumerate(heads):
            self._settle_balancer(head, h, step, i)
        entered_k = np.stack([self._entered(head, 0, step.k[i][:, h]) for h, head in enumerate(heads)], axis=1)
        entered_v = np.stack([self._entered(head, 1, step.v[i][:, h]) for h, head in enumerate(heads)], axis=1)
        self._settle_means(layer, stream, fresh, entered_k)
        for cell in fresh:
            cells.now += 1
            cells.born[cell] = cells.now
        cells.batch += 1
        cells.seen[fresh] = cells.batch
        cells.seen[: seen.shape[1]][seen.any(axis=0)] = cells.batch
        sinks = self._sinks(cells, fresh, seen)
        cells.sink[fresh] = np.isin(fresh, sinks)
        self._move_windows(cells, fresh, seen)
        for h, head in enumerate(self.heads[layer][stream]):
            rows = {int(cell): (entered_k[token, h], entered_v[token, h]) for token, cell in enumerate(fresh)}
            queries = self.queries[layer][stream][h]
            own = np.split(step.q[i] * step.scale, self.shape.n_head_kv, axis=1)[h]
            queries.add(transform.enter_query(own, self.config.rotate, head.balancer, self.n_lead * self.group))
            first = self._first_scores(head, fresh, entered_k[:, h], mass[h], queries)
            self._admit(layer, h, head, cells, rows, mass[h], first, queries)
            self._store_sinks(head, sinks, rows)
            chosen = self._choose(layer, h, head, cells, rows, mass[h], first, queries)
            for cell, (k, v) in rows.items():
                self._write_row(head, cell, k, v, chosen.get(cell))

    def _settle_means(self, layer: int, stream: int, fresh: np.ndarray, k: np.ndarray) -> None:
        """Gives every block that holds no row yet its mean key, which then stays.

        From the step's own rows in the block if they are at least BLOCK_MEAN_ROWS, else the block before's. Any
        mean reads back right: the format leaves the choice to the writer, and this one is the simplest that centres.
        """
        if not self.config.center_keys:
            return
        born = self.cells[layer][stream].born
        for block in np.unique(fresh // BLOCK_CELLS):
            if born[block * BLOCK_CELLS : (block + 1) * BLOCK_CELLS].any():
                continue
            own = fresh // BLOCK_CELLS == block
            for h, head in enumerate(self.heads[layer][stream]):
                if own.sum() >= BLOCK_MEAN_ROWS or block == 0:
                    head.k_mean[block] = codec.clean(k[own, h].mean(axis=0)).astype(np.float16)
                else:
                    head.k_mean[block] = head.k_mean[block - 1]

    def _sinks(self, cells: Cells, fresh: np.ndarray, seen: np.ndarray) -> list[int]:
        """Cells of the step that are among the first `sinks` tokens their own query sees."""
        found = []
        for token, cell in enumerate(fresh):
            visible = np.flatnonzero(seen[token])
            if cell < seen.shape[1] and (cells.born[visible] <= cells.born[cell]).sum() <= self.config.sinks:
                found.append(int(cell))
        return found

    def _move_windows(self, cells: Cells, fresh: np.ndarray, seen: np.ndarray) -> None:
        """The last `self.window` tokens that each query of the step sees are protected, those it sees beyond are not."""
        for token in range(len(fresh)):
            visible = np.flatnonzero(seen[token])
            visible = visible[np.argsort(cells.born[visible])]
            visible = visible[cells.born[visible] <= cells.born[fresh[token]]]
            cells.windowed[visible] = False
            cells.windowed[visible[len(visible) - min(len(visible), self.window) :]] = True

    def _store_sinks(self, head: Head, sinks: list[int], rows: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
        """Moves sinks out of `rows` into the exact rows, as far as those reach."""
        for cell in (cell for cell in sinks if cell in rows):
            free = first_true(head.exact_cell == NOBODY)
            if free is not None:
                k, v = rows.pop(cell)
                head.exact_cell[free] = cell
                head.k.exact[free] = codec.clean(k).astype(np.float16)
                head.v.exact[free] = codec.clean(v).astype(np.float16)

    def _first_scores(
        self, head: Head, fresh: np.ndarray, keys: np.ndarray, mass: np.ndarray, queries: policy.Queries
    ) -> dict[int, float]:
        """Each new cell's score when it is stored. keys: [n, dim] of the micro-batch; mass: float64 [n_kv]."""
        reach = np.zeros(self.shape.n_cells)
        reach[: len(mass)] = mass
        block = int(fresh.min()) // BLOCK_CELLS - 1
        before = head.k_mean[block].astype(np.float32) if block >= 0 and self.config.center_keys else None
        return dict(zip(fresh.tolist(), policy.first_scores(self.config.policy, reach[fresh], keys, before, queries)))

    def _admit(
        self,
        layer: int,
        h: int,
        head: Head,
        cells: Cells,
        rows: dict[int, tuple[np.ndarray, np.ndarray]],
        mass: np.ndarray,
        first: dict[int, float],
        queries: policy.Queries,
    ) -> None:
        """Of a pool: ranks its rows and the new ones together; the losers are dropped, new ones out of `rows`."""
        if not is_pool(self.config, self.shape):
            return
        head.kept[list(rows)] = False
        old, new = np.flatnonzero(head.kept), list(rows)
        reach = np.zeros(self.shape.n_cells)
        reach[: len(mass)] = mass
        head.row_mass[old] = policy.folded(self.config.policy, head.row_mass[old], reach[old], len(first))
        if policy.reads_queries(self.config.policy) and len(old):
            head.row_mass[old] = queries.expected_logit(np.stack([head.load(int(cell))[0] for cell in old]))
        head.row_mass[new] = [first[cell] for cell in new]
        candidates = np.concatenate([old, np.array(new, int)])
        norms = [head.v.norm_of(int(cell)) for cell in old] + [head.v.norm_as_stored(rows[cell][1]) for cell in new]
        scores = head.row_mass[candidates].copy()
        guarded = cells.windowed[candidates] | cells.sink[candidates]
        stays = self._rank(layer, h, cells, candidates, scores, np.array(norms, np.float32), guarded, self.n_rows)
        for cell in candidates[~stays]:
            head.release(int(cell))
            rows.pop(int(cell), None)
            self.demotions += 1
        head.kept[candidates] = stays

    def _choose(
        self,
        layer: int,
        h: int,
        head: Head,
        cells: Cells,
        rows: dict[int, tuple[np.ndarray, np.ndarray]],
        mass: np.ndarray,
        first: dict[int, float],
        queries: policy.Queries,
    ) -> dict[int, float]:
        """Ranks refined rows and new ones together and demotes the losers.

        mass: float64 [n_kv], what this step's queries gave each cell. first: the scores of the step's rows. Returns the new
        cells that win, with their score.
        """
        reach = np.zeros(self.shape.n_cells)
        reach[: len(mass)] = mass
        held = head.slot_cell != NOBODY
        old, new = head.slot_cell[held].astype(int), list(rows)
        head.slot_mass[held] = policy.folded(self.config.policy, head.slot_mass[held], reach[old], len(first))
        if policy.reads_queries(self.config.policy) and len(old):
            head.slot_mass[held] = queries.expected_logit(np.stack([head.load(int(cell))[0] for cell in old]))
        candidates = np.concatenate([old, np.array(new, int)])
        weights = np.concatenate([head.slot_mass[held], np.array([first[cell] for cell in new], np.float32)])
        norms = [head.v.norm_of(int(cell)) for cell in old] + [head.v.norm_as_stored(rows[cell][1]) for cell in new]
        windowed = cells.windowed[candidates]
        stays = self._rank(layer, h, cells, candidates, weights, np.array(norms, np.float32), windowed, self.n_slots)
        for cell in old[~stays[: len(old)]]:
            head.release(int(cell))
            self.demotions += 1
        winners = np.flatnonzero(stays[len(old) :]) + len(old)
        return {int(candidates[i]): float(weights[i]) for i in winners}

    def _rank(
        self,
        layer: int,
        h: int,
        cells: Cells,
        candidates: np.ndarray,
        mass: np.ndarray,
        norms: np.ndarray,
        guarded: np.ndarray,
        n: int,
    ) -> np.ndarray:
        born = cells.born[candidates]
        query = policy.Query(layer, h, cells.now, candidates.astype(np.uint32), born, mass, norms)
        alive = cells.batch - cells.seen[candidates].astype(int) <= FORGOTTEN_AFTER
        priority = policy.priority(self.config.policy, query)
        # A window that no query has seen for long is a removed sequence's: it protects nothing any more.
        return policy.keep(priority, guarded & alive, alive, born, n)

    def _write_row(self, head: Head, cell: int, k: np.ndarray, v: np.ndarray, mass: float | None) -> None:
        slot = None
        if mass is not None:
            slot = first_true(head.slot_cell == NOBODY)
            head.slot_cell[slot], head.slot_mass[slot] = cell, mass
        head.rewrite(cell, 0, k)
        head.rewrite(cell, 1, v)

    # --- state ------------------------------------------------------------------------------------------------------

    def write(self, layer: int, value: int, stream: int, first_cell: int, rows: np.ndarray) -> None:
        """Stores keys (value 0) or values (1) of cells from first_cell on, float32 [n, n_head_kv, dim].

        A row that is there keeps its precision; a new one is refined while a slot is free.
        """
        fresh = np.arange(first_cell, first_cell + len(rows))
        cells = self.cells[layer][stream]
        new = fresh[cells.born[fresh] == 0]
        heads = self.heads[layer][stream]
        for head in heads:
            head.settled = True
        rows = np.stack([self._entered(head, value, rows[:, h]) for h, head in enumerate(heads)], axis=1)
        if value == 0:
            self._settle_means(layer, stream, fresh, rows)
        for cell in new:
            cells.now += 1
            cells.born[cell] = cells.now
        cells.seen[new] = cells.batch
        for h, head in enumerate(self.heads[layer][stream]):
            present = self._admit_written(head, fresh, new, rows[:, h])
            for cell in present[np.isin(present, new)]:
                slot = first_true(head.slot_cell == NOBODY)
                if slot is not None:
                    head.slot_cell[slot], head.slot_mass[slot] = cell, 0.0
            for cell in present:
                head.rewrite(int(cell), value, rows[cell - first_cell, h])

    def _admit_written(self, head: Head, fresh: np.ndarray, new: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The written cells whose rows are there. Of a pool: rows of zeros are dropped tokens'; of the others the last fit."""
        if is_pool(self.config, self.shape):
            wanted = [cell for cell in new if rows[cell - fresh[0]].any()]
            free = self.n_rows - int(head.kept.sum())
            head.kept[wanted[max(0, len(wanted) - free) :]] = True
            head.row_mass[new] = 0
        return np.asarray(fresh[head.kept[fresh]])

    def copy_stream(self, source: int, target: int) -> None:
        """Makes one stream the exact copy of another, in every layer."""
        for layer in range(self.shape.n_layer):
            self.heads[layer][target] = copy.deepcopy(self.heads[layer][source])
            self.cells[layer][target] = copy.deepcopy(self.cells[layer][source])
            self.queries[layer][target] = copy.deepcopy(self.queries[layer][source])

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, layer: int, value: int, stream: int, first_cell: int, n: int) -> np.ndarray:
        """Keys (value 0) or values (1) as the cache believes them, float32 [n, n_head_kv, dim]; empty cells are 0."""
        s = self.shape
        out = np.zeros((n, s.n_head_kv, s.head_dim_v if value else s.head_dim_k), np.float32)
        for i in range(n):
            if self.cells[layer][stream].born[first_cell + i]:
                for h, head in enumerate(self.heads[layer][stream]):
                    if not head.kept[first_cell + i]:
                        continue
                    out[i, h] = self._load(head, first_cell + i)[value]
        return out

    def precision(self, layer: int, stream: int) -> np.ndarray:
        """Bits of each row's key, uint8 [n_head_kv, n_cells]: 16, refined_bits, the base's, or 0 for an empty cell.

        With leading channels the base has the mean over its values, rounded up.
        """
        bits = np.zeros((self.shape.n_head_kv, self.shape.n_cells), np.uint8)
        row = self.heads[layer][stream][0].k
        bits[:, self.cells[layer][stream].born > 0] = -(-row.base.shape[1] * 8 // row.dim)
        for h, head in enumerate(self.heads[layer][stream]):
            bits[h, ~head.kept] = 0
            bits[h, head.slot_cell[head.slot_cell != NOBODY]] = self.config.refined_bits
            bits[h, head.exact_cell[head.exact_cell != NOBODY]] = 16
        return bits

    def scores(self, layer: int, stream: int) -> np.ndarray:
        """Attention mass of refined rows, and of all rows of a pool, float32 [n_head_kv, n_cells]; 0 elsewhere."""
        out = np.zeros((self.shape.n_head_kv, self.shape.n_cells), np.float32)
        for h, head in enumerate(self.heads[layer][stream]):
            held = head.slot_cell != NOBODY
            out[h, head.slot_cell[held]] = head.slot_mass[held]
            if is_pool(self.config, self.shape):
                out[h] = np.where(head.kept, head.row_mass, 0)
        return out


def _as_f16(rows: np.ndarray) -> np.ndarray:
    """Float32 rows rounded to the nearest float16, as they wait in the micro-batch."""
    return codec.clean(rows).astype(np.float16).astype(np.float32)
