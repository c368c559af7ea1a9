"""How much faster, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def ratio_with_interval(own_s: Sequence[float], reference_s: Sequence[float]) -> tuple[float, float, float]:
    """Speed relative to the reference, round by round: median, and the 95 % bootstrap interval of that median."""
    ratios: npt.NDArray[np.float64] = np.asarray(reference_s) / np.asarray(own_s)
    draws = np.random.default_rng(0).integers(0, len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)
