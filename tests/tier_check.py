"""What the tiers have to do, as functions over any cache, so that a broken one can be tried too."""

from __future__ import annotations

import numpy as np
from scenes import Scene

from mikv_cpp.reference import attention, codec, policy
from mikv_cpp.reference.cache import Step


class Diary:
    """Runs steps on layer 0 of a cache and keeps what was given to it: the last row of each cell, and who is where."""

    def __init__(self, cache, scene: Scene):
        self.cache, self.scene = cache, scene
        s = scene.shape
        self.k = np.zeros((s.n_stream, s.n_cells, s.n_head_kv, s.head_dim_k), np.float32)
        self.v = np.zeros((s.n_stream, s.n_cells, s.n_head_kv, s.head_dim_v), np.float32)
        self.born = np.zeros((s.n_stream, s.n_cells), int)
        self.now = np.zeros(s.n_stream, int)

    def feed(self, sequences: list[int], cells=None) -> Step:
        """One micro-batch into stream 0."""
        step = self.scene.step(sequences, cells)
        self.run(step)
        return step

    def run(self, step: Step) -> np.ndarray:
        """A step as it is; its rows are noted."""
        out = self.cache.step(0, step)
        for i in range(step.cells.shape[0]):
            stream = step.first_stream + i
            for token, cell in enumerate(step.cells[i]):
                self.now[stream] += 1
                self.born[stream, cell] = self.now[stream]
                self.k[stream, cell], self.v[stream, cell] = step.k[i, token], step.v[i, token]
        return out

    def bits(self, stream: int = 0) -> np.ndarray:
        """uint8 [n_head_kv, n_cells], the cache's own word."""
        return self.cache.precision(0, stream)


def check_rows(diary: Diary, stream: int = 0) -> None:
    """Every row reads back as its precision promises: sinks as f16, others exactly as the definition decodes them.

    Keys are only compared where they are not centred, since the mean is the cache's own.
    """
    cache, config, shape = diary.cache, diary.cache.config, diary.scene.shape
    group = codec.resolve_group((shape.head_dim_k, shape.head_dim_v), config.group)
    bits = diary.bits(stream)
    for value, rows, base in ((0, diary.k, config.k_bits), (1, diary.v, config.v_bits)):
        got = cache.read(0, value, stream, 0, shape.n_cells)
        for head, cell in np.argwhere(bits > 0):
            row = codec.clean(rows[stream, cell, head])
            want, slack = row.astype(np.float16).astype(np.float32), np.zeros(1)
            if bits[head, cell] != 16:
                if value == 0 and config.center_keys:
                    continue
                e = codec.encode(row, group, base, base if config.refined_bits == 16 else config.refined_bits)
                extra = e.refinement if _refined(cache, value, bits[head, cell]) else None
                want = codec.decode(e.params, e.base, extra, group, base, config.refined_bits)
                slack = np.repeat(np.spacing(np.add(*map(np.abs, codec.split_params(e.params)))), group)
            apart = np.abs(got[cell, head].astype(np.float64) - want)
            assert (apart <= slack).all(), (
                f"{'value' if value else 'key'} of cell {cell}, head {head}, {bits[head, cell]} bits: off by {apart.max():.3g}"
            )


def _refined(cache, value: int, bits: int) -> bool:
    """precision() tells a key's bits; where base and refined are the same for keys it cannot tell, nor matter."""
    config = cache.config
    if config.refined_bits == config.k_bits and value == 1 and config.v_bits != config.k_bits:
        raise AssertionError("this check cannot tell refined values apart: choose k_bits below refined_bits")
    return bits == config.refined_bits


def check_pool_fills_first(diary: Diary, n_slots: int, batch: int) -> None:
    """Nobody is at base precision until the pool is full; then exactly n_slots rows of each head are refined."""
    config, total = diary.cache.config, diary.scene.shape.n_cells
    fed = 0
    while fed + batch <= total:
        diary.feed([0] * batch)
        fed += batch
        bits = diary.bits()
        refined = (bits == config.refined_bits).sum(axis=1)
        exact = (bits == 16).sum(axis=1)
        assert (bits > 0).sum(axis=1).tolist() == [fed] * len(bits), f"{fed} tokens were stored"
        assert (exact == min(fed, config.sinks)).all(), f"exact rows: {exact}, sinks: {config.sinks}"
        want = min(fed - min(fed, config.sinks), n_slots)
        assert (refined == want).all(), f"after {fed} tokens {refined} rows are refined, should be {want}"


def check_window(diary: Diary, sequences: list[list[int]]) -> None:
    """After each micro-batch the last `window` tokens of every sequence in it are refined (or exact)."""
    config, scene = diary.cache.config, diary.scene
    for batch in sequences:
        diary.feed(batch)
        bits = diary.bits()
        for sequence in set(batch):
            cells = np.flatnonzero(scene.sequence[0] == sequence)
            youngest = cells[np.argsort(scene.position[0, cells])][-config.window :]
            assert (bits[:, youngest] >= config.refined_bits).all(), f"sequence {sequence}: {bits[:, youngest]}"


