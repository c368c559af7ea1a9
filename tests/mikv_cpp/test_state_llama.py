"""Conversations to files and back, on the real plug-in with tiny models."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from numpy.typing import NDArray

from mikv_cpp import Llama, StateError
from mikv_cpp.state import read_state

Writer = Callable[..., Path]
TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it does. " * 12
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "head size 80": {"head_dim": 80},
    "gemma3": {"arch": "gemma3", "n_layer": 7, "sliding_window": 64},
    "gemma2": {"arch": "gemma2", "n_layer": 4},
    "mpt": {"arch": "mpt", "n_head_kv": 4},
}
CONFIGS = ("mikv", "mikv-tight", "q8", "paper", "h2o", "qpruning", "off")


def _load(path: Path, **settings: Any) -> Llama:
    return Llama(path, **{"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 2, "verbose": False, **settings})


def _read(llm: Llama, text: str = TEXT[:600]) -> Llama:
    llm.eval(list(text.encode()))
    return llm


def _continue(llm: Llama, n: int = 12) -> NDArray[np.float32]:
    """The logits of the next tokens, each the most probable one."""
    rows, token = [], 65
    for _ in range(n):
        llm.eval([token])
        rows.append(np.array(np.ctypeslib.as_array(api.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),))))
        token = int(rows[-1].argmax())
    return np.array(rows)


@pytest.mark.parametrize("kv", CONFIGS)
def test_the_next_logits_are_those_that_would_have_been(tiny_model: Writer, tmp_path: Path, kv: str) -> None:
    path = tmp_path / "state"
    llm = _read(_load(tiny_model(), kv=kv))
    size = llm.save_kv(path, {"hello": [1]})
    assert size == path.stat().st_size
    other = _load(tiny_model(), kv=kv)
    assert other.load_kv(path) == {"hello": [1]}
    assert other.n_tokens == 600
    assert bytes(other.input_ids[:600].tolist()).decode() == TEXT[:600]
    assert np.array_equal(_continue(llm), _continue(other))
    other.load_kv(path)  # and into a model that has gone on
    llm.load_kv(path)
    assert np.array_equal(_continue(llm), _continue(other))


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model(tiny_model: Writer, tmp_path: Path, model: str) -> None:
    """Two caches where there are sliding windows; after 600 tokens theirs are full.

    There llama.cpp puts the next token into another cell than it would have, and sums are in another order: both are loaded.
    """
    path = tmp_path / "state"
    llm = _read(_load(tiny_model(**MODELS[model]), swa_full=False))
    llm.save_kv(path)
    other = _read(_load(tiny_model(**MODELS[model]), swa_full=False), "something else")
    other.load_kv(path)
    saved, loaded = read_state(path), other.take_state()
    assert loaded.caches == saved.caches
    assert loaded.host == saved.host
    if model.startswith("gemma"):
        llm.load_kv(path)
    assert np.array_equal(_continue(llm), _continue(other))


def test_statistics_come_along(tiny_model: Writer, tmp_path: Path) -> None:
    llm = _read(_load(tiny_model()))
    llm.save_kv(tmp_path / "state")
    other = _load(tiny_model())
    other.load_kv(tmp_path / "state")
    before, after = llm.kv.stats(), other.kv.stats()
    names = ("tokens", "tokens_exact", "tokens_refined", "bytes_used", "demotions", "mass_exact", "mass_base")
    assert all(getattr(before, name) == getattr(after, name) for name in names)
    for layer in llm.kv.layers:
        assert np.array_equal(llm.kv.precision_map(layer), other.kv.precision_map(layer))
        assert np.array_equal(llm.kv.scores(layer), other.kv.scores(layer))


def test_an_answer_that_was_taken_back_is_not_saved(tiny_model: Writer, tmp_path: Path) -> None:
    llm = _read(_load(tiny_model()))
    llm.n_tokens = 500
    llm.save_kv(tmp_path / "state")
    other = _load(tiny_model())
    other.load_kv(tmp_path / "state")
    assert other.n_tokens == 500
    assert np.array_equal(_continue(llm, 1), _continue(other, 1))  # later the taken back tokens no longer hold refinement


def test_another_context_will_do_if_the_tokens_fit(tiny_model: Writer, tmp_path: Path) -> None:
    llm = _read(_load(tiny_model()))
    llm.save_kv(tmp_path / "state")
    larger = _load(tiny_model(), n_ctx=4096)
    larger.load_kv(tmp_path / "state")
    assert np.array_equal(_continue(llm, 1), _continue(larger, 1))  # later more of them may be refined
    smaller = _read(_load(tiny_model(), n_ctx=512), "kept")
    with pytest.raises(StateError, match="600 tokens, and the context holds 512"):
        smaller.load_kv(tmp_path / "state")
    assert smaller.n_tokens == 4


@pytest.mark.parametrize("kv", ["mikv-safe", "q8", "mikv-tight", "mikv-2bit"])
def test_another_configuration_converts(tiny_model: Writer, tmp_path: Path, kv: str) -> None:
    """About as far from f16 as a cache of that configuration is by itself: the roundings of both add up, at most."""
    path = tmp_path / "state"
    reference = _continue(_read(_load(tiny_model(), kv="off")))
    llm = _read(_load(tiny_model(), kv="mikv"))
    llm.save_kv(path)
    other = _load(tiny_model(), kv=kv)
    other.load_kv(path)
    assert other.kv.stats().tokens == 600
    own = _read(_load(tiny_model(), kv=kv))
    apart = [np.abs(_continue(x, 1) - reference[:1]).mean() for x in (other, llm, own)]
    assert 0 < apart[0] <= 1.5 * (apart[1] + apart[2])


def _damage(data: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(data))
    return [
        data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :],
        data[:at],
        data[:at] + data[at + 1 :],
        data[: len(data) // 2] + generator.randbytes(8) + data[len(data) // 2 :],
    ][generator.randrange(4)]


def test_damaged_files_change_nothing(tiny_model: Writer, tmp_path: Path) -> None:
    path, generator = tmp_path / "state", random.Random(2)  # noqa: S311 - damage, not secrets
    llm = _read(_load(tiny_model()))
    llm.save_kv(path)
    data = path.read_bytes()
    twin = _read(_load(tiny_model()), TEXT[:333])
    running = _read(_load(tiny_model()), TEXT[:333])
    for _ in range(100):
        path.write_bytes(_damage(data, generator))
        with pytest.raises(StateError):
            running.load_kv(path)
    assert running.n_tokens == 333
    assert np.array_equal(_continue(running), _continue(twin))


def test_what_only_llama_cpp_refuses_changes_nothing_either(tiny_model: Writer, tmp_path: Path) -> None:
    """A whole, well-formed state whose part of llama.cpp is another's; the running one has holes between its cells."""
    llm = _read(_load(tiny_model(), kv="q8"))
    llm.save_kv(tmp_path / "state")
    state = read_state(tmp_path / "state")
    kept = bytearray(state.host.kept)
    at = kept.index(b"llama") + len("llama")
    kept[at : at + 4] = (7).to_bytes(4, "little")  # streams
    wrong = type(state)(
        state.about, state.tokens, type(state.host)(state.host.size_bytes, state.host.holes, bytes(kept)), state.caches
    )
    running, twin = (_read(_load(tiny_model(), kv="q8"), TEXT[:333]) for _ in range(2))
    for one in (running, twin):
        one._ctx.kv_cache_seq_rm(0, 100, 200)
    before = running.kv.precision_map(0)
    with pytest.raises(StateError, match=r"llama\.cpp does not take this state"):
        running.put_state(wrong)
    assert running.kv.stats().tokens == 233
    assert before.shape[1] == 333
    expected, got = _continue(twin, 1), _continue(running, 1)
    assert np.abs(expected - got).mean() < 0.05 * np.abs(expected).mean()  # cells closed ranks: q8 rows were rounded once more


