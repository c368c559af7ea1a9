"""The block bootstrap: its arithmetic, and whether its intervals hold what they say they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp.eval import bootstrap
from mikv_cpp.eval.bootstrap import Pairs, cut_blocks, difference, draw, ratio, weighted_quantile


def test_blocks_do_not_reach_over_the_end_of_a_passage():
    assert cut_blocks([5, 2, 4], 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4]


def test_samples_are_as_long_as_what_was_measured_and_the_same_each_time():
    drawn = draw(12, 50)
    assert drawn.sum(axis=1).tolist() == [12] * 50
    np.testing.assert_array_equal(drawn, draw(12, 50))


@given(
    values=st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 4)), min_size=1, max_size=30).filter(
        lambda pairs: any(count for _, count in pairs)
    ),
    share=st.floats(0, 1),
)
def test_weighted_quantile_is_numpys_of_repeated_values(values, share):
    ordered, counts = (np.array(part) for part in zip(*sorted(values)))
    expected = np.quantile(np.repeat(ordered, counts), share)
    assert weighted_quantile(ordered, counts, share) == pytest.approx(expected, abs=1e-9)


def test_samples_against_the_plain_definition():
    source = np.random.default_rng(3)
    a, b = source.gamma(0.5, 1, (2, 203))
    blocks = cut_blocks([103, 100], 16)
    pairs = Pairs(a, b, blocks)
    means, tails = pairs.means(), pairs.tails()
    assert (means[0][0], means[1][0]) == pytest.approx((a.mean(), b.mean()))
    assert tails[1][0] == np.quantile(b, 0.999)
    for sample, counts in enumerate(draw(int(blocks.max()) + 1)[:20], 1):
        drawn = np.concatenate([b[blocks == block] for block, count in enumerate(counts) for _ in range(count)])
        assert means[1][sample] == pytest.approx(drawn.mean())
        assert tails[1][sample] == pytest.approx(np.quantile(drawn, 0.999))


def correlated(source, n, length=8):
    """Values like KL: positive, with a long tail, alike over a few positions."""
    return np.exp(np.convolve(source.normal(0, 1, n + length - 1), np.ones(length) / np.sqrt(length), "valid"))


@pytest.mark.parametrize(("block", "least", "most"), [(bootstrap.BLOCK, 0.88, 0.995), (1, 0.0, 0.75)])
def test_intervals_hold_the_truth_as_often_as_they_say_and_single_positions_would_not(monkeypatch, block, least, most):
    """95 % intervals of correlated values: blocks keep them honest, and blocks of one position (a seeded fault) do not."""
    monkeypatch.setattr(bootstrap, "draw", lambda n, _samples=0, drawn=draw: drawn(n, 300))
    truth = np.exp(0.5)  # the mean of exp of a unit normal
    held = 0
    for seed in range(100):
        values = correlated(np.random.default_rng(seed), 2048)
        estimate = difference(*Pairs(values, np.zeros(2048), cut_blocks([2048], block)).means())
        held += estimate.low <= truth <= estimate.high
    assert least <= held / 100 <= most


def test_ratio_to_nothing_is_none():
    assert ratio(np.ones(3), np.zeros(3)) is None
    found = ratio(np.array([1.0, 1.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.525, 1.475))
