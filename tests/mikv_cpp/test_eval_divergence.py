"""The arithmetic of scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mikv_cpp.eval.divergence import Scores, kl_rows, log_softmax


def test_log_softmax_and_kl_against_the_direct_formula():
    rows = np.random.default_rng(1).normal(0, 4, (2, 3, 50)).astype(np.float32)
    got = kl_rows(log_softmax(rows[0]), log_softmax(rows[1]))
    for index in range(3):
        p, q = ([math.exp(x) for x in row[index].tolist()] for row in rows)
        expected = sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q))
        assert got[index] == pytest.approx(expected, rel=1e-10)


def test_log_softmax_does_not_overflow():
    values = log_softmax(np.array([[90000.0, 0.0, -90000.0]], dtype=np.float32))
    assert values[0].tolist() == [0.0, -90000.0, -180000.0]


def test_summary_is_of_all_parts():
    nll, same_top = np.full(1001, math.log(20.0)), np.arange(1001) % 4 == 0
    whole = Scores(np.arange(1001.0), nll, same_top)
    parts = [Scores(whole.kl[part], nll[part], same_top[part]) for part in (slice(501), slice(501, None))]
    summary = Scores.joined(parts).summary()
    assert (summary["mean_kl"], summary["median_kl"], summary["kl_999"]) == (500.0, 500.0, 999.0)
    assert summary["mean_kl_error"] == pytest.approx(np.std(np.arange(1001), ddof=1) / math.sqrt(1001), rel=1e-6)
    assert summary["same_top"] == pytest.approx(251 / 1001)
    assert summary["ppl"] == pytest.approx(20.0)
