"""Policies: which rows are refined when not all can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np


@dataclass(frozen=True)
class Query:
    """The question put to a policy: n rows of one KV head (arrays [n], as in mikv_policy_query)."""

    layer: int
    head: int
    now: int
    cell: np.ndarray
    born: np.ndarray
    mass: np.ndarray


def h2o(query: Query) -> np.ndarray:
    """The rows that have drawn most attention since they were stored."""
    return np.asarray(query.mass, np.float32)


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


POLICIES: dict[str, Callable[[Query], np.ndarray]] = {"h2o": h2o, "recent": recent, "random": random}


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
