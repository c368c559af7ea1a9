"""Policies: which rows are refined when not all can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

SNAP_REACH = 3
WINDOW_HALF_LIFE = 64.0
MEAN_ROWS = 8


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


def folded(name: str, score: np.ndarray, mass: np.ndarray, n_queries: int) -> np.ndarray:
    """Scores of rows [n] after a micro-batch of n_queries gave them `mass` more attention."""
    plain = name.split(BY_VALUE, maxsplit=1)[0]
    if plain == "snapkv":
        return np.asarray(score * 2.0 ** (-n_queries / WINDOW_HALF_LIFE) + mass)
    if plain == "peak":
        return np.asarray(np.maximum(score, mass / n_queries))
    if plain == "keydiff":
        return np.asarray(score)
    return np.asarray(score + mass)


def first_scores(name: str, mass: np.ndarray, keys: np.ndarray, mean_before: np.ndarray | None) -> np.ndarray:
    """Scores of a micro-batch's rows [n] when they are stored.

    keys: [n, dim]. mean_before: [dim], the mean key of the block before, which counts for fewer than MEAN_ROWS keys.
    """
    if name.split(BY_VALUE, maxsplit=1)[0] != "keydiff":
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
