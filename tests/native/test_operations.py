"""Random sequences of cache operations against a shadow that simply remembers every row in float32.

After each operation what is read back may differ from the shadow by the codec's bound at the precision that the cache
claims for the row, and attention during each step by the kernels' bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from attention_check import check_step
from native_cache import NativeCache
from native_library import check, lib, text
from scenes import Scene, View

from mikv_cpp.reference import codec
from mikv_cpp.reference.layout import Config, Shape

SHAPE = Shape(n_layer=2, n_head_kv=2, n_cells=140, n_stream=2, head_dim_k=32, head_dim_v=32)
WEIGHTS = {"append": 10, "overwrite": 4, "forget": 2, "copy": 1, "clear": 0.3, "write": 3, "rewrite": 2}


@dataclass
class Shadow:
    """What was stored where: float32 rows, and which cells hold one."""

    k: np.ndarray
    v: np.ndarray
    held: np.ndarray

    @staticmethod
    def empty(shape: Shape) -> Shadow:
        cells = (shape.n_layer, shape.n_stream, shape.n_cells)
        return Shadow(
            np.zeros((*cells, shape.n_head_kv, shape.head_dim_k), np.float32),
            np.zeros((*cells, shape.n_head_kv, shape.head_dim_v), np.float32),
            np.zeros(cells, bool),
        )


class Run:
    """One cache, its scene and its shadow, and the operations on all three."""

    def __init__(self, config: Config, seed: int):
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.scene = Scene(SHAPE, View(gqa=2, k_offset=4.0), seed)
        self.shadow = Shadow.empty(SHAPE)
        self.cache = NativeCache(config, SHAPE)
        self.kernel = text(lib.mikv_kernel_selected())

    def stream(self) -> int:
        return int(self.rng.integers(SHAPE.n_stream))

    def append(self) -> None:
        stream, n = self.stream(), int(self.rng.choice((1, 1, 1, 2, 5, 16)))
        if (self.scene.sequence[stream] < 0).sum() < n:
            self.forget()
            return
        cells = self.scene.free_cells(stream, n, scattered=bool(self.rng.integers(2)))
        self.step(stream, cells)

    def overwrite(self) -> None:
        stream = self.stream()
        self.step(stream, self.rng.choice(SHAPE.n_cells, int(self.rng.integers(1, 5)), replace=False))

    def step(self, stream: int, cells: np.ndarray) -> None:
        sequences = [int(s) for s in self.rng.integers(0, 3, len(cells))]
        step = self.scene.step(sequences, cells[None], first_stream=stream)
        for layer in range(SHAPE.n_layer):
            check_step(self.cache, layer, step, self.kernel, drift=self.mean_span() if self.config.center_keys else 0.0)
            self.shadow.k[layer, stream, cells], self.shadow.v[layer, stream, cells] = step.k[0], step.v[0]
        self.shadow.held[:, stream, cells] = True

    def forget(self) -> None:
        """A sequence or a few tokens removed: llama.cpp tells no cache of it."""
        stream = self.stream()
        if self.rng.integers(2):
            self.scene.sequence[stream][self.scene.sequence[stream] == self.rng.integers(3)] = -1
        else:
            self.scene.forget(stream, self.rng.choice(SHAPE.n_cells, 9, replace=False))

    def copy(self) -> None:
        source = self.stream()
        target = 1 - source
        self.cache.copy_stream(source, target)
        for table in (self.scene.sequence, self.scene.position):
            table[target] = table[source]
        for rows in (self.shadow.k, self.shadow.v, self.shadow.held):
            rows[:, target] = rows[:, source]

    def clear(self) -> None:
        self.cache.clear()
        self.scene.sequence[:] = -1
        self.shadow.held[:] = False

    def write(self) -> None:
        """State load: new rows, keys first, from outside."""
        stream, n = self.stream(), int(self.rng.integers(1, 20))
        first = int(self.rng.integers(SHAPE.n_cells - n))
        cells = np.arange(first, first + n)
        for layer in range(SHAPE.n_layer):
            for value, rows in ((0, self.shadow.k), (1, self.shadow.v)):
                rows[layer, stream, cells] = self.rng.normal(size=rows[layer, stream, cells].shape)
                self.cache.write(layer, value, stream, first, rows[layer, stream, cells])
        self.shadow.held[:, stream, cells] = True
        self.scene.sequence[stream, cells] = 2
        self.scene.position[stream, cells] = self.scene.position[stream].max() + 1 + np.arange(n)

    def rewrite(self) -> None:
        """A shift: keys are read, changed and written back; the values stay."""
        stream, n = self.stream(), int(self.rng.integers(1, 30))
        first = int(self.rng.integers(SHAPE.n_cells - n))
        cells = np.arange(first, first + n)
        held = self.shadow.held[0, stream, cells]
        for layer in range(SHAPE.n_layer):
            keys = self.cache.read(layer, 0, stream, first, n)[:, :, ::-1]
            for start, end in runs(held):
                self.cache.write(layer, 0, stream, first + start, keys[start:end])
            self.shadow.k[layer, stream, cells[held]] = keys[held]

    def compare(self) -> None:
        """Everything that is held, in one of the layers and streams."""
        layer, stream = int(self.rng.integers(SHAPE.n_layer)), self.stream()
        bits = self.cache.precision(layer, stream)
        held = self.shadow.held[layer, stream]
        assert np.array_equal(bits > 0, np.broadcast_to(held, bits.shape))
        assert ((bits == self.config.refined_bits).sum(axis=1) <= self.cache.n_slots).all()
        for value, rows, base in ((0, self.shadow.k, self.config.k_bits), (1, self.shadow.v, self.config.v_bits)):
            got = self.cache.read(layer, value, stream, 0, SHAPE.n_cells)
            assert not got[~held].any()
            if not held.any():
                continue
            apart = np.abs(got.astype(np.float64) - rows[layer, stream])[held]
            bound = self.bounds(value, rows[layer, stream][held], base, bits.T[held])
            worst = np.unravel_index(np.argmax(apart - bound), apart.shape)
            cell, head, _ = worst
            assert apart[worst] <= bound[worst], (
                f"{'value' if value else 'key'} of cell {np.flatnonzero(held)[cell]}, layer {layer}, stream {stream}, head "
                f"{head}, {bits.T[held][cell, head]} bits: off by {apart[worst]:.3g}, at most {bound[worst]:.3g}"
            )

    def bounds(self, value: int, rows: np.ndarray, base: int, bits: np.ndarray) -> np.ndarray:
        """Largest error of each value, float64 like rows [n, n_head_kv, dim]; bits: [n, n_head_kv]."""
        n_bits = np.where(bits == 16, 16, np.where(bits == self.config.refined_bits, self.config.refined_bits, base))
        params = codec.encode(rows, 32, base, self.config.refined_bits).params
        bound = np.zeros(rows.shape)
        for n in np.unique(n_bits):
            at = n_bits == n
            if n == 16:  # f16: 11 significant bits, rounded to the nearest
                bound[at] = np.abs(rows[at]) * 2.0**-11 + 2.0**-25
            elif value == 0 and self.config.center_keys:
                # The mean is some earlier rows' mean, all of them below 24: it widens a group by no more than its own span.
                span = codec.split_params(params)[0][at].astype(np.float64).repeat(32, axis=-1) + self.mean_span()
                bound[at] = span * 2.0 ** -(int(n) + 1) * (1 + 2.0**-7) + 2.0**-14
            else:
                bound[at] = codec.error_bound(params[at], 32, int(n))
        return bound

    def mean_span(self) -> float:
        """Largest span of a mean: of rows that are the channel's constant plus normal noise, or their reverse."""
        return 2 * (np.abs(self.scene.channel).max() + 6)

    def close(self) -> None:
        self.cache.close()


