"""`Llama` on the real plug-in, with tiny random models and with SmolLM2."""

from __future__ import annotations

import gc
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from mikv_cpp import (
    BudgetError,
    ConfigError,
    KVConfig,
    LibraryError,
    Llama,
    ModelError,
    PolicyQuery,
    StateError,
    register_policy,
)
from mikv_cpp import plugin as module
from mikv_cpp.config import POLICIES

Writer = Callable[..., Path]
TEXT = "The quick brown fox jumps over the lazy dog. " * 12


def _load(path: Path, **settings: Any) -> Llama:
    return Llama(path, **{"n_ctx": 1024, "n_batch": 128, "n_ubatch": 128, "n_threads": 2, "verbose": False, **settings})


def _logits(llm: llama_cpp.Llama, text: str = TEXT) -> Any:
    llm.reset()
    llm.eval(llm.tokenize(text.encode()))
    return llm.scores[: llm.n_tokens].copy()


def _divergence(logits: Any, reference: Any) -> float:
    """Mean KL divergence to the reference."""
    p, q = (llama_cpp.Llama.logits_to_logprobs(x.astype(np.float64)) for x in (reference, logits))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


# --- the cache is really there, and really approximates -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {"head_dim": 32, "n_head_kv": 1},
        {"head_dim": 64, "n_head_kv": 2},
        {"head_dim": 80, "n_head_kv": 1},
        {"head_dim": 96, "n_head_kv": 4},
        {"head_dim": 112, "n_head_kv": 2},
        {"head_dim": 128, "n_head_kv": 1},
        {"head_dim": 256, "n_head_kv": 2},
        {"arch": "mpt", "n_head_kv": 4},
        {"arch": "gemma2", "n_layer": 4},
        {"arch": "gemma3", "n_layer": 6},
    ],
    ids=str,
)
def test_logits_are_near_f16_and_nearer_with_more_bits(tiny_model: Writer, sizes: dict[str, Any]) -> None:
    path = tiny_model(**sizes)
    reference = _logits(_load(path, kv="off", logits_all=True, flash_attn=True))
    all_refined = _divergence(_logits(_load(path, kv="q8", logits_all=True)), reference)
    coarse = _divergence(
        _logits(_load(path, kv=KVConfig(k_bits=2, v_bits=2, refined_share=0.0, window=0, sinks=0), logits_all=True)), reference
    )
    assert all_refined < 0.02
    assert all_refined < 0.5 * coarse


def test_stats_say_what_the_config_promised(tiny_model: Writer) -> None:
    llm = _load(tiny_model(n_layer=3), kv=KVConfig(sinks=4, window=16, refined_share=0.1))
    llm.eval(llm.tokenize(TEXT.encode()))
    stats = llm.kv.stats()
    n_tokens = len(TEXT)
    assert stats.tokens == n_tokens
    assert stats.tokens_exact == 4
    assert stats.tokens_refined == pytest.approx(0.1 * 1024, abs=2)
    assert stats.tokens_exact + stats.tokens_refined + stats.tokens_base == pytest.approx(n_tokens)
    assert stats.mass_exact + stats.mass_refined + stats.mass_base == pytest.approx(1, abs=1e-3)
    assert 0 < stats.bytes_used <= stats.bytes_total < stats.bytes_f16 / 2
    assert stats.bytes_f16 == 3 * 2 * 1024 * 128 * 2
    assert stats.bits_per_value == pytest.approx(16 * stats.bytes_total / stats.bytes_f16)
    assert stats.demotions > 0
    assert [row.layer for row in stats.by_layer] == [0, 1, 2]
    assert stats.note == ""


def test_maps_show_sinks_window_and_base(tiny_model: Writer) -> None:
    llm = _load(tiny_model(), kv=KVConfig(k_bits=3, refined_bits=6, sinks=4, window=16, refined_share=0.0, policy="recent"))
    llm.eval(llm.tokenize(TEXT.encode()))
    bits, scores = llm.kv.precision_map(1), llm.kv.scores(1)
    assert bits.shape == scores.shape == (2, len(TEXT))
    assert (bits.dtype, scores.dtype) == (np.uint8, np.float32)
    assert (bits[:, :4] == 16).all()
    assert (bits[:, -16:] == 6).all()
    assert set(np.unique(bits[:, 4:-20])) == {3}
    assert (scores[bits == 3] == 0).all()
    with pytest.raises(ConfigError, match="layer 2 is not in the mixed-precision cache: it has 0 to 1"):
        llm.kv.precision_map(2)