def check_policy(diary: Diary, name: str, batches: list[int], n_slots: int) -> None:
    """With neither sinks nor window, the refined rows are the policy's best of all that were there to choose from.

    A shadow holds each head's refined rows and their mass, with attention recomputed in float64 from what the cache
    reads back. Masses within 1 in 1000 of each other, or 1e-6 (float32 sums, vectorised exp), may fall either way.
    """
    config = diary.cache.config
    assert config.sinks == config.window == 0, "this check is about the policy alone"
    heads = diary.scene.shape.n_head_kv
    mass: list[dict[int, float]] = [{} for _ in range(heads)]
    dim = diary.scene.shape.head_dim_k
    queries = [policy.Queries(0, np.zeros(dim), np.zeros(dim)) for _ in range(heads)]
    for n in batches:
        step = diary.scene.step([0] * n)
        given = _measure(diary, step, policy.drawn_by(name))
        before = diary.cache.read(0, 0, 0, 0, diary.scene.shape.n_cells)
        diary.run(step)
        bits = diary.bits()
        for head in range(heads):
            rows = {cell: float(policy.folded(name, held, given[head, cell], n)) for cell, held in mass[head].items()}
            fresh = step.cells[0]
            queries[head].add(np.split(step.q[0] * step.scale, heads, axis=1)[head])
            if policy.reads_queries(name) and rows:
                rows = dict(zip(rows, queries[head].expected_logit(before[list(rows), head])))
            keys = step.k[0][:, head].astype(np.float16).astype(np.float32)
            rows.update(zip(fresh.tolist(), policy.first_scores(name, given[head, fresh], keys, None, queries[head])))
            cells = np.array(sorted(rows), np.uint32)
            weights = np.array([rows[int(cell)] for cell in cells])
            query = policy.Query(0, head, int(diary.now[0]), cells, diary.born[0, cells], weights, _norms(diary, head, cells))
            priority = policy.priority(name, query).astype(np.float64)
            chosen = bits[head, cells] == config.refined_bits
            assert chosen.sum() == min(len(cells), n_slots), f"{chosen.sum()} rows refined, should be {n_slots}"
            assert (bits[head] == config.refined_bits).sum() == chosen.sum(), "a demoted row came back"
            if not chosen.all():
                worst, best = priority[chosen].min(), priority[~chosen].max()
                assert worst >= best - 1e-3 * abs(best) - 1e-6, (
                    f"{name}: a row of priority {worst:.6g} is refined, one of {best:.6g} is not"
                )
            mass[head] = {int(cell): rows[int(cell)] for cell in cells[chosen]}


def _norms(diary: Diary, head: int, cells: np.ndarray) -> np.ndarray:
    """Estimated norms of the values of these cells, float64 [n]."""
    config, shape = diary.cache.config, diary.scene.shape
    group = codec.resolve_group((shape.head_dim_k, shape.head_dim_v), config.group)
    encoded = codec.encode(diary.v[0, cells, head].astype(np.float16).astype(np.float32), group, 2, 8)
    return np.array([codec.estimated_norm(params, group) for params in encoded.params])


def check_scores(diary: Diary, batches: list[int]) -> None:
    """mikv_cache_scores is the mass that float64 attention gives the refined rows, while all rows are refined."""
    total = np.zeros((diary.scene.shape.n_head_kv, diary.scene.shape.n_cells))
    for n in batches:
        step = diary.scene.step([0] * n)
        given = _measure(diary, step)
        total[:, : given.shape[1]] += given
        diary.run(step)
        got = diary.cache.scores(0, 0)
        refined = diary.bits() == diary.cache.config.refined_bits
        assert refined.any()
        assert np.allclose(got[refined], total[refined], rtol=1e-3, atol=1e-5), np.abs(got - total)[refined].max()
        assert not got[~refined].any(), "unrefined rows keep no score"


def _measure(diary: Diary, step: Step, over_queries=attention.mass) -> np.ndarray:
    """Attention float64 [n_head_kv, n_kv] of the step's queries over what the cache believes."""
    return over_queries(attention_of(diary.cache, step), diary.scene.shape.n_head_kv)


def attention_of(cache, step: Step) -> np.ndarray:
    """Probabilities float64 [n, n_head, n_kv] of the queries of a step that is still to come."""
    n_kv = step.mask.shape[-1]
    k = cache.read(0, 0, 0, 0, n_kv)
    inside = step.cells[0] < n_kv
    k[step.cells[0][inside]] = step.k[0][inside]
    dropped = cache.precision(0, 0)[:, :n_kv] == 0
    dropped[:, step.cells[0][inside]] = False
    scores = attention.logits(step.q[0], k, step.mask[0], step.scale, step.max_bias, step.logit_softcap, dropped)
    return attention.probabilities(scores, step.sinks)


def check_dead_rows_go_first(diary: Diary, n_dead: int, n_alive: int, patience: int) -> None:
    """Rows that no query has seen for `patience` micro-batches hold no refinement that living rows could have."""
    scene, config = diary.scene, diary.cache.config
    step = diary.feed([0] * n_dead)
    dead = step.cells[0]
    diary.feed([1])
    scene.sequence[0, dead] = 99  # removed, its cells not yet reused
    for _ in range(n_alive):
        diary.feed([1])
    assert n_alive > patience
    left = (diary.bits()[:, dead] == config.refined_bits).sum(axis=1)
    assert not left.any(), f"{left} of {n_dead} dead rows still hold refinement after {n_alive} micro-batches"
