"""Policies: which rows are refined when not all can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from . import attention

SNAP_REACH = 3
WINDOW_HALF_LIFE = 64.0
MEAN_ROWS = 8
PROBES_RECENT, PROBES_SPREAD = 8, 16  #: queries of a micro-batch, its last ones and some before
DRAWN_PERCENT = 5  #: the same for "probes", which draws the latter


@dataclass(frozen=True)
class Query:
    """The question put to a policy: n rows of one KV head (arrays [n], as in mikv_policy_query)."""

    layer: int
    head: int
    now: int
    cell: np.ndarray
    born: np.ndarray
    mass: np.ndarray  # as the policy's fold keeps it
    value_norm: np.ndarray


@dataclass
class Queries:
    """What a KV head knows of its queries: how many there were, and of each channel the sum and the sum of squares."""

    n: int
    total: np.ndarray
    squares: np.ndarray

    def add(self, queries: np.ndarray) -> None:
        """Queries [..., dim], scaled as for the logits."""
        flat = queries.reshape(-1, queries.shape[-1]).astype(np.float64)
        self.n += len(flat)
        self.total += flat.sum(axis=0)
        self.squares += (flat**2).sum(axis=0)

    def expected_logit(self, keys: np.ndarray) -> np.ndarray:
        """Ln E[exp(q . k)] of keys [n, dim] for a Gaussian q with this mean and variance: mu . k + k' diag(variance) k / 2."""
        mean = self.total / self.n
        variance = np.maximum(0.0, self.squares / self.n - mean**2)
        return np.asarray(keys @ mean + 0.5 * keys.astype(np.float64) ** 2 @ variance)


def h2o(query: Query) -> np.ndarray:
    """The rows that have drawn most attention since they were stored."""
    return np.asarray(query.mass, np.float32)


def normalized(query: Query) -> np.ndarray:
    """The same per query that could see the row."""
    return np.asarray(query.mass / (query.now - query.born.astype(np.int64) + 1), np.float32)


def snapkv(query: Query) -> np.ndarray:
    """The most that a cell at most SNAP_REACH away has drawn lately."""
    near = np.abs(query.cell[:, None].astype(np.int64) - query.cell.astype(np.int64)) <= SNAP_REACH
    return np.asarray(np.where(near, query.mass, -np.inf).max(axis=1, initial=-np.inf), np.float32)


def clamped(query: Query) -> np.ndarray:
    """The most that one query gave a row, but no less than the mean of that over the rows."""
    return np.asarray(np.maximum(query.mass, query.mass.mean()), np.float32)


def rdkv(query: Query) -> np.ndarray:
    """Root mean square of the attention that queries which could see the row gave it; mass is the sum of squares."""
    return np.asarray(np.sqrt(normalized(query)), np.float32)


def expected(query: Query) -> np.ndarray:
    """The attention that queries like those so far will give, up to a common factor; mass is its logarithm."""
    return np.asarray(np.exp(query.mass - query.mass.max()), np.float32)


def recent(query: Query) -> np.ndarray:
    """The youngest rows."""
    return np.asarray(query.born, np.float32)


def random(query: Query) -> np.ndarray:
    """The control: a fixed hash of row and time of storing, 24 bits so that float32 holds it exactly."""
    word = np.uint64(0xFFFFFFFF)
    h = np.asarray(query.cell, np.uint64) * np.uint64(2654435761)
    h = h + np.uint64(query.layer * 40503 + query.head * 9973)
    h = (h + np.asarray(query.born, np.uint64) * np.uint64(2246822519)) & word
    h ^= h >> np.uint64(15)
    h = (h * np.uint64(2246822519)) & word
    h ^= h >> np.uint64(13)
    out: np.ndarray = (h >> np.uint64(8)).astype(np.float32)
    return out


POLICIES: dict[str, Callable[[Query], np.ndarray]] = {
    "h2o": h2o,
    "normalized": normalized,
    "snapkv": snapkv,
    "peak": h2o,
    "clamped": clamped,
    "probes": normalized,
    "expected": expected,
    "rdkv": rdkv,
    "keydiff": h2o,
    "recent": recent,
    "random": random,
}
BY_VALUE = "*v"


