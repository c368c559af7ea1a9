"""What happens to rows between the model's space and the cache's: k' = H(b k), q' = H(q / b), v' = H(v), padded."""

from __future__ import annotations

import functools
from typing import NamedTuple, Union

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


class Axes(NamedTuple):
    """What keys and queries are turned into: a basis, or (unit vectors) another order of the channels."""

    matrix: np.ndarray  #: float64 [..., head_dim, head_dim], axes in rows


#: What a head settles on: factors [..., head_dim], axes, or nothing.
Settled = Union[np.ndarray, Axes, None]


def settle(balance: str, q: np.ndarray, k: np.ndarray) -> Settled:
    """What the first micro-batch makes of it, queries [n_q, dim] and keys [n_k, dim]."""
    if balance == "alike":
        return alike(k)
    if balance in ("max", "rms"):
        return balancer(balance, q, k)
    return Axes(basis(k) if balance == "basis" else np.eye(k.shape[-1])[order(balance, q, k)])


def stacked(heads: list[Settled], times: int = 1) -> Settled:
    """Of several heads, each as often as it has query heads: [n_head, ...]."""
    if isinstance(heads[0], Axes):
        return Axes(np.repeat(np.stack([head.matrix for head in heads if isinstance(head, Axes)]), times, axis=0))
    return None if heads[0] is None else np.repeat(np.stack(heads), times, axis=0)  # type: ignore[arg-type]


def rotation(n: int, lead: int) -> np.ndarray:
    """H of the leading channels, and H of the rest."""
    out = np.zeros((n, n))
    out[:lead, :lead], out[lead:, lead:] = hadamard(lead), hadamard(n - lead)
    return out


def enter(rows: np.ndarray, rotate: bool, b: Settled = None, lead: int = 0) -> np.ndarray:
    """Keys or values, float [..., head_dim], in the cache's space, float64 [..., row_dim].

    lead: channels that are rotated apart from the rest.
    """
    dim = rows.shape[-1]
    x = np.zeros((*rows.shape[:-1], row_dim(dim)))
    if isinstance(b, Axes):
        x[..., :dim] = np.einsum("...d,...ed->...e", np.asarray(rows, np.float64), b.matrix)
    else:
        x[..., :dim] = rows if b is None else np.asarray(rows, np.float64) * b
    return x @ rotation(x.shape[-1], lead) if rotate else x


def enter_query(rows: np.ndarray, rotate: bool, b: Settled = None, lead: int = 0) -> np.ndarray:
    """Queries, as `enter`: divided by factors, turned like keys."""
    return enter(rows, rotate, b if b is None or isinstance(b, Axes) else 1 / b, lead)


def leave(rows: np.ndarray, dim: int, rotate: bool, b: Settled = None, lead: int = 0) -> np.ndarray:
    """The inverse of `enter`: float64 [..., dim]."""
    x = np.asarray(rows, np.float64)
    x = (x @ rotation(x.shape[-1], lead) if rotate else x)[..., :dim]
    if isinstance(b, Axes):
        return np.asarray(np.einsum("...e,...ed->...d", x, b.matrix))
    return x if b is None else x / b


def order(balance: str, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Channels int [dim] by salience, mean |q| times the range of k (MixKVQ, arXiv 2512.19206), the largest first.

    "range": by the range of k alone.
    """
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    salience = np.ptp(k, axis=0) * (np.abs(q).sum(axis=0) if balance == "salience" else 1.0)
    return np.argsort(-np.where(np.isfinite(salience), salience, -1.0), kind="stable")


def alike(k: np.ndarray) -> np.ndarray:
    """Factors that give all channels of keys [n, dim] one range, float64 [dim] with the values of float16.

    1 / range, times the geometric mean of the ranges; a channel without a range counts as 1.
    """
    ranges = np.ptp(np.asarray(k, np.float64), axis=0)
    ranges = np.where(np.isfinite(ranges) & (ranges > 0), ranges, 1.0)
    b = np.clip(np.exp(np.log(ranges).mean()) / ranges, 1 / 1024, 1024)
    return np.asarray(b.astype(np.float32).astype(np.float16).astype(np.float64))


def basis(k: np.ndarray) -> np.ndarray:
    """Principal axes of keys [n, dim] about their mean, float64 [dim, dim] in rows, the largest variance first.

    Each axis's largest component is positive.
    """
    k = np.asarray(k, np.float64)
    axes = np.linalg.eigh(np.cov(k, rowvar=False))[1].T[::-1]
    most = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return np.asarray(axes * np.sign(most))


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
