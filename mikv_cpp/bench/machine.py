"""What the machine gives: memory bandwidth, and how much memory this process took at most."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

import numpy as np

_COPY_BYTES = 1 << 27  # of each thread: beyond what caches hold
_ROUNDS = 5


def copy_gb_per_s(n_threads: int) -> float:
    """Bytes read and written per second by n_threads that copy arrays, the best of a few rounds, in GB/s."""
    pairs = [(np.ones(_COPY_BYTES, np.uint8), np.ones(_COPY_BYTES, np.uint8)) for _ in range(n_threads)]
    best = 0.0
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))  # NumPy lets go of the interpreter's lock
            best = max(best, 2 * n_threads * _COPY_BYTES / (time.perf_counter() - began) / 1e9)
    return best


def peak_bytes() -> Optional[int]:
    """Most physical memory that this process has held so far, mapped files included; None where the system does not say."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