def priority(name: str, query: Query) -> np.ndarray:
    """float32 [n] by the policy of that name, times the value's norm where the name says so."""
    if name.endswith(BY_VALUE):
        return np.asarray(POLICIES[name[: -len(BY_VALUE)]](query) * query.value_norm, np.float32)
    return POLICIES[name](query)


def plain_name(name: str) -> str:
    """The policy's name without what says that the value's norm counts."""
    return name.split(BY_VALUE, maxsplit=1)[0]


def reads_most(name: str) -> bool:
    """Whether attention means the most that one query gave a row, and not the sum over the queries."""
    return plain_name(name) == "clamped"


def drawn_by(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """How attention [n_tokens, n_head, n_kv] becomes what a micro-batch gave each row [n_head_kv, n_kv]."""
    return attention.squares if plain_name(name) == "rdkv" else attention.most if reads_most(name) else attention.mass


def reads_queries(name: str) -> bool:
    """Whether scores are what is expected of the queries so far, at every choice anew."""
    return plain_name(name) == "expected"


def probe_tokens(name: str, n: int, now: int) -> list[int]:
    """Which of a prompt's n queries stand for all of them; `now` as in Query.

    The last 8 and 16 at even distances before; for "probes" the last 5 % and 5 % drawn by a fixed hash from those before.
    """
    drawn = plain_name(name) == "probes"
    percent = -(-n * DRAWN_PERCENT // 100)
    before = n - min(n, percent if drawn else PROBES_RECENT)
    n_spread = min(before, percent if drawn else PROBES_SPREAD)
    if drawn:
        order = sorted(range(before), key=lambda token: _mixed((token * 2654435761 + now * 2246822519) & 0xFFFFFFFF))
        spread = sorted(order[:n_spread])
    else:
        spread = [before * i // n_spread for i in range(n_spread)]
    return [*spread, *range(before, n)]


def _mixed(h: int) -> int:
    h ^= h >> 15
    h = h * 2246822519 & 0xFFFFFFFF
    return h ^ h >> 13


def folded(name: str, score: np.ndarray, mass: np.ndarray, n_queries: int) -> np.ndarray:
    """Scores of rows [n] after a micro-batch of n_queries gave them `mass` more attention (or the most: reads_most)."""
    plain = plain_name(name)
    if plain == "snapkv":
        return np.asarray(score * 2.0 ** (-n_queries / WINDOW_HALF_LIFE) + mass)
    if plain == "peak":
        return np.asarray(np.maximum(score, mass / n_queries))
    if plain == "clamped":
        return np.asarray(np.maximum(score, mass))
    if plain in ("keydiff", "expected"):
        return np.asarray(score)
    return np.asarray(score + mass)


def first_scores(name: str, mass: np.ndarray, keys: np.ndarray, mean_before: np.ndarray | None, queries: Queries) -> np.ndarray:
    """Scores of a micro-batch's rows [n] when they are stored.

    keys: [n, dim]. mean_before: [dim], the mean key of the block before, which counts for fewer than MEAN_ROWS keys. queries:
    of all micro-batches so far, this one included.
    """
    if reads_queries(name):
        return queries.expected_logit(keys)
    if plain_name(name) != "keydiff":
        return folded(name, np.zeros(len(mass)), mass, len(mass))
    mean = keys.mean(axis=0, dtype=np.float64)
    if len(keys) < MEAN_ROWS and mean_before is not None:
        mean = mean_before.astype(np.float64)
    norms = np.linalg.norm(keys.astype(np.float64), axis=1) * np.linalg.norm(mean)
    return np.asarray(1.0 - np.divide(keys @ mean, norms, out=np.zeros(len(keys)), where=norms > 0))


def keep(priority: np.ndarray, protected: np.ndarray, alive: np.ndarray, born: np.ndarray, n_slots: int) -> np.ndarray:
    """Which of n rows hold a refinement slot: bool [n], at most n_slots of them true.

    Protected rows (the recency window) come first, then rows that a query has seen lately, then the
    priority, and the younger of two equals.
    """
    order = np.lexsort((born, priority, alive, protected))
    chosen = np.zeros(len(priority), bool)
    if n_slots > 0:
        chosen[order[-n_slots:]] = True
    return chosen