def test_precision_steps_down_only_when_the_pool_fills(tiny_model: Writer) -> None:
    llm = _load(tiny_model(), kv=KVConfig(refined_share=0.5))
    llm.eval(llm.tokenize(TEXT[:300].encode()))
    assert llm.kv.stats().tokens_base == 0
    llm.eval(llm.tokenize((TEXT + TEXT)[:400].encode()))
    assert llm.kv.stats().tokens_base > 0


def test_a_budget_is_kept(tiny_model: Writer) -> None:
    path = tiny_model(n_layer=4)
    prompt = list((TEXT + TEXT).encode())
    for budget, share in (("30%", 0.30), ("2.5MiB", 0.3125), ("100%", 1.0)):
        llm = _load(path, n_ctx=4096, n_batch=512, n_ubatch=512, kv=KVConfig(budget=budget))
        llm.eval(prompt)  # a full micro-batch, which the budget has set room aside for
        stats = llm.kv.stats()
        assert stats.bytes_total <= share * stats.bytes_f16
        assert stats.bytes_total > 0.9 * min(share, 0.40) * stats.bytes_f16  # 0.40 is about what all tokens refined take


@pytest.mark.parametrize(
    ("preset", "swa_full"),
    [
        *product(("mikv", "zipcache", "rdkv", "qpruning", "snapkv", "h2o"), (True, False)),
        ("pyramidkv", True),  # a table by layer is planned at full length
    ],
)
def test_a_share_is_spent_with_sliding_windows_too(tiny_model: Writer, preset: str, swa_full: bool) -> None:
    """Of both caches together, and whether it decides on refined tokens or on a pool's rows."""
    path = tiny_model(arch="gemma3", n_layer=13, sliding_window=64)
    kv = replace(KVConfig.preset(preset), budget="33%")
    llm = _load(path, n_ctx=2048, n_batch=512, n_ubatch=512, swa_full=swa_full, kv=kv)
    llm.eval(list((TEXT * 2).encode())[:512])  # a full micro-batch, which the budget has set room aside for
    stats = llm.kv.stats()
    assert 0.97 * 0.33 * stats.bytes_f16 < stats.bytes_total <= 0.33 * stats.bytes_f16


def test_layers_have_their_own_bits(tiny_model: Writer) -> None:
    llm = _load(tiny_model(n_layer=3), kv=KVConfig(window=8, refined_share=0.1, layers="1:k3v3r8s0.5"))
    llm.eval(llm.tokenize(TEXT.encode()))
    rows = {row.layer: row for row in llm.kv.stats().by_layer}
    assert [rows[layer].k_bits for layer in (0, 1, 2)] == [4, 3, 4]
    assert [rows[layer].refined_bits for layer in (0, 1, 2)] == [5, 8, 5]
    assert rows[1].n_slots > 4 * rows[0].n_slots
    assert rows[0].bytes_total == rows[2].bytes_total < rows[1].bytes_total
    assert set(np.unique(llm.kv.precision_map(1))) == {3, 8, 16}


def test_a_windowed_cache_is_packed_too_and_takes_none_of_the_budget(tiny_model: Writer) -> None:
    plain = _load(tiny_model(n_layer=3), n_ctx=512)  # whose cache must not be taken for the first one of the next model
    assert plain.kv.layers == [0, 1, 2]
    path = tiny_model(arch="gemma3", n_layer=7, sliding_window=64)
    llm = _load(path, n_ctx=4096, n_batch=64, n_ubatch=64, swa_full=False, kv=KVConfig(budget="5MiB"))
    assert llm.kv.layers == [0, 1, 2, 3, 4, 5, 6]
    llm.eval(list((TEXT * 3).encode())[:1000])
    shares = {row.layer: row.n_slots for row in llm.kv.stats().by_layer}
    assert shares[5] == 4096, "the full layer has the budget to itself, enough to refine everything"
    assert shares[0] < llm.kv.precision_map(0).shape[1] < 1000, "a window's cells are used again, and a share of them refined"


def test_several_models_each_see_their_own_cache(tiny_model: Writer) -> None:
    first, second = _load(tiny_model(), kv="q8"), _load(tiny_model(n_layer=3), kv="mikv-2bit")
    first.eval(first.tokenize(b"one"))
    second.eval(second.tokenize(b"three"))
    assert (first.kv.stats().tokens, second.kv.stats().tokens) == (3, 5)
    assert (first.kv.layers, second.kv.layers) == ([0, 1], [0, 1, 2])
    assert set(first.kv.ids).isdisjoint(second.kv.ids)
    first.close()
    assert second.kv.stats().tokens == 5
    with pytest.raises(ConfigError):
        first.kv.stats()  # its cache is gone: an error, not a crash


# --- a llama_cpp.Llama in every other respect ---------------------------------------------------------------------------------