def test_gaps_between_cells_are_closed(tiny_model: Writer, tmp_path: Path) -> None:
    llm = _read(_load(tiny_model(), kv="q8"))
    llm._ctx.kv_cache_seq_rm(0, 100, 300)
    llm.save_kv(tmp_path / "state")
    other = _load(tiny_model(), kv="q8")
    other.load_kv(tmp_path / "state")
    assert other.kv.stats().tokens == 400
    expected, got = _continue(llm, 1), _continue(other, 1)
    assert np.abs(expected - got).mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize(
    ("saved", "model", "kv", "words"),
    [
        ("mikv", {"n_layer": 3}, "mikv", "of another model"),
        ("mikv", {"seed": 1}, "mikv", "of another model"),
        ("mikv", {}, "off", "under another logical type"),
        ("off", {}, "mikv", "under another logical type"),
        ("mikv", {}, "paper", "under another logical type"),
        ("h2o", {}, "q8", "tokens were dropped"),
    ],
)
def test_foreign_files_are_refused(tiny_model: Writer, tmp_path: Path, saved: str, model: Any, kv: str, words: str) -> None:
    _read(_load(tiny_model(), kv=saved)).save_kv(tmp_path / "state")
    llm = _read(_load(tiny_model(**model), kv=kv), "kept")
    with pytest.raises(StateError, match=words):
        llm.load_kv(tmp_path / "state")
    assert llm.n_tokens == 4
    assert np.isfinite(_continue(llm, 2)).all()


def test_llama_cpps_own_caches_of_states_are_exact(tiny_model: Writer) -> None:
    """LlamaRAMCache keeps LlamaStates: packed ones now, a quarter of the size, and equal to the bit."""
    llm = _read(_load(tiny_model()))
    cache = llama_cpp.LlamaRAMCache()
    cache[tuple(llm.input_ids[:600].tolist())] = llm.save_state()
    expected = _continue(llm)
    llm.load_state(cache[tuple(TEXT[:600].encode())])
    assert llm.n_tokens == 600
    assert np.array_equal(_continue(llm), expected)


def test_a_state_of_stock_bytes_still_loads(tiny_model: Writer) -> None:
    """One that llama_cpp.Llama.save_state made of this cache: rows in q8_0, quantized once more."""
    llm = _read(_load(tiny_model(), kv="q8"))
    stock = llama_cpp.Llama.save_state(llm)
    expected = _continue(llm, 1)
    llm.load_state(stock)
    assert llm.n_tokens == 600
    assert np.abs(_continue(llm, 1) - expected).mean() < 0.05 * np.abs(expected).mean()


def test_conversations_come_back_from_disk_where_several_share_a_model(tiny_model: Writer, tmp_path: Path) -> None:
    llm = _load(tiny_model())
    logits = {}
    for name in ("one", "two"):
        llm.forget()
        _read(llm, f"Conversation {name}. {TEXT[:300]}")
        llm.save_kv(tmp_path / name)
        logits[name] = _continue(llm)
    for name in ("one", "two", "one"):
        llm.load_kv(tmp_path / name)
        assert np.array_equal(_continue(llm), logits[name])
