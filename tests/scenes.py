"""Scenes: random rows, queries and masks as llama.cpp would hand them over, one micro-batch after the other.

A scene keeps the book that llama.cpp keeps (which sequence and position lies in which cell) and knows nothing
of how rows are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from mikv_cpp.reference.cache import Step
from mikv_cpp.reference.layout import Shape

NEVER = np.float16(-np.inf)


@dataclass(frozen=True)
class View:
    """How queries look at cells."""

    gqa: int = 1  # query heads per KV head
    max_bias: float = 0.0
    logit_softcap: float = 0.0
    sinks: bool = False
    keep: float = 1.0  # share of the causal mask's cells that a query really sees
    reach: int = 1 << 30  # a query sees the tokens less than `reach` positions back
    gain: float = 3.0  # standard deviation of the logits: above 1, attention picks a few cells
    k_offset: float = 2.0  # size of the constant that every channel of the keys carries


@dataclass
class Scene:
    """One layer's traffic. Tokens of a stream may belong to several sequences (see `step`)."""

    shape: Shape
    view: View = View()
    seed: int = 0
    sequence: np.ndarray = field(init=False)  # int [n_stream, n_cells], -1: empty
    position: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        cells = (self.shape.n_stream, self.shape.n_cells)
        self.sequence, self.position = np.full(cells, -1), np.zeros(cells, int)
        dim, heads = self.shape.head_dim_k, self.shape.n_head_kv
        self.channel = self.rng.normal(size=(heads, dim)).astype(np.float32) * self.view.k_offset

    def free_cells(self, stream: int, n: int, scattered: bool = False) -> np.ndarray:
        """n empty cells: the first ones, or any."""
        free = np.flatnonzero(self.sequence[stream] < 0)
        assert len(free) >= n, f"scene asks for {n} cells, {len(free)} are empty"
        return np.sort(self.rng.choice(free, n, replace=False)) if scattered else free[:n]

    def step(
        self,
        sequences: list[int],
        cells: Optional[np.ndarray] = None,
        n_stream: int = 1,
        first_stream: int = 0,
        n_kv: Optional[int] = None,
    ) -> Step:
        """The next micro-batch: one token for each entry of `sequences`, in every one of the streams.

        cells: [n_stream, n], default the first empty ones. n_kv: default the last used cell and a few more, so that
        it is a multiple of nothing. The mask is made after the scene has taken the tokens in.
        """
        n = len(sequences)
        streams = range(first_stream, first_stream + n_stream)
        if cells is None:
            cells = np.stack([self.free_cells(s, n) for s in streams])
        for i, stream in enumerate(streams):
            self.sequence[stream, cells[i]] = -1
            for cell, sequence in zip(cells[i], sequences):
                held = self.sequence[stream] == sequence
                self.position[stream, cell] = self.position[stream, held].max(initial=-1) + 1
                self.sequence[stream, cell] = sequence
        used = int(np.flatnonzero((self.sequence >= 0).any(axis=0)).max()) + 1
        n_kv = min(self.shape.n_cells, used + 3) if n_kv is None else n_kv
        mask = np.stack([self._mask(stream, cells[i], n_kv) for i, stream in enumerate(streams)])
        return self._rows(cells, mask, first_stream)

    def forget(self, stream: int, cells: np.ndarray) -> None:
        """As llama_memory_seq_rm: the cells are empty for the scene, and the cache is not told."""
        self.sequence[stream, cells] = -1

    def _mask(self, stream: int, cells: np.ndarray, n_kv: int) -> np.ndarray:
        """float16 [n, n_kv]: 0 (with ALiBi: minus the distance) where a query sees a cell, else -inf."""
        distance = self.position[stream, cells][:, None] - self.position[stream][None, :n_kv]
        same = self.sequence[stream, cells][:, None] == self.sequence[stream][None, :n_kv]
        seen = same & (distance >= 0) & (distance < self.view.reach)
        if self.view.keep < 1:
            seen &= self.rng.random(seen.shape) < self.view.keep
        bias = -np.abs(distance).astype(np.float16) if self.view.max_bias else np.float16(0)
        return np.where(seen, bias, NEVER).astype(np.float16)

    def _rows(self, cells: np.ndarray, mask: np.ndarray, first_stream: int) -> Step:
        s, view, lead = self.shape, self.view, cells.shape
        n_head = s.n_head_kv * view.gqa
        k = self.rng.normal(size=(*lead, s.n_head_kv, s.head_dim_k)) + self.channel
        v = self.rng.normal(size=(*lead, s.n_head_kv, s.head_dim_v))
        q = self.rng.normal(size=(*lead, n_head, s.head_dim_k)) * view.gain
        return Step(
            cells=cells,
            k=k.astype(np.float16).astype(np.float32),  # as the staging holds them
            v=v.astype(np.float16).astype(np.float32),
            q=q.astype(np.float32),
            mask=mask,
            scale=s.head_dim_k**-0.5,
            max_bias=view.max_bias,
            logit_softcap=view.logit_softcap,
            sinks=self.rng.normal(size=n_head).astype(np.float32) if view.sinks else None,
            first_stream=first_stream,
        )
