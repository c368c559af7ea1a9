"""Threads: changed between decodes, and two contexts that decode at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from llama_contexts import Context, quiet
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.config import KVConfig

N_TOKENS = 320
CONFIG = KVConfig(refined_share=0.25)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    quiet()
    return write_tiny_model(tmp_path_factory.mktemp("threads") / "tiny.gguf", TinyModel())


def logits_of(context: Context, seed: int, threads_at=lambda _: None) -> np.ndarray:
    """A prompt of 256 tokens and then single ones: logits [n, n_vocab]."""
    tokens = np.random.default_rng(seed).integers(1, 250, N_TOKENS)
    rows = []
    for start in [0, 128, *range(256, N_TOKENS)]:
        threads_at(start)
        end = start + 128 if start < 256 else start + 1
        status, logits = context.decode([(int(tokens[i]), i, 0) for i in range(start, end)])
        assert status == 0
        rows.append(logits)
    return np.concatenate(rows)


def test_the_number_of_threads_may_change_between_decodes(path):
    steady, changing = (Context(path, "q8_0", CONFIG, n_ctx=512) for _ in range(2))
    wanted = logits_of(steady, 1)
    got = logits_of(changing, 1, lambda at: api.llama_set_n_threads(changing.context, 1 + at % 4, 1 + at // 128 % 3))
    # parts are merged in another order: rounding of float, thousands of times over
    assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()
    assert (got != wanted).any()
    steady.close(), changing.close()


def test_two_contexts_decode_at_the_same_time(path):
    alone = []
    for seed in (1, 2):
        context = Context(path, "q8_0", CONFIG, n_ctx=512, n_threads=2, n_threads_batch=2)
        alone.append(logits_of(context, seed))
        context.close()
    both = [Context(path, "q8_0", CONFIG, n_ctx=512, n_threads=2, n_threads_batch=2) for _ in range(2)]
    got = [np.empty(0)] * 2

    def decode(i: int) -> None:
        got[i] = logits_of(both[i], i + 1)

    workers = [threading.Thread(target=decode, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(got, alone):
        assert np.array_equal(one, other)
    for context in both:
        context.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="skipped: reads Linux's /proc")
def test_decoding_starts_no_threads_but_llama_cpps_and_none_spins_when_idle(path):
    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def ticks() -> int:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    plain = Context(path, "q8_0", None, n_ctx=512, n_threads=2, n_threads_batch=2)
    logits_of(plain, 1)
    before = n_threads()
    context = Context(path, "q8_0", CONFIG, n_ctx=512, n_threads=2, n_threads_batch=2)
    logits_of(context, 1)
    assert n_threads() <= before
    threading.Event().wait(0.5)  # OpenMP's own wait is over
    idle_from = ticks()
    threading.Event().wait(1.0)
    assert ticks() - idle_from <= 20  # of 100 a second and thread: a thread that spins takes them all
    plain.close(), context.close()
