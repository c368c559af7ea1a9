"""Scoring against f16: which positions, how exact, and what is taken from a folder of results."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.caches import parse_caches
from mikv_cpp.engine import Models
from mikv_cpp.errors import MikvError
from mikv_cpp.eval import identity, scoring
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.archive import open_archive
from mikv_cpp.eval.divergence import kl_rows, log_softmax
from mikv_cpp.eval.passages import Passage, cut_chunks
from mikv_cpp.eval.texts import read_text

N_CTX = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


class Progress:
    """A progress bar that nobody sees."""

    total = done = 0

    def update(self, n):
        self.done += n

    def set_postfix_str(self, text):
        pass


class FakeEngine:
    """Predicts, with certainty, the token that follows in `text`, whatever it reads."""

    def __init__(self, text, add_bos):
        self.vocabulary = SimpleNamespace(add_bos=add_bos, bos=999)
        self.text, self.read = text, []

    def clear(self):
        pass

    def decode(self, tokens, first_logits):
        done = len(self.read)
        self.read += tokens.tolist()
        rows = np.full((max(len(tokens) - first_logits, 0), 1000), -1000.0, dtype=np.float32)
        for row, position in enumerate(range(done + first_logits, done + len(tokens))):
            rows[row, self.text[(position + 1) % len(self.text)]] = 1000.0
        return rows


@pytest.mark.parametrize("ubatch", [1, 5, 8, 16, 64])
@pytest.mark.parametrize("add_bos", [False, True])
def test_second_halves_are_scored_against_the_tokens_that_follow(ubatch, add_bos):
    tokens = np.random.default_rng(2).permutation(900)[:48].astype(np.int32)
    engine, progress = FakeEngine(tokens, add_bos), Progress()
    reference = scoring.Reference(np.full((7, 1000), -6.9, dtype=np.float16), np.zeros(7, dtype=np.int32))
    scores = [
        scoring.score(engine, Passage(None, chunk), ubatch, reference, progress.update) for chunk in cut_chunks(tokens, 16, 0)
    ]
    assert [len(part.nll) for part in scores] == [7] * 3, "positions 8 .. 14 of each chunk: position 15 has no next token"
    assert max(part.nll.max() for part in scores) == 0, "a score against any other token than the next one would be 2000"
    expected = tokens.reshape(3, 16).copy()
    if add_bos:
        expected[:, 0] = 999
    assert engine.read == expected.ravel().tolist()
    assert progress.done == 48


def score_all(model, caches, ubatch=64, n_chunks=1):
    """Outcomes of caches on the first chunks, and the same KL with nothing rounded, both runs in lockstep."""
    with Models(model, n_threads=1) as models, open_archive(None) as archive:
        chunks = cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, n_chunks)
        scorer = scoring.Scorer(models, N_CTX, ubatch, archive, Progress())
        specs = parse_caches(caches)
        found = [scorer.score(specs, Passage(None, chunk)) for chunk in chunks]
        assert not list(archive.folder.glob("reference-*.f16")), "a table that nobody needs any more stays behind"
        engines = [models.open(spec, N_CTX, ubatch) for spec in specs]
        exact = []
        for chunk in chunks:
            log_p = []
            for engine in engines:
                engine.clear()
                log_p.append(log_softmax(engine.decode(Passage(None, chunk).inputs(models.vocabulary), N_CTX // 2)[:-1]))
            exact.append([kl_rows(log_p[0], other) for other in log_p])
    return found, exact


def test_a_reference_in_float16_changes_the_mean_by_well_under_a_percent(model):
    found, exact = score_all(model, "f16,q8_0,q4_0", n_chunks=2)
    for chunk_found, chunk_exact in zip(found, exact):
        for outcome, expected in zip(chunk_found[1:], chunk_exact[1:]):
            assert outcome.scores.kl.mean() == pytest.approx(expected.mean(), rel=3e-3)
            np.testing.assert_allclose(outcome.scores.kl, expected, rtol=0.05, atol=2e-6)
    f16 = found[0][0].scores
    assert f16.kl.max() == 0
    assert f16.same_top.all()


def test_a_seeded_fault_in_the_reference_is_seen(model, monkeypatch):
    """The test above fails for a reference that cuts off what is unlikely."""
    monkeypatch.setattr(scoring, "LEAST_LOG_P", -2.0)
    found, exact = score_all(model, "f16,q8_0")
    assert found[0][1].scores.kl.mean() != pytest.approx(exact[0][1].mean(), rel=3e-3)


def test_coarser_caches_are_worse(model):
    found, _ = score_all(model, "f16,q8_0,q4_0")
    f16, q8_0, q4_0 = (outcome.scores.summary() for outcome in found[0])
    assert 0 < q8_0["mean_kl"] < q4_0["mean_kl"] / 10
    assert q4_0["same_top"] < 1
    assert q8_0["ppl"] == pytest.approx(f16["ppl"], rel=0.01)


def test_the_numbers_do_not_depend_on_the_micro_batch(model):
    results = [score_all(model, "f16,q4_0", ubatch)[0][0][1].scores.summary() for ubatch in (37, 256)]
    assert results[0]["mean_kl"] == pytest.approx(results[1]["mean_kl"], rel=0.02)
    assert results[0]["ppl"] == pytest.approx(results[1]["ppl"], rel=0.001)


def test_bytes_of_plain_caches_are_those_that_llama_cpp_allocates(model):
    found, _ = score_all(model, "f16,q8_0,q4_0")
    f16, q8_0, q4_0 = (outcome.footprint for outcome in found[0])
    assert f16.bytes_total == f16.bytes_f16 == 2 * 2 * 2 * 2 * 64 * 256  # bytes, K and V, layers, heads, head size, cells
    assert q8_0.bytes_total == f16.bytes_f16 * 34 / 64  # 32 values take 34 bytes
    assert q4_0.bytes_total == f16.bytes_f16 * 18 / 64
    assert (f16.bits_per_value, q8_0.bits_per_value, q4_0.bits_per_value) == (16.0, 8.5, 4.5)


@pytest.fixture
def opened(monkeypatch):
    """Names of the caches whose contexts were opened."""
    names = []
    original = Models.open

    def count(self, spec, *args, **kwargs):
        names.append(spec.name)
        return original(self, spec, *args, **kwargs)

    monkeypatch.setattr(Models, "open", count)
    return names


def measure(model, folder, capsys, *options, caches="q8_0"):
    common = ["kl", "--model", model, "--kv", caches, "--keep", str(folder), "--threads", "1", "--json"]
    sizes = [] if "-c" in options else ["-c", "128"]
    assert main([*common, *sizes, *(options or ["--chunks", "1"])]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_there_is_not_computed_again(model, tmp_path, capsys, opened):
    first = measure(model, tmp_path / "kept", capsys)
    assert opened == ["f16", "q8_0"]
    opened.clear()
    assert measure(model, tmp_path / "kept", capsys) == first
    assert opened == []
    more = measure(model, tmp_path / "kept", capsys, caches="q8_0,q4_0")
    assert opened == ["q4_0"], "the kept reference serves a cache that comes later"
    assert more["rows"][:2] == first["rows"]
    opened.clear()
    measure(model, tmp_path / "kept", capsys, "--chunks", "2")
    assert opened == ["f16", "q8_0"], "the second chunk alone"


@pytest.mark.parametrize(
    "options",
    [["-c", "64", "--chunks", "1"], ["--ubatch", "32", "--chunks", "1"], ["--text", "TEXT", "--chunks", "1"]],
    ids=["context", "micro-batch", "text"],
)
def test_what_differs_is_computed_again(model, tmp_path, capsys, opened, options):
    measure(model, tmp_path / "kept", capsys)
    opened.clear()
    (tmp_path / "TEXT").write_text("Another text. " * 20)
    measure(model, tmp_path / "kept", capsys, *(str(tmp_path / "TEXT") if part == "TEXT" else part for part in options))
    assert opened == ["f16", "q8_0"]


def test_another_model_under_the_same_name_is_another_model(tmp_path, capsys, opened):
    path = tmp_path / "tiny.gguf"
    rows = []
    for seed in (0, 1):
        write_tiny_model(path, TinyModel(seed=seed))
        rows.append(measure(str(path), tmp_path / "kept", capsys)["rows"])
    assert opened == ["f16", "q8_0"] * 2
    assert rows[0] != rows[1]


def test_a_copy_of_a_model_is_the_same_model(model, tmp_path):
    copy = shutil.copy(model, tmp_path / "copy.gguf")
    assert identity.identify_model(copy) == identity.identify_model(type(copy)(model))
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert identity.identify_model(copy) != identity.identify_model(type(copy)(model))
    with pytest.raises(MikvError, match="cannot read the model"):
        identity.identify_model(tmp_path / "missing.gguf")


def test_weights_far_behind_the_header_count(tmp_path):
    path = tmp_path / "large.gguf"
    path.write_bytes(bytes(3 << 20))
    before = identity.identify_model(path)
    with path.open("r+b") as file:
        file.seek(5 << 19)
        file.write(b"!")
    assert identity.identify_model(path) != before


def test_damaged_files_are_computed_again(model, tmp_path, capsys, opened):
    first = measure(model, tmp_path / "kept", capsys)
    for path in (tmp_path / "kept").glob("*-*.[nf]*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    opened.clear()
    assert measure(model, tmp_path / "kept", capsys) == first
    assert opened == ["f16", "q8_0"]


def test_a_table_that_was_deleted_is_made_again_when_it_is_needed(model, tmp_path, capsys, opened):
    first = measure(model, tmp_path / "kept", capsys)
    for path in (tmp_path / "kept").glob("reference-*.f16"):
        path.unlink()
    opened.clear()
    assert measure(model, tmp_path / "kept", capsys) == first
    assert opened == []
    measure(model, tmp_path / "kept", capsys, caches="q4_0")
    assert opened == ["f16", "q4_0"]


def test_an_interrupted_run_goes_on(model, tmp_path, capsys, opened, monkeypatch):
    original = scoring.score

    def interrupt(engine, *args):
        if engine.spec.name == "q4_0":
            raise KeyboardInterrupt
        return original(engine, *args)

    monkeypatch.setattr(scoring, "score", interrupt)
    sizes = ["-c", "128", "--chunks", "1", "--threads", "1"]
    common = ["kl", model, "--kv", "q8_0,q4_0", *sizes, "--keep", str(tmp_path / "kept")]
    assert main(common) == 130
    monkeypatch.setattr(scoring, "score", original)
    opened.clear()
    assert main(common) == 0
    assert opened == ["q4_0"]
    assert "q4_0" in capsys.readouterr().out
