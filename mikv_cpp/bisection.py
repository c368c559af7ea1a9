"""The largest number that fits, where whatever is smaller than one that fits fits too."""

from __future__ import annotations

from collections.abc import Callable


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest n of 1 .. most with fits(n); 0 if there is none. Asks about log2(most) of them, and never about 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
