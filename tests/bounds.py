"""How far a kernel's attention may be from float64, derived from what it rounds.

u = 2^-24 is float32's unit roundoff. Notation for one query and one cell i: logit s_i, probability p_i, value v_i,
output o = sum p_i v_i.

1. The logit. A dot product of D float32 terms, in any order and in any split of a key into mean, minimum and codes, is
   off by at most (D + 8) u sum_d |q_d| m, where m bounds every part of the key on the way: |mean| + |min| + range. The
   8 covers the scale, the decoding and the sum of the parts; ALiBi and soft-capping round a handful of times more, in
   proportion to |s| and to the mask. Call the sum e_i.
2. The softmax. exp(s + e) / sum exp(s + e) is p times at most exp(2 max e); a vectorised exp may be off by 8 ulp, and
   its argument s - max is itself rounded.
3. The weighted sum. n_kv float32 terms, numerator and denominator: 2 (n_kv + 8) u; decoding a value: 4 u (|min| + range).

A kernel set that rounds queries to eight bits, in steps of max|q| / 127 for each group, meets packed keys (not exact ones,
not the step's own) with an error vector err, |err_d| at most half a step h_d, the same for all cells:
4. It multiplies y_id, the key minus its mean and minus the middle of its group's range, for the sum of q is kept apart.
   To first order the output moves by sum_d err_d C_d, C_d = sum of p_i y_id (v_i - o) over packed cells: a hard bound of
   sum_d h_d |C_d|. The second order takes Hoeffding's inequality for |err . y_i| < 6 |h y_i|, false once in 3e7.
5. The mean of a block is the cache's secret. The average of the block's rows stands for it; the true one lies within the
   block's rows too, so y is off by at most 2 B_d (B_d: the rows' largest distance from their average; twice, because the
   middle moves as well), the same for all packed cells of a block: 2 sum_d h_d B_d |sum p_i (v_i - o)|, for each block.
   Where a block's rows were replaced since it got its mean, that mean may lie further off, by `drift`: it adds to B_d.
6. A decoded token's weights of packed rows, times the rows' range, are rounded to 15 bits of the largest in a tile of 64
   cells, by the sets that multiply words: half a unit r = max p * max range / 32767 each, times a code of at most 1. By
   Hoeffding's inequality the sum over n cells is below 3 sqrt(n) r, but for one time in 3e7. range <= 4 max|v|, as in `parts`.
7. A cache whose space is not the model's (mikv_cpp.reference.transform) is held to all this in its own space, where H and
   the balancer, in float32, have moved queries, keys (on their way in, and out and in again for this check) and values by at
   most (log2 D + 3) u of their norms each: log2 D sums and two products; a basis adds D sums. In the model's space an
   output's error is at most |H| times that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from mikv_cpp.reference import attention
from mikv_cpp.reference.cache import Step

U = 2.0**-24

#: Kernel sets that round queries to eight bits.
ROUNDS_QUERIES = frozenset({"avx2", "avx512", "neon"})

#: Kernel sets that round weights to 15 bits, for at most so many query rows of a KV head.
ROUNDS_WEIGHTS = frozenset({"avx2", "avx512"})
FEW_ROWS = 24
TILE_CELLS = 64

BLOCK_CELLS = 128


@dataclass(frozen=True)
class Visible:
    """What the cells of one stream hold while a step attends."""

    k: np.ndarray  # float [n_kv, n_head_kv, head_dim_k]
    v: np.ndarray  # float [n_kv, n_head_kv, head_dim_v]
    packed: np.ndarray  # bool [n_head_kv, n_kv], keys that are read from codes
    group: int
    centred: bool
    drift: float = 0.0
    dropped: Optional[np.ndarray] = None  # bool [n_head_kv, n_kv], rows that a pool does not keep
    passes: float = 0.0  # log2 D + 3 in a space of the cache's own

    @property
    def parts(self) -> float:
        """|mean| + |min| + range of the keys, at most.

        A mean is of rows that were stored before: no larger than they. So |min| <= 2 max|k| and range <= 4 max|k|.
        """
        return 7 * float(np.nanmax(np.abs(self.k), initial=0))


def attention_bound(step: Step, i: int, rows: Visible, kernel: str) -> tuple[np.ndarray, np.ndarray]:
    """Expected output and its bound, both float64 [n, n_head, head_dim_v], of the step's i-th stream."""
    q, mask = step.q[i], step.mask[i]
    scores = attention.logits(q, rows.k, mask, step.scale, step.max_bias, step.logit_softcap, rows.dropped)
    p = attention.probabilities(scores, step.sinks)
    out = attention.weigh(p, rows.v)
    size = np.abs(np.nan_to_num(rows.v.astype(np.float64)))
    n_kv = mask.shape[-1]
    logit_error = _logit_error(step, q, mask, scores, rows.parts) + _turning_error(step, q, rows)
    relative = np.expm1(2 * logit_error)[..., None] + (2 * (n_kv + 8) + 16) * U
    bound = relative * attention.weigh(p, size) + 16 * U * size.max(initial=0) + 1e-30
    bound = bound + 3 * rows.passes * U * np.linalg.norm(size, axis=-1).max(initial=0)
    if kernel in ROUNDS_QUERIES:
        bound = bound + _query_rounding(step, q, rows, p, out)
    if kernel in ROUNDS_WEIGHTS and q.shape[0] * q.shape[1] // rows.k.shape[1] <= FEW_ROWS:
        bound = bound + _weight_rounding(p, size.max(initial=0))[..., None]
    return out, np.where(np.isfinite(scores).any(axis=-1)[..., None], bound, 0.0)


