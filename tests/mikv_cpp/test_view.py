"""`python -m mikv_cpp.view`: what it shows is what llm.kv says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mikv_cpp import KVConfig, Llama
from mikv_cpp.snapshot import take_snapshot, token_pieces
from mikv_cpp.view import __main__ as command
from mikv_cpp.view.summary import terminal_summary

Writer = Callable[..., Path]
TEXT = "waves and lamps " * 20
CACHE = ["-c", "512", "--k-bits", "2", "--refined-bits", "6", "--refined-share", "0.1", "--window", "16", "-t", "1"]


def _loaded(path: Path) -> Llama:
    config = KVConfig(k_bits=2, refined_bits=6, refined_share=0.1, window=16)
    llm = Llama(path, n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, kv=config)
    llm.eval(llm.tokenize(TEXT.encode(), add_bos=True))
    return llm


def test_a_snapshot_is_the_maps_of_all_layers(tiny_model: Writer) -> None:
    llm = _loaded(tiny_model(n_layer=3))
    shot = take_snapshot(llm)
    assert shot.rows == [(layer, head) for layer in range(3) for head in range(2)]
    for index, (layer, head) in enumerate(shot.rows):
        assert (shot.bits[index] == llm.kv.precision_map(layer)[head]).all()
        assert (shot.scores[index] == llm.kv.scores(layer)[head]).all()
    stats = llm.kv.stats()
    assert shot.exact.sum() / 6 == pytest.approx(stats.tokens_exact)
    assert shot.refined.sum() / 6 == pytest.approx(stats.tokens_refined)
    llm.close()


def test_summary(tiny_model: Writer) -> None:
    llm = _loaded(tiny_model(n_layer=3))
    shot, stats = take_snapshot(llm), llm.kv.stats()
    pieces, _ = token_pieces(llm, llm.input_ids[: llm.n_tokens].tolist())
    lines = terminal_summary(shot, stats, pieces).split("\n")
    rows = [line[7:71] for line in lines[1:4]]
    assert all(row[0] != " " for row in rows)  # sinks
    assert all(row[-3:] == "███" for row in rows)  # the window of 16 is more than three of 64 columns of five tokens
    assert sum(row.count(" ") for row in rows) > 60
    best = int(np.argmax(shot.scores.mean(axis=0)))
    assert f"most important: {pieces[best]!r} at {best} " in lines[-1]
    llm.close()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_command(tiny_model: Writer, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="skipped: no matplotlib")
    plot = tmp_path / f"view.{suffix}"
    assert command.main([str(tiny_model()), "-p", TEXT, *CACHE, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "most important" in out
    assert "KV cache" in out
    assert plot.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


def test_json(tiny_model: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tiny_model()), "-p", TEXT, "-n", "5", *CACHE, "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert "".join(out["tokens"]).startswith(TEXT)
    assert len(out["rows"]) == 4
    for row in out["rows"]:
        assert len(row["bits"]) == len(row["importance"]) == len(out["tokens"]) >= len(TEXT)
        assert set(row["bits"]) == {2, 6, 16}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", " "], ["empty"]),
        (["-f", "missing.txt"], ["missing.txt"]),
        (["-p", "x", "--kv", "off"], ["--kv off"]),
        (["-p", "x" * 600], ["600 tokens", "512"]),
        ([], ["--prompt"]),
    ],
)
def test_refusals(tiny_model: Writer, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tiny_model()), "-c", "512", "-t", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
