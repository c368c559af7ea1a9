"""Random sequences of llama.cpp's own KV operations on the plug-in, beside the same on stock caches.

Three contexts live through the same operations: stock f16 (the truth, up to rounding far below eight bits), stock q8_0
and ours with everything refined to eight bits. Ours has steps of range / 256 for 64 values, q8_0 of about range / 127
for 32: its errors should be no larger than q8_0's, apart from luck. But a row that is saved and loaded passes through
q8_0, llama.cpp's type for it, and back, which costs stock q8_0 nothing: three roundings instead of one, and five after a
second time, where errors add up as squares: sqrt(3) to sqrt(5) for those rows. So, over a whole run, the root mean
square of the difference to the f16 logits may be at most 2 times q8_0's, and for a single decode at most 10 times q8_0's
whole-run figure. A wrong, lost or foreign row is far outside: logits have a standard deviation near 2, and q8_0's difference is
around a hundredth of that.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from llama_contexts import Context, quiet

from mikv_cpp.config import KVConfig

N_SEQUENCES = 3
EVERYTHING_REFINED = KVConfig(k_bits=2, v_bits=2, refined_bits=8, refined_share=1.0, sinks=2, window=8)
COMPRESSED = KVConfig(k_bits=2, v_bits=2, refined_bits=8, refined_share=0.2, sinks=2, window=8)
WEIGHTS = {
    "decode": 12, "remove": 2, "copy": 1.5, "keep": 0.3, "add": 1, "divide": 0.5, "clear": 0.3, "state": 0.7, "one_state": 1,
}  # fmt: skip

MODELS = {
    "llama": {"arch": "llama", "head_dim": 64, "n_head": 4, "n_head_kv": 2},
    "multi-query 32": {"arch": "llama", "head_dim": 32, "n_head": 4, "n_head_kv": 1},
    "llama 128": {"arch": "llama", "head_dim": 128, "n_head": 3, "n_head_kv": 3},
    "gemma2": {"arch": "gemma2", "head_dim": 64, "n_head": 4, "n_head_kv": 2},
    # six layers: the last one is the first without a window, and llama.cpp cannot shift a cache that has no layers
    "gemma3 256": {"arch": "gemma3", "head_dim": 256, "n_head": 2, "n_head_kv": 1, "n_layer": 6},
    "mpt": {"arch": "mpt", "head_dim": 64, "n_head": 4, "n_head_kv": 4},
}


class Run:
    """Contexts that live through the same operations. The first one answers what llama.cpp can and cannot do."""

    def __init__(self, contexts: list[Context], seed: int):
        self.contexts = contexts
        self.rng = np.random.default_rng(seed)
        self.logits: list[list[np.ndarray]] = []  # of each decode, of each context
        self.unified, self.head_dim, self.unquantized = True, 0, False

    def each(self, call) -> object:
        """The same call on every context: all must answer alike."""
        answers = [call(c) for c in self.contexts]
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    def last(self, sequence: int) -> int:
        return self.each(lambda c: api.llama_memory_seq_pos_max(c.memory, sequence))

    def sequence(self) -> int:
        return int(self.rng.integers(N_SEQUENCES))

    def decode(self) -> None:
        tokens = []
        for sequence in self.rng.permutation(N_SEQUENCES)[: self.rng.integers(1, N_SEQUENCES + 1)]:
            start = self.last(int(sequence)) + 1
            n = int(self.rng.choice((1, 1, 2, 7, 20)))
            tokens += [(int(self.rng.integers(256)), start + i, int(sequence)) for i in range(n)]
        results = [c.decode(tokens) for c in self.contexts]
        statuses = [status for status, _ in results]
        assert len(set(statuses)) == 1, f"llama_decode: {statuses}"
        if statuses[0] == 1:  # no room left
            self.clear()
            return
        assert statuses[0] == 0, f"llama_decode: {statuses[0]}"
        logits = [rows for _, rows in results]
        assert all(np.isfinite(rows).all() for rows in logits)
        self.logits.append(logits)

    def remove(self) -> None:
        sequence = self.sequence()
        end = self.last(sequence) + 1
        first = int(self.rng.integers(end + 1))
        last = -1 if self.rng.random() < 0.7 else int(self.rng.integers(first, end + 1))
        self.each(lambda c: bool(api.llama_memory_seq_rm(c.memory, sequence, first, last)))

    def copy(self) -> None:
        source, target = self.rng.permutation(N_SEQUENCES)[:2]
        self.each(lambda c: bool(api.llama_memory_seq_rm(c.memory, int(target), -1, -1)))
        end = -1 if not self.unified else int(self.rng.choice((-1, self.last(int(source)) // 2 + 1)))
        self.each(lambda c: api.llama_memory_seq_cp(c.memory, int(source), int(target), -1, end))

    def keep(self) -> None:
        if not self.unified:
            return  # llama.cpp itself keeps a sequence by clearing all streams but its own
        sequence = self.sequence()
        self.each(lambda c: api.llama_memory_seq_keep(c.memory, sequence))

    def add(self) -> None:
        """Context shift: a piece is removed, what follows moves down."""
        sequence = self.sequence()
        end = self.last(sequence) + 1
        if end < 8 or not self.can_shift(sequence):
            return
        first = int(self.rng.integers(1, end // 2))
        n = int(self.rng.integers(1, end // 2))
        if self.each(lambda c: bool(api.llama_memory_seq_rm(c.memory, sequence, first, first + n))):
            self.each(lambda c: api.llama_memory_seq_add(c.memory, sequence, first + n, -1, -n))

    def divide(self) -> None:
        sequence = self.sequence()
        end = self.last(sequence) + 1
        if end < 8 or not self.can_shift(sequence):
            return
        self.each(lambda c: api.llama_memory_seq_div(c.memory, sequence, end // 2, -1, 2))

    def can_shift(self, sequence: int) -> bool:
        """Not where llama.cpp cannot, and not where cells may belong to another sequence too, which would be shifted as well.

        And not where head sizes are no multiple of 64: llama.cpp 0.3.36 itself crashes when it shifts a stock q8_0 cache of
        such a model (llama_kv_cache::build_rope_shift uses the rotation's matrix, which there is none).
        """
        shared = self.unified and any(self.last(other) >= 0 for other in range(N_SEQUENCES) if other != sequence)
        able = self.each(lambda c: bool(api.llama_memory_can_shift(c.memory)))
        return bool(able) and not shared and (self.head_dim % 64 == 0 or self.unquantized)

    def clear(self) -> None:
        self.each(lambda c: api.llama_memory_clear(c.memory, bool(len(self.logits) % 2)))

    def state(self) -> None:
        states = [c.save() for c in self.contexts]
        for _ in range(int(self.rng.integers(3))):
            self.decode()
        assert all(c.load(state) for c, state in zip(self.contexts, states)), "a whole state is taken back"

    def one_state(self) -> None:
        source, target = self.sequence(), self.sequence()
        if self.last(source) < 0:
            return
        states = [c.save(source) for c in self.contexts]
        taken = [c.load(state, target) for c, state in zip(self.contexts, states)]
        assert len(set(taken)) == 1, f"the state of a sequence: {taken}"
        if not taken[0]:
            self.clear()

    def go(self, n: int) -> None:
        names = list(WEIGHTS)
        chance = np.array([WEIGHTS[name] for name in names]) / sum(WEIGHTS.values())
        done = []
        try:
            for _ in range(n):
                done.append(str(self.rng.choice(names, p=chance)))
                getattr(self, done[-1])()
        except AssertionError as fault:
            raise AssertionError(f"after {len(done)} operations, the last ones {done[-8:]}: {fault}") from fault

    def close(self) -> None:
        for context in self.contexts:
            context.close()


def rms(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of the difference of logits, each row without its mean (which softmax does not see)."""
    apart = a.astype(np.float64) - b
    return float(np.sqrt(((apart - apart.mean(axis=-1, keepdims=True)) ** 2).mean()))


@pytest.fixture(scope="module", autouse=True)
def no_log():
    quiet()
    yield
    gc.collect()


def live(path, caches: list, unified: bool, head_dim: int, seed: int) -> list[list[np.ndarray]]:
    """300 operations on contexts with these caches (type, config); each decode's logits of each context."""
    sizes = {"n_ctx": 768, "n_batch": 256, "n_ubatch": 64, "n_seq_max": N_SEQUENCES, "kv_unified": unified}
    run = Run([Context(path, cache, config, **sizes) for cache, config in caches], seed)
    run.unified, run.head_dim, run.unquantized = unified, head_dim, all(cache == "f16" for cache, _ in caches)
    try:
        assert all(bool(c.caches) == (config is not None) for c, (_, config) in zip(run.contexts, caches))
        run.go(300)
        return run.logits
    finally:
        run.close()


def check_nearness(logits: list[list[np.ndarray]]) -> None:
    """Logits of f16, q8_0 and ours: see the top of this file."""
    f16, q8_0, ours = (np.concatenate(rows) for rows in zip(*logits))
    usual, our_rms = rms(q8_0, f16), rms(ours, f16)
    assert usual < 0.2, "the comparison means something"
    assert our_rms <= 2 * usual, f"{our_rms:.4f} from f16, q8_0 {usual:.4f}"
    for i, (truth, _, rows) in enumerate(logits):
        assert rms(rows, truth) <= 10 * usual, f"decode {i}: {rms(rows, truth):.4f} from f16, q8_0 {usual:.4f} on average"


@pytest.mark.parametrize("unified", [True, False], ids=("unified", "streams"))
@pytest.mark.parametrize("name", MODELS)
def test_random_operations_stay_as_near_to_f16_as_q8_0(name, unified, tiny_model):
    caches = [("f16", None), ("q8_0", None), ("q8_0", EVERYTHING_REFINED)]
    check_nearness(live(tiny_model(**MODELS[name]), caches, unified, MODELS[name]["head_dim"], seed=len(name)))


@pytest.mark.parametrize("bits", [5, 6])
def test_fewer_bits_do_not_pass_for_eight(bits, tiny_model):
    """The check above is narrow enough to notice three of eight bits missing, and two."""
    config = KVConfig(k_bits=2, v_bits=2, refined_bits=bits, refined_share=1.0, sinks=2, window=8)
    caches = [("f16", None), ("q8_0", None), ("q8_0", config)]
    with pytest.raises(AssertionError, match="from f16"):
        check_nearness(live(tiny_model(**MODELS["llama"]), caches, True, 64, seed=5))


@pytest.mark.parametrize("unified", [True, False], ids=("unified", "streams"))
@pytest.mark.parametrize("name", ["llama", "gemma2", "mpt"])
def test_random_operations_at_two_bits_stay_finite(name, unified, tiny_model):
    caches = [("f16", None), ("q8_0", COMPRESSED)]
    logits = live(tiny_model(**MODELS[name]), caches, unified, MODELS[name]["head_dim"], seed=3)
    f16, ours = (np.concatenate(rows) for rows in zip(*logits))
    assert rms(ours, f16) < rms(f16[1:], f16[:-1]), "nearer to the truth than the next token's logits are"


UNROTATED_BY_LLAMA = {
    "80": ({"head_dim": 80}, {}),
    "96": ({"head_dim": 96, "n_head_kv": 1}, {}),
    "112 unrotated": ({"head_dim": 112}, {"rotate": False}),
    "64 balanced": ({"head_dim": 64}, {"balance": "max"}),
    "80 balanced, unrotated": ({"head_dim": 80}, {"balance": "rms", "rotate": False}),
}


@pytest.mark.parametrize("unified", [True, False], ids=("unified", "streams"))
@pytest.mark.parametrize("name", UNROTATED_BY_LLAMA)
def test_random_operations_in_a_space_of_our_own(name, unified, tiny_model):
    """Under the logical type f16, beside ours with two bits less, whose errors are four times as large: 0.4 of them at most.

    A row in the wrong space, or a foreign one, would be as far off in both.
    """
    sizes, changes = UNROTATED_BY_LLAMA[name]
    eight = replace(EVERYTHING_REFINED, **changes)
    caches = [("f16", None), ("f16", replace(eight, refined_bits=6)), ("f16", eight)]
    logits = live(tiny_model(**sizes), caches, unified, sizes["head_dim"], seed=len(name))
    f16, six, ours = (np.concatenate(rows) for rows in zip(*logits))
    assert rms(six, f16) < 4 * 0.2, "the comparison means something"
    assert rms(ours, f16) <= 0.4 * rms(six, f16), f"{rms(ours, f16):.4f} from f16, with six bits {rms(six, f16):.4f}"