def test_off_is_llama_cpp(tiny_model: Writer) -> None:
    path = tiny_model()
    ours = _logits(_load(path, kv="off", logits_all=True))
    theirs = _logits(
        llama_cpp.Llama(str(path), n_ctx=1024, n_batch=128, n_ubatch=128, n_threads=2, verbose=False, logits_all=True)
    )
    assert np.array_equal(ours, theirs)


def test_off_stays_plain_when_the_plug_in_is_loaded(tiny_model: Writer) -> None:
    on = _load(tiny_model())
    off = _load(tiny_model(), kv="off", n_gpu_layers=-1)
    off.eval(off.tokenize(b"hello"))
    assert on.kv.stats().tokens == 0
    with pytest.raises(ConfigError, match=r'kv="off"'):
        _ = off.kv
    assert off.kv_stats().bytes_total == 2 * 2 * 1024 * 128 * 2
    assert off.kv_stats().tokens == 5


def test_chat_completion_streams_on_smollm(smollm: Path) -> None:
    llm = _load(smollm, n_ctx=512)
    question: Any = [{"role": "user", "content": "Say hello."}]
    whole: Any = llm.create_chat_completion(question, max_tokens=12, temperature=0)
    llm.reset()  # else the prompt is not read again, but found in the cache, where it is no longer exact
    pieces: Any = llm.create_chat_completion(question, max_tokens=12, temperature=0, stream=True)
    streamed = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
    assert streamed == whole["choices"][0]["message"]["content"] != ""


def test_embeddings_are_untouched(tiny_model: Writer) -> None:
    path = tiny_model()
    ours = _load(path, embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN)
    theirs = llama_cpp.Llama(
        str(path),
        n_ctx=1024,
        n_batch=128,
        n_threads=2,
        verbose=False,
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
    )
    assert np.allclose(ours.embed("hello"), theirs.embed("hello"))


def test_pickled_with_its_settings(tiny_model: Writer) -> None:
    copy = pickle.loads(pickle.dumps(_load(tiny_model(), kv=KVConfig(k_bits=4))))  # noqa: S301 - our own bytes
    assert copy.kv_config == KVConfig(k_bits=4)
    copy.eval(copy.tokenize(b"hello"))
    assert copy.kv.stats().tokens == 5


def test_prefixes_are_reused_and_sliding_windows_not_rolled_back_too_far(tiny_model: Writer) -> None:
    path = tiny_model(arch="gemma2", n_layer=2, sliding_window=32)
    prompt = list(TEXT.encode())
    fresh, used = (_load(path, swa_full=False, n_ctx=2048, n_batch=64, n_ubatch=64, kv="q8") for _ in range(2))
    used.eval(list((TEXT + TEXT).encode()))
    expected = [token for token, _ in zip(fresh.generate(prompt, temp=0.0), range(8))]
    assert [token for token, _ in zip(used.generate(prompt, temp=0.0), range(8))] == expected


def test_progress_is_told(tiny_model: Writer) -> None:
    shares: list[float] = []
    llm = _load(tiny_model(), on_load=shares.append)
    assert shares[-1] == 1.0
    told: list[tuple[int, int]] = []
    llm.on_prompt = lambda done, total: told.append((done, total))
    llm.eval(llm.tokenize(TEXT[:300].encode()))
    assert told == [(128, 300), (256, 300), (300, 300)]


