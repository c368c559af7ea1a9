"""Prompts: which queries stand for all of a micro-batch, and that scores are measured on just these."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_cache import NativeCache
from scenes import Scene, View
from tier_check import attention_of

from mikv_cpp.reference import policy
from mikv_cpp.reference.layout import Config, Shape

SHAPE = Shape(n_head_kv=2, n_cells=400, head_dim_k=32, head_dim_v=32)


@given(st.sampled_from(["h2o", "probes"]), st.integers(1, 600), st.integers(0, 2**32 - 1))
def test_probes_are_in_order_and_end_with_the_last(name: str, n: int, now: int):
    tokens = policy.probe_tokens(name, n, now)
    assert tokens == sorted(set(tokens))
    n_recent = -(-n // 20) if name == "probes" else min(n, 8)
    assert tokens[len(tokens) - n_recent :] == list(range(n - n_recent, n))
    assert len(tokens) == min(n, 2 * n_recent if name == "probes" else 24)
    assert tokens[0] >= 0


def test_each_batch_draws_anew_and_evenly():
    drawn = [policy.probe_tokens("probes", 100, now)[:5] for now in range(2000)]
    counts = np.bincount(np.concatenate(drawn), minlength=95)
    assert len(counts) == 95
    assert abs(counts - 2000 * 5 / 95).max() < 5 * np.sqrt(2000 * 5 / 95)  # five standard deviations
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("name", ["h2o", "probes", "clamped", "rdkv"])
def test_scores_of_a_prompt_are_those_of_its_probes(name: str):
    with NativeCache(Config(policy=name, refined_share=1.0, center_keys=False), SHAPE) as cache:
        scene = Scene(SHAPE, View(gqa=2))
        want = np.zeros((SHAPE.n_head_kv, SHAPE.n_cells))
        now = 0
        for n in (100, 61, 37, 150):
            step = scene.step([0] * n)
            p = attention_of(cache, step)
            cache.step(0, step)
            now += n
            probes = policy.probe_tokens(name, n, now)
            drawn = policy.drawn_by(name)(p[probes], SHAPE.n_head_kv)
            drawn *= 1 if policy.reads_most(name) else n / len(probes)
            want[:, : drawn.shape[1]] = policy.folded(name, want[:, : drawn.shape[1]], drawn, n)
            assert np.allclose(cache.scores(0, 0), want, rtol=1e-3, atol=1e-5), np.abs(cache.scores(0, 0) - want).max()


def test_expected_attention_probes_nothing_and_knows_all_queries():
    with NativeCache(Config(policy="expected", refined_share=0.5, center_keys=False), SHAPE) as cache:
        scene = Scene(SHAPE, View(gqa=3))
        queries = [policy.Queries(0, np.zeros(32), np.zeros(32)) for _ in range(SHAPE.n_head_kv)]
        for n in (100, 150, 40):
            step = scene.step([0] * n)
            for head, own in enumerate(np.split(step.q[0] * step.scale, SHAPE.n_head_kv, axis=1)):
                queries[head].add(own)
            cache.step(0, step)
        stats = cache.stats()
        assert stats.mass_exact + stats.mass_refined + stats.mass_base == 0
        keys, refined = cache.read(0, 0, 0, 0, 290), cache.precision(0, 0)[:, :290] == 8
        for head in range(SHAPE.n_head_kv):
            want = queries[head].expected_logit(keys[:, head])
            new = refined[head].copy()
            new[:250] = False  # rows of the last batch were scored as they were before rounding
            old = refined[head] & ~new
            got = cache.scores(0, 0)[head, :290]
            assert np.allclose(got[old], want[old], rtol=1e-3, atol=1e-4)
            assert np.allclose(got[new], want[new], rtol=0.1, atol=0.1)
