"""The measurements on MIKV caches: needs the native library."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp import native
from mikv_cpp.bench import decode as bench
from mikv_cpp.caches import parse_caches
from mikv_cpp.engine import Models
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.archive import open_archive
from mikv_cpp.eval.divergence import Scores, log_softmax
from mikv_cpp.eval.footprint import Footprint
from mikv_cpp.eval.identity import identify_cache
from mikv_cpp.eval.passages import Passage, cut_chunks
from mikv_cpp.eval.scoring import Reference, Scorer, score, scored_logits
from mikv_cpp.eval.texts import read_text

MIB = 2**20
N_CTX = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


class Progress:
    """A progress bar that nobody sees."""

    total = 0

    def update(self, n):
        pass

    def set_postfix_str(self, text):
        pass


def measure_kl(model, caches, ubatch=64):
    with Models(model, n_threads=1) as models, open_archive(None) as archive:
        chunks = cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, 2)
        scorer = Scorer(models, N_CTX, ubatch, archive, Progress())
        specs = parse_caches(caches)
        parts = zip(*(scorer.score(specs, Passage(None, chunk)) for chunk in chunks))
        return {
            spec.name: {**Scores.joined([part.scores for part in own]).summary(), **own[0].footprint.fields()}
            for spec, own in zip(specs, parts)
        }


def test_fewer_bits_cost_more_and_take_less(model):
    found = measure_kl(model, "f16,q8_0,q8,k4v4r8s0,k3v3r8s0,k2v2r8s0")
    ladder = [found[name] for name in ("q8", "k4v4r8s0", "k3v3r8s0", "k2v2r8s0")]
    for finer, coarser in zip(ladder, ladder[1:]):
        assert 2 * finer["mean_kl"] < coarser["mean_kl"]
        assert finer["bits_per_value"] > coarser["bits_per_value"]
    assert found["q8"]["mean_kl"] < 2 * found["q8_0"]["mean_kl"]


def test_each_cache_has_its_own_configuration_and_statistics(model):
    names = ("q8", "k2v2r8s0:sinks=7:window=0", "k2v2r8s0:sinks=0:window=0")
    with Models(model, n_threads=1) as models:
        tokens = models.vocabulary.tokenize(read_text())[:N_CTX]
        q8, seven, none = (models.open(spec, N_CTX, 64) for spec in parse_caches(",".join(names)))
        for engine in (q8, seven, none):
            engine.decode(tokens, first_logits=-1)
        q8, seven, none = (engine.kv.stats() for engine in (q8, seven, none))
    assert q8.tokens_base == 0
    assert (seven.tokens, seven.tokens_exact, none.tokens_exact) == (N_CTX, 7, 0)
    assert seven.bytes_total > none.bytes_total


def test_bytes_are_those_of_the_cache_itself(model):
    found = measure_kl(model, "f16,q4_0,k2v2r8s0.2")
    ours = found["k2v2r8s0.2"]
    assert ours["bytes_f16"] == found["f16"]["bytes_total"] == found["q4_0"]["bytes_f16"], "the library counts the same cells"
    assert ours["bits_per_value"] == pytest.approx(16 * ours["bytes_total"] / ours["bytes_f16"])


def test_windowed_layers_count_too(tiny_model):
    """Gemma3 has windowed layers and full ones, in two caches."""
    with Models(str(tiny_model(arch="gemma3", n_layer=7)), n_threads=1) as models:
        f16, ours = (models.open(spec, N_CTX, 64) for spec in parse_caches("f16,mikv"))
        ours.decode(models.vocabulary.tokenize("Some text."))
        whole, found, stats = Footprint.of(models, f16), Footprint.of(models, ours), ours.kv.stats()
    layer_f16 = 2 * 2 * 2 * 64 * N_CTX  # bytes, K and V, heads, head size, cells
    assert whole.bytes_total == found.bytes_f16 == 7 * layer_f16
    assert len(stats.by_layer) == 7
    assert found.bytes_total == stats.bytes_total
    assert found.bits_per_value == pytest.approx(16 * found.bytes_total / found.bytes_f16)


def test_another_build_of_the_library_is_another_cache(tmp_path, monkeypatch):
    spec, plain = parse_caches("mikv,q8_0")
    before = identify_cache(spec)
    changed = tmp_path / "libggml-mikv.so"
    changed.write_bytes(b"another build")
    monkeypatch.setenv("MIKV_LIBRARY", str(changed))
    assert identify_cache(spec) != before
    assert identify_cache(plain) == {"name": "q8_0"}


def test_caches_are_emptied_between_passages(model):
    """A passage's score is the same whether or not another was read on the same context before it."""
    with Models(model, n_threads=1) as models:
        one, two = (Passage(None, chunk) for chunk in cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, 2))
        f16, mikv = (models.open(spec, N_CTX, 64) for spec in parse_caches("f16,mikv"))
        log_p = np.concatenate([log_softmax(rows) for _, rows in scored_logits(f16, two, 64, lambda _n: None)])
        reference = Reference(log_p.astype(np.float16), log_p.argmax(axis=-1))
        fresh = score(mikv, two, 64, reference, lambda _n: None)
        score(mikv, one, 64, reference, lambda _n: None)
        again = score(mikv, two, 64, reference, lambda _n: None)
    np.testing.assert_allclose(again.kl, fresh.kl, rtol=1e-6)


def test_a_cache_that_was_not_compressed_is_not_measured(tmp_path, monkeypatch):
    """The context's cache is f16 (48 values: llama.cpp rotates no such heads), and the device is not told to take those."""
    monkeypatch.setattr(native, "logical_type", lambda *_: "q8_0")
    odd = str(write_tiny_model(tmp_path / "odd.gguf", TinyModel(head_dim=48)))
    with Models(odd, n_threads=1) as models, pytest.raises(ConfigError, match=r"cannot be measured: .* stays llama\.cpp's own"):
        models.open(parse_caches("mikv")[0], N_CTX)


def test_bench_and_greedy(model, capsys):
    arguments = ["--depths", "0,300", "--burst", "2", "--rounds", "2", "--caches", "mikv,q4_0", "--threads", "1", "--json"]
    assert bench.main([model, *arguments]) == 0
    assert [row["cache"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["f16", "mikv", "q4_0"] * 2
    assert main(["greedy", model, "--tokens", "16", "--threads", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["cache"] for row in rows] == ["q8"] * 3
    assert all(row["same"] or "logit_gap" in row for row in rows)


def test_memory_tells_the_bytes_of_the_cache_itself(model, capsys):
    assert main(["memory", model, "-c", "32768", "--fill", "2048", "--caches", "f16,k2v2r8s0.2", "-t", "1", "--json"]) == 0
    f16, ours = json.loads(capsys.readouterr().out)["rows"]
    saved = ours["kv"]["bytes_f16"] - ours["kv"]["bytes_total"]
    assert saved > 0.7 * ours["kv"]["bytes_f16"]
    assert f16["rss_delta"] - ours["rss_delta"] > 0.8 * saved
    assert f16["device_delta"] is ours["device_delta"] is None, "there is no GPU"
    if ours["peak_delta"] is not None:  # never more than what stays and one layer of two in f16
        assert ours["rss_delta"] <= ours["peak_delta"] + MIB
        assert ours["peak_delta"] - ours["rss_delta"] < ours["kv"]["bytes_f16"] / 2
