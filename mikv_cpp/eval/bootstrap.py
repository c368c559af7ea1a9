"""How sure a paired difference is: a block bootstrap over positions of text.

Neighbouring positions are alike, so blocks of consecutive positions are drawn, with replacement, and never single ones. Both
caches are drawn at the same positions. Intervals are those that hold the middle 95 % of what the drawn samples give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from mikv_cpp.eval.divergence import TAIL, Floats

BLOCK = 64  # positions; measured on SmolLM2, KL correlates by 0.0 to 0.45 with the next position and by 0.1 from 4 positions on
SAMPLES = 2000
SEED = 20240229
LEVEL = 0.95

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: Floats) -> Estimate:
        """From the value of what was measured and of each drawn sample."""
        low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high))

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def cut_blocks(lengths: Sequence[int], block: int) -> Counts:
    """The block that each position is in, [sum of lengths]: blocks of `block` positions; none reaches over a passage's end."""
    blocks, first = [], 0
    for n in lengths:
        own = np.arange(n) // block
        blocks.append(first + own)
        first += int(own[-1]) + 1
    return np.concatenate(blocks)


def draw(n_blocks: int, n_samples: int = SAMPLES) -> Counts:
    """How often each sample has each block, [n_samples, n_blocks]; the same draw each time."""
    source = np.random.Generator(np.random.PCG64(SEED))
    drawn = source.integers(0, n_blocks, (n_samples, n_blocks))
    return np.stack([np.bincount(row, minlength=n_blocks) for row in drawn])


class Pairs:
    """Two caches' values at the same positions [n], and the samples that are drawn of them."""

    def __init__(self, a: Floats, b: Floats, blocks: Counts) -> None:
        self.a, self.b, self._blocks = a, b, blocks
        self._drawn = draw(int(blocks.max()) + 1)

    def means(self) -> tuple[Floats, Floats]:
        """The mean of each, in what was measured (first) and in every sample."""
        counts = np.vstack([np.ones_like(self._drawn[:1]), self._drawn])
        lengths = counts @ np.bincount(self._blocks)
        a, b = (counts @ np.bincount(self._blocks, weights=values) / lengths for values in (self.a, self.b))
        return a, b

    def tails(self) -> tuple[Floats, Floats]:
        """The same of the 99.9 % quantile."""
        return self._quantiles(self.a), self._quantiles(self.b)

    def _quantiles(self, values: Floats) -> Floats:
        order = np.argsort(values, kind="stable")
        ordered, blocks = values[order], self._blocks[order]
        sampled = [weighted_quantile(ordered, counts[blocks], TAIL) for counts in self._drawn]
        return np.array([np.quantile(values, TAIL), *sampled])


def weighted_quantile(ordered: Floats, counts: Counts, share: float) -> float:
    """np.quantile of ascending values, each of them there as often as its count says."""
    ends = np.cumsum(counts)
    rank = share * (ends[-1] - 1)
    below, above = ordered[np.searchsorted(ends, [np.floor(rank), np.ceil(rank)], side="right")]
    return float(below + (above - below) * (rank - np.floor(rank)))


def difference(a: Floats, b: Floats) -> Estimate:
    """A - b of samples, the first of which is what was measured."""
    return Estimate.of(a[0] - b[0], a[1:] - b[1:])


def ratio(a: Floats, b: Floats) -> Optional[Estimate]:
    """A / b of the same; None where b is 0."""
    return Estimate.of(a[0] / b[0], a[1:] / b[1:]) if (b > 0).all() else None
