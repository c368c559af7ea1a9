"""What happens to rows between the model's space and the cache's: k' = H(b k), q' = H(q / b), v' = H(v), padded."""

from __future__ import annotations

import functools

import numpy as np

ENOUGH_TOKENS = 32  #: of a micro-batch that tells what channels reach


def row_dim(head_dim: int) -> int:
    """Values that a row of head_dim values takes in the cache: groups are of 32 or 64."""
    return -(-head_dim // 32) * 32


@functools.cache
def hadamard(n: int) -> np.ndarray:
    """H, float64 [n, n]: orthonormal Walsh-Hadamard blocks, the largest powers of two that fit one after another."""
    out = np.zeros((n, n))
    begin = 0
    while begin < n:
        block = 1 << ((n - begin).bit_length() - 1)
        i = np.arange(block)
        odd = np.vectorize(lambda bits: bin(bits).count("1") % 2)(i[:, None] & i[None, :])
        out[begin : begin + block, begin : begin + block] = (1 - 2 * odd) / np.sqrt(block)
        begin += block
    out.flags.writeable = False  # one array for all callers
    return out


def enter(rows: np.ndarray, rotate: bool, b: np.ndarray | None = None) -> np.ndarray:
    """Keys or values, float [..., head_dim], in the cache's space, float64 [..., row_dim]. b: [head_dim] or None."""
    dim = rows.shape[-1]
    x = np.zeros((*rows.shape[:-1], row_dim(dim)))
    x[..., :dim] = rows if b is None else np.asarray(rows, np.float64) * b
    return x @ hadamard(x.shape[-1]) if rotate else x


def enter_query(rows: np.ndarray, rotate: bool, b: np.ndarray | None = None) -> np.ndarray:
    """Queries, as `enter`."""
    return enter(rows, rotate, None if b is None else 1 / b)


def leave(rows: np.ndarray, dim: int, rotate: bool, b: np.ndarray | None = None) -> np.ndarray:
    """The inverse of `enter`: float64 [..., dim]."""
    x = np.asarray(rows, np.float64)
    x = (x @ hadamard(x.shape[-1]) if rotate else x)[..., :dim]
    return x if b is None else x / b


def balancer(balance: str, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """MiKV's channel balancer (arXiv 2402.18096, equations 2 to 4), float64 [dim] with the values of float16.

    q: [n_q, dim], k: [n_k, dim]. "max": sqrt(max |q| / max |k|). "rms": the ratio of root mean squares to the power 0.2, over
    its geometric mean; 1 for all channels if none is 1.2 times off their mean, up or down. A channel that is zero throughout
    counts as 1.
    """
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    if balance == "max":
        reach_q, reach_k, power = np.abs(q).max(axis=0), np.abs(k).max(axis=0), 0.5
    else:
        reach_q, reach_k, power = np.sqrt((q**2).mean(axis=0)), np.sqrt((k**2).mean(axis=0)), 0.2
    says = (reach_q > 0) & (reach_k > 0) & np.isfinite(reach_q) & np.isfinite(reach_k)
    b = np.where(says, np.where(says, reach_q, 1.0) / np.where(says, reach_k, 1.0), 1.0) ** power
    if balance == "rms":
        b = b / np.exp(np.log(b).mean())
        b = b if max(b.max() / b.mean(), b.mean() / b.min()) >= 1.2 else np.ones_like(b)
    return np.clip(b, 1 / 1024, 1024).astype(np.float32).astype(np.float16).astype(np.float64)