def test_ctrl_c_while_loading_gets_through(tiny_model: Writer) -> None:
    def stop(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _load(tiny_model(), on_load=stop)


# --- state --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["q8", "off"])
def test_state_comes_back(tiny_model: Writer, kv: str) -> None:
    llm = _load(tiny_model(), kv=kv)
    prompt = list(TEXT[:200].encode())
    llm.eval(prompt)
    state = llm.save_state()
    expected = [token for token, _ in zip(llm.generate(list(b"and then"), temp=0.0, reset=False), range(8))]
    llm.load_state(state)
    assert llm.n_tokens == 200
    assert [token for token, _ in zip(llm.generate(list(b"and then"), temp=0.0, reset=False), range(8))] == expected


def test_a_state_of_another_configuration_is_refused_and_the_conversation_kept(tiny_model: Writer) -> None:
    other = _load(tiny_model(n_layer=3), kv="off")
    other.eval(list(b"something else"))
    llm = _load(tiny_model())
    llm.eval(list(TEXT[:100].encode()))
    with pytest.raises(StateError, match=r"saved state of 14 tokens does not fit .* same n_ctx"):
        llm.load_state(other.save_state())
    assert llm.n_tokens == llm.kv.stats().tokens == 100
    assert bytes(llm.input_ids[:100].tolist()).decode() == TEXT[:100]


# --- policies in Python -------------------------------------------------------------------------------------------------------


def test_a_python_policy_decides(tiny_model: Writer) -> None:
    asked: list[PolicyQuery] = []

    def oldest_first(query: PolicyQuery) -> Any:
        asked.append(query)
        return -query.born.astype(np.float32)

    register_policy("oldest", oldest_first)
    llm = _load(tiny_model(), kv=KVConfig(policy="oldest", sinks=0, window=16, refined_share=0.1))
    llm.eval(list(TEXT.encode()))
    bits = llm.kv.precision_map(0)
    assert (bits[:, :64] == 5).all()  # about 100 rows are refined: the oldest, and the window
    assert (bits[:, 128:-16] == 4).all()
    assert {query.head for query in asked} == {0, 1}
    assert all((query.value_norm > 0).all() for query in asked)
    assert all(query.cell.shape == query.born.shape == query.mass.shape == query.value_norm.shape for query in asked)


def test_a_policy_can_be_replaced(tiny_model: Writer) -> None:
    def rank(sign: int) -> Any:
        return lambda query: sign * query.born.astype(np.float32)

    config = []
    for sign in (1, -1):
        register_policy("replaced", rank(sign))
        config.append(KVConfig(policy="replaced", sinks=0, window=0, refined_share=0.1))
    llm = _load(tiny_model(), kv=config[0])
    llm.eval(list(TEXT.encode()))
    bits = llm.kv.precision_map(0)
    assert (bits[:, :64] == 5).all()  # the second one ranks the oldest first
    assert (bits[:, -64:] == 4).all()


def test_a_python_policy_that_fails_is_reported_once(tiny_model: Writer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(query: PolicyQuery) -> Any:
        raise ValueError(f"no idea about layer {query.layer}")

    register_policy("broken", broken)
    llm = _load(tiny_model(), kv=KVConfig(policy="broken", refined_share=0.1))
    with caplog.at_level(logging.ERROR, logger="mikv_cpp"):
        llm.eval(list(TEXT.encode()))
    assert [record.getMessage()[:45] for record in caplog.records] == ["policy 'broken' failed (ValueError: no idea a"]
    assert llm.kv.stats().tokens == len(TEXT)


# --- bad input ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"kv": "best"}, ConfigError, "unknown preset 'best': use one of mikv"),
        ({"kv": 3}, ConfigError, "kv=3 is not possible"),
        ({"type_k": 1}, ConfigError, "type_k=1 cannot be combined"),
        ({"type_v": 2}, ConfigError, "type_v=2 cannot be combined"),
        ({"flash_attn": False}, ConfigError, "flash_attn=False cannot be combined"),
        ({"offload_kqv": False}, ConfigError, "offload_kqv=False cannot be combined"),
        ({"n_gpu_layers": 1}, ConfigError, "n_gpu_layers=1 cannot be combined"),
        ({"n_ctx": -1}, ConfigError, "n_ctx=-1 is not possible"),
        ({"n_ctx": 2_000_000_000}, BudgetError, "ask for at most"),
        ({"n_ctx": 2_000_000_000, "kv": "off"}, BudgetError, "ask for at most"),
        ({"kv": KVConfig(budget="5%")}, BudgetError, "the smallest that works"),
    ],
)
def test_settings_that_cannot_be_used(tiny_model: Writer, settings: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        _load(tiny_model(), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kv", [None, "off"])
def test_damaged_models(tiny_model: Writer, tmp_path: Path, kv: Any) -> None:
    content = tiny_model().read_bytes()
    for name, part, words in (
        ("text", b"hello", "not a GGUF file"),
        ("half", content[: len(content) // 2], "truncated|not within the file bounds"),
        ("nearly", content[:-100], "not within the file bounds"),
    ):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ModelError, match=words):
            _load(tmp_path / name, kv=kv)
    with pytest.raises(ModelError, match="does not exist"):
        _load(tmp_path / "nothing", kv=kv)


def test_an_unknown_architecture_names_it(tiny_model: Writer, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(tiny_model().read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(ModelError, match="lamma"):
        _load(tmp_path / "model.gguf", kv="off")


def test_another_llama_cpp_python_is_refused_naming_both(tiny_model: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "__version__", "0.3.1")
    with pytest.raises(
        LibraryError, match=rf"0\.3\.1 is installed, but mikv_cpp needs {module.LLAMA_CPP_VERSION}: `pip install"
    ):
        _load(tiny_model())


def test_a_refused_model_leaves_nothing_behind(tiny_model: Writer, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        _load(tiny_model(), kv="best")
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err


def test_registered_policies_are_listed() -> None:
    register_policy("listed", lambda query: query.mass)
    assert "listed" in POLICIES
    with pytest.raises(ConfigError, match="listed"):
        KVConfig(policy="unheard of")
