"""The measurements on MIKV caches: needs the native library."""

from __future__ import annotations

import json

import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp import bench
from mikv_cpp.caches import parse_caches
from mikv_cpp.engine import Models
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import kl
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.texts import read_text

N_CTX = 512


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


def measure_kl(model, caches, ubatch=64):
    with Models(model, n_threads=1) as models:
        chunks = kl.cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, 2)
        engines = [models.open(spec, N_CTX, ubatch) for spec in parse_caches(caches)]
        scores = [score.summary() for score in kl.measure(engines, chunks, ubatch)]
        return {
            engine.spec.name: {**score, "bits": engine.bits_per_value, "kv": engine.kv and engine.kv.stats()}
            for engine, score in zip(engines, scores)
        }


def test_fewer_bits_cost_more_and_take_less(model):
    found = measure_kl(model, "f16,q8_0,q8,k4v4r8s0,k3v3r8s0,k2v2r8s0")
    ladder = [found[name] for name in ("q8", "k4v4r8s0", "k3v3r8s0", "k2v2r8s0")]
    for finer, coarser in zip(ladder, ladder[1:]):
        assert 2 * finer["mean_kl"] < coarser["mean_kl"]
        assert finer["bits"] > coarser["bits"]
    assert found["q8"]["mean_kl"] < 2 * found["q8_0"]["mean_kl"]


def test_each_cache_has_its_own_configuration_and_statistics(model):
    found = measure_kl(model, "f16,q8,k2v2r8s0:sinks=7:window=0,k2v2r8s0:sinks=0:window=0")
    assert found["f16"]["kv"] is None
    assert found["q8"]["kv"].tokens_base == 0
    seven, none = (found[name]["kv"] for name in list(found)[2:])
    assert (seven.tokens, seven.tokens_exact, none.tokens_exact) == (N_CTX, 7, 0)
    assert seven.bytes_total > none.bytes_total


def test_caches_are_emptied_between_chunks(model):
    """A chunk's score is the same whether or not another chunk was read before it."""
    with Models(model, n_threads=1) as models:
        chunks = kl.cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, 2)
        engines = [models.open(spec, N_CTX, 64) for spec in parse_caches("f16,mikv")]
        both = kl.measure(engines, chunks, 64)[1]
        second = kl.measure(engines, chunks[1:], 64)[1].summary()
    n = N_CTX // 2 - 1
    after_first = sum(part.sum() for part in both.kl[len(both.kl) // 2 :]) / n
    assert after_first == pytest.approx(second["mean_kl"], rel=1e-6)


def test_a_model_that_cannot_be_compressed_is_refused(tmp_path):
    odd = str(write_tiny_model(tmp_path / "odd.gguf", TinyModel(head_dim=48)))
    with Models(odd, n_threads=1) as models, pytest.raises(ConfigError):
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
    assert main(["memory", model, "-c", "32768", "--fill", "64", "--caches", "f16,k2v2r8s0.2", "-t", "1", "--json"]) == 0
    f16, ours = json.loads(capsys.readouterr().out)["rows"]
    saved = ours["kv"]["bytes_f16"] - ours["kv"]["bytes_total"]
    assert saved > 0.7 * ours["kv"]["bytes_f16"]
    assert f16["rss_delta"] - ours["rss_delta"] > 0.8 * saved
