"""Attention in float64: the answer that every kernel is held against."""

from __future__ import annotations

import numpy as np


def alibi_slopes(n_head: int, max_bias: float) -> np.ndarray:
    """Factor of the mask for each query head, float64 [n_head]; all 1 where max_bias is 0.

    Press et al., "Train Short, Test Long": a geometric series over the largest power of two of heads, the
    odd terms of the series of twice as many for the rest.
    """
    if max_bias <= 0:
        return np.ones(n_head)
    whole = 2 ** int(np.floor(np.log2(n_head)))
    head = np.arange(n_head)
    first = 2.0 ** (-max_bias / whole * (head + 1))
    rest = 2.0 ** (-max_bias / 2 / whole * (2 * (head - whole) + 1))
    out: np.ndarray = np.where(head < whole, first, rest)
    return out


def logits(
    q: np.ndarray,
    k: np.ndarray,
    mask: np.ndarray,
    scale: float,
    max_bias: float = 0.0,
    logit_softcap: float = 0.0,
    dropped: np.ndarray | None = None,
) -> np.ndarray:
    """Scores float64 [n_tokens, n_head, n_kv], -inf where a query does not see a cell.

    q: [n_tokens, n_head, dim]; k: [n_kv, n_head_kv, dim]; mask: [n_tokens, n_kv], added (times the ALiBi slope).
    Rows of k that no query sees are never read: they may hold anything, NaN too. dropped: bool [n_head_kv, n_kv], rows that a
    pool does not keep: no query sees them either.
    """
    n_tokens, n_head, _ = q.shape
    n_kv, n_head_kv, _ = k.shape
    gone = np.zeros((n_head_kv, n_kv), bool) if dropped is None else dropped
    mask = np.asarray(mask, np.float64)
    seen = np.isfinite(mask)
    k = np.where((seen.any(axis=0)[:, None] & ~gone.T)[..., None], np.asarray(k, np.float64), 0.0)
    grouped = np.asarray(q, np.float64).reshape(n_tokens, n_head_kv, n_head // n_head_kv, -1)
    scores = np.einsum("tgrd,cgd->tgrc", grouped, k).reshape(n_tokens, n_head, n_kv) * scale
    if logit_softcap:
        scores = logit_softcap * np.tanh(scores / logit_softcap)
    bias = np.where(seen, mask, 0.0)[:, None, :] * alibi_slopes(n_head, max_bias)[None, :, None]
    shown = seen[:, None, :] & ~np.repeat(gone, n_head // n_head_kv, axis=0)[None]
    return np.where(shown, scores + bias, -np.inf)


def probabilities(scores: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    """Softmax over the last axis of scores [n_tokens, n_head, n_kv]; all 0 for a query that sees nothing.

    sinks: [n_head] or None: a logit that takes its share of the softmax and gives nothing to the output.
    """
    top = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, np.asarray(sinks, np.float64)[None, :, None])
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(np.asarray(sinks, np.float64)[None, :, None] - top)
    out: np.ndarray = weights / np.where(total == 0, 1.0, total)
    return out


def weigh(p: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Output float64 [n_tokens, n_head, dim] of probabilities p over values v [n_kv, n_head_kv, dim]."""
    n_tokens, n_head, n_kv = p.shape
    n_head_kv = v.shape[1]
    grouped = p.reshape(n_tokens, n_head_kv, n_head // n_head_kv, n_kv)
    wanted: np.ndarray = grouped.max(axis=(0, 2), initial=0.0) > 0  # [n_head_kv, n_kv]
    v = np.where(wanted.T[..., None], np.asarray(v, np.float64), 0.0)
    out: np.ndarray = np.einsum("tgrc,cgd->tgrd", grouped, v).reshape(n_tokens, n_head, -1)
    return out


def most(p: np.ndarray, n_head_kv: int) -> np.ndarray:
    """The most attention that one query of one head of a KV head gave each cell, float64 [n_head_kv, n_kv]."""
    n_tokens, n_head, n_kv = p.shape
    out: np.ndarray = p.reshape(n_tokens, n_head_kv, n_head // n_head_kv, n_kv).max(axis=(0, 2))
    return out


def squares(p: np.ndarray, n_head_kv: int) -> np.ndarray:
    """Squares of the probabilities summed as in `mass`, float64 [n_head_kv, n_kv]."""
    return mass(p**2, n_head_kv)


def mass(p: np.ndarray, n_head_kv: int) -> np.ndarray:
    """Attention mass float64 [n_head_kv, n_kv]: probabilities summed over queries and over the heads of a KV head."""
    n_tokens, n_head, n_kv = p.shape
    out: np.ndarray = p.reshape(n_tokens, n_head_kv, n_head // n_head_kv, n_kv).sum(axis=(0, 2))
    return out
