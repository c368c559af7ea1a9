"""The arithmetic of scores: log probabilities, KL divergence, and what is said of many positions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TAIL = 0.999  # the quantile of the KL divergence that users notice


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> Floats:
    """Natural log of the softmax along the last axis, [n, vocabulary], in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_rows(reference: Floats, other: Floats) -> Floats:
    """KL(reference || other) in nats for each row of log probabilities [n, vocabulary] -> [n]."""
    result: Floats = (np.exp(reference) * (reference - other)).sum(axis=-1)
    return result


@dataclass(frozen=True)
class Scores:
    """What one cache scored at each position, in the order of the text.

    Attributes:
        kl: KL(f16 || cache) in nats, [n].
        nll: -ln of the probability of the token that follows, [n].
        same_top: whether the likeliest token is f16's, [n].
    """

    kl: Floats
    nll: Floats
    same_top: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The positions of all parts, one after the other."""
        return cls(
            np.concatenate([part.kl for part in parts]),
            np.concatenate([part.nll for part in parts]),
            np.concatenate([part.same_top for part in parts]),
        )

    def summary(self) -> dict[str, float]:
        """Mean, its standard error, median and 99.9 % of the KL divergence; share of the same top token; perplexity."""
        return {
            "mean_kl": float(self.kl.mean()),
            "mean_kl_error": float(self.kl.std() / np.sqrt(max(len(self.kl) - 1, 1))),
            "median_kl": float(np.median(self.kl)),
            "kl_999": float(np.quantile(self.kl, TAIL)),
            "same_top": float(self.same_top.mean()),
            "ppl": float(np.exp(self.nll.mean())),
        }