def _logit_error(step: Step, q: np.ndarray, mask: np.ndarray, scores: np.ndarray, parts: float) -> np.ndarray:
    """Points 1 and 2: largest error of a visible logit, float64 [n, n_head]."""
    dim = q.shape[-1]
    dot = (dim + 8) * U * np.abs(q).sum(axis=-1) * step.scale * parts
    size = np.abs(np.where(np.isfinite(scores), scores, 0)).max(axis=-1, initial=0)
    bias = np.abs(np.where(np.isfinite(mask), mask, 0)).astype(np.float64).max(axis=-1, initial=0)
    return dot + 8 * U * (2 * size + 2 * step.logit_softcap + 2 * bias[:, None])


def _turning_error(step: Step, q: np.ndarray, rows: Visible) -> np.ndarray:
    """Point 7: of a logit, float64 [n, n_head]."""
    reach = np.linalg.norm(np.nan_to_num(rows.k.astype(np.float64)), axis=-1).max(initial=0)
    return 4 * rows.passes * U * step.scale * reach * np.linalg.norm(q, axis=-1)


def _query_rounding(step: Step, q: np.ndarray, rows: Visible, p: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Points 4 and 5, float64 [n, n_head, head_dim_v]."""
    n, n_head, dim = q.shape
    n_head_kv = rows.k.shape[1]
    half = np.abs(q.reshape(n, n_head, -1, rows.group)).max(axis=-1) / 127 / 2 * step.scale
    half = np.repeat(half, rows.group, axis=-1)
    bound = np.zeros_like(out)
    for kv in range(n_head_kv):
        values = np.nan_to_num(rows.v[:, kv].astype(np.float64))
        blocks = [_middled(rows, kv, first) for first in range(0, len(values), BLOCK_CELLS)]
        for head in range(kv * n_head // n_head_kv, (kv + 1) * n_head // n_head_kv):
            for t in range(n):
                first_order = np.zeros((dim, values.shape[1]))
                for cells, y, spread in (block for block in blocks if block[0].size):
                    weight = p[t, head, cells]
                    pull = weight[:, None] * (values[cells] - out[t, head])
                    first_order += y.T @ pull
                    bound[t, head] += 2 * (half[t, head] @ spread) * np.abs(pull.sum(axis=0))
                    swing = np.expm1(6 * np.sqrt(((np.abs(y) + 2 * rows.drift) ** 2) @ (half[t, head] ** 2))) ** 2
                    bound[t, head] += swing @ np.abs(pull)
                bound[t, head] += half[t, head] @ np.abs(first_order)
    return bound


def _weight_rounding(p: np.ndarray, largest: float) -> np.ndarray:
    """Point 6, float64 [n, n_head], for probabilities [n, n_head, n_kv] of values up to `largest`."""
    tiles = [p[..., first : first + TILE_CELLS].max(axis=-1) for first in range(0, p.shape[-1], TILE_CELLS)]
    units = np.array(tiles) * 4 * largest / 32767
    bound: np.ndarray = 3 * np.sqrt(TILE_CELLS * (units**2).sum(axis=0))
    return bound


def _middled(rows: Visible, kv: int, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed cells of a block, their y (point 4) and B_d (point 5; 0 without centring)."""
    cells = first + np.flatnonzero(rows.packed[kv, first : first + BLOCK_CELLS])
    y = rows.k[cells, kv].astype(np.float64)
    spread = np.zeros(y.shape[1])
    if rows.centred and len(cells):
        y = y - y.mean(axis=0)
        spread = np.abs(y).max(axis=0) + rows.drift
    grouped = y.reshape(len(cells), y.shape[1] // rows.group, rows.group)
    middle = (grouped.max(axis=-1, keepdims=True) + grouped.min(axis=-1, keepdims=True)) / 2
    return cells, (grouped - middle).reshape(y.shape), spread
