"""The folder of states: what begins alike is found, what is old goes, and who is hurt is thrown away."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mikv_cpp import ConfigError, Llama
from mikv_cpp.prompt_cache import BLOCK, PromptCache

Writer = Callable[..., Path]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does. " * 12


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _load(path: Path, **settings: Any) -> Llama:
    return Llama(path, **{"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 1, "verbose": False, **settings})


def _read(llm: Llama, text: str) -> Llama:
    llm.forget()
    llm.eval(list(text.encode()))
    return llm


def test_the_longest_common_beginning_is_found(tiny_model: Writer, tmp_path: Path) -> None:
    llm, cache = _load(tiny_model()), PromptCache(tmp_path / "states")
    for text in ("A" * 100 + TEXT[:200], "A" * 100 + TEXT[:100] + "B" * 100, "C" * 300):
        assert cache.keep(_read(llm, text))
    llm.forget()
    assert cache.fetch(llm, list(("A" * 100 + TEXT[:250]).encode()), 0) == 300
    assert llm.n_tokens == 300
    assert cache.fetch(llm, list(("A" * 100 + TEXT[:90]).encode()), 190) == 190  # the model holds as much already
    assert cache.fetch(llm, list(b"D" * 300), 0) == 0


def test_what_is_fetched_goes_on_as_what_was_kept(tiny_model: Writer, tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    llm = _read(_load(tiny_model()), TEXT[:400])
    cache.keep(llm)
    other = _load(tiny_model())
    prompt = list(TEXT[:450].encode())
    assert cache.fetch(other, prompt, 0) == 400
    evaluated: list[int] = []
    other.on_prompt = lambda _done, total: evaluated.append(total)
    expected, got = ([t for t, _ in zip(x.generate(prompt, temp=0.0), range(8))] for x in (llm, other))
    assert got == expected
    assert evaluated == [50]


def test_a_conversation_that_grew_replaces_its_beginning(tiny_model: Writer, tmp_path: Path) -> None:
    llm, cache = _load(tiny_model()), PromptCache(tmp_path)
    for n in (100, 250, 251, 500):
        cache.keep(_read(llm, TEXT[:n]))
    assert len(_names(tmp_path)) == 1
    assert cache.keep(_read(llm, TEXT[: BLOCK - 1])) is None
    windowed = _load(tiny_model(arch="gemma3", n_layer=7))
    for n in (100, 250, 500):
        cache.keep(_read(windowed, TEXT[:n]))
    assert len(_names(tmp_path)) == 4  # windows cannot be rolled back: their beginnings stay


def test_windows_take_only_what_need_not_be_rolled_back(tiny_model: Writer, tmp_path: Path) -> None:
    llm, cache = _load(tiny_model(arch="gemma3", n_layer=7), swa_full=False), PromptCache(tmp_path)
    for n in (300, 700):
        cache.keep(_read(llm, TEXT[:n]))
    llm.forget()
    assert cache.fetch(llm, list((TEXT[:650] + "B" * 100).encode()), 0) == 300
    assert llm.n_tokens == 300
    assert cache.fetch(llm, list((TEXT[:750]).encode()), 300) == 700


def test_models_and_configurations_do_not_mix(tiny_model: Writer, tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    cache.keep(_read(_load(tiny_model()), TEXT[:300]))
    prompt = list(TEXT[:300].encode())
    for other in (_load(tiny_model(seed=1)), _load(tiny_model(), kv="mikv-safe"), _load(tiny_model(), kv="off")):
        assert cache.fetch(other, prompt, 0) == 0
    assert cache.fetch(_load(tiny_model()), prompt, 0) == 300


def test_the_least_recently_used_goes_first(tiny_model: Writer, tmp_path: Path) -> None:
    llm = _load(tiny_model())
    first = PromptCache(tmp_path).keep(_read(llm, "A" * 300))
    assert first is not None
    cache = PromptCache(tmp_path, int(2.5 * first.stat().st_size))
    second = cache.keep(_read(llm, "B" * 300))
    assert second is not None
    os.utime(first, (time.time() - 50,) * 2)
    os.utime(second, (time.time() - 100,) * 2)
    assert cache.fetch(llm, [66] * 300, 0) == 300  # used now
    third = cache.keep(_read(llm, "C" * 300))
    assert third is not None
    assert _names(tmp_path) == {second.name, third.name}
    assert PromptCache(tmp_path, 1000).keep(_read(llm, "D" * 300)) is None
    assert len(_names(tmp_path)) == 2


def test_a_damaged_file_is_thrown_away_and_the_prompt_read(tiny_model: Writer, tmp_path: Path) -> None:
    llm, cache = _load(tiny_model()), PromptCache(tmp_path)
    path = cache.keep(_read(llm, TEXT[:300]))
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    _read(llm, "kept")
    assert cache.fetch(llm, list(TEXT[:300].encode()), 0) == 0
    assert llm.n_tokens == 4
    assert _names(tmp_path) == set()
    path.write_bytes(b"nonsense")
    assert cache.fetch(llm, list(TEXT[:300].encode()), 0) == 0


def test_what_a_process_left_behind_when_it_was_killed_goes(tiny_model: Writer, tmp_path: Path) -> None:
    old, young = tmp_path / ".mikv-old.tmp", tmp_path / ".mikv-young.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    PromptCache(tmp_path).keep(_read(_load(tiny_model()), TEXT[:300]))
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as a folder"):
        PromptCache(tmp_path / "file")


def _work(model: Path, folder: Path, seed: int) -> None:
    llm = _load(model, n_ctx=512)
    generator = np.random.default_rng(seed)
    cache = PromptCache(folder, 400_000)
    for _ in range(12):
        prompt = [int(generator.integers(65, 70))] * 200 + [97] * int(generator.integers(0, 100))
        n = cache.fetch(llm, prompt, llm.reusable(prompt))
        assert n <= len(prompt)
        list(zip(llm.generate(prompt, temp=0.0), range(2)))
        cache.keep(llm)


def test_processes_share_a_folder_without_locks(tiny_model: Writer, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    model = tiny_model()
    workers = [context.Process(target=_work, args=(model, tmp_path, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert all(name.endswith(".mikv") for name in _names(tmp_path))
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 400_000 * 2