def runs(held: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of True: [start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


CONFIGS = (
    Config(2, 2, 8, sinks=2, window=4, refined_share=0.3),
    Config(3, 2, 5, sinks=1, window=3, refined_share=0.2, center_keys=False),
    Config(2, 3, 4, refined_share=0.5, policy="recent"),
    Config(4, 3, 6, sinks=4, refined_share=0.0, center_keys=False),
    Config(2, 3, 8, window=8, refined_share=1.0, policy="random"),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"k{c.k_bits}v{c.v_bits}r{c.refined_bits}-{c.policy}")
@pytest.mark.parametrize("kernel", ["plain", "auto"])
def test_a_thousand_random_operations(config: Config, kernel: str):
    check(lib.mikv_kernel_select(kernel.encode()))
    run = Run(config, seed=CONFIGS.index(config))
    names = list(WEIGHTS)
    chance = np.array([WEIGHTS[name] for name in names]) / sum(WEIGHTS.values())
    done = []
    try:
        for _ in range(1000):
            done.append(str(run.rng.choice(names, p=chance)))
            getattr(run, done[-1])()
            run.compare()
    except AssertionError as fault:
        raise AssertionError(f"after {len(done)} operations, the last ones {done[-8:]}: {fault}") from fault
    finally:
        run.close()
        check(lib.mikv_kernel_select(b"auto"))
