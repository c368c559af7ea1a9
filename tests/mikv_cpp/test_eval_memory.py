"""Resident memory: what the process says of itself, and the caches of a small model in processes of their own."""

from __future__ import annotations

import json
import mmap
import sys

import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.eval import memory
from mikv_cpp.eval.__main__ import main

MIB = 2**20
N_CTX = 32768
F16_BYTES = N_CTX * 2 * 2 * (64 + 64) * 2  # 2 layers of 2 KV heads of 64 values
needs_current_rss = pytest.mark.skipif(
    not memory.STATUS.exists(), reason="skipped: this system tells only the largest resident set"
)


@needs_current_rss
def test_resident_bytes_follow_an_allocation():
    # Not malloc, which may hand out memory that was resident all along.
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        before = memory.resident_bytes()
        for offset in range(0, len(block), mmap.PAGESIZE):
            block[offset] = 1
        after = memory.resident_bytes()
    for name in ("rss", "anonymous"):
        assert after[name] - before[name] == pytest.approx(64 * MIB, abs=8 * MIB)


@needs_current_rss
def test_the_peak_is_of_what_was_there_since_it_was_forgotten():
    if not memory.forget_peak():
        pytest.skip("skipped: this kernel does not let a process forget its peak")
    before = memory.resident_bytes()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for offset in range(0, len(block), mmap.PAGESIZE):
            block[offset] = 1
    after = memory.resident_bytes()
    assert after["peak"] - before["rss"] == pytest.approx(64 * MIB, abs=8 * MIB)
    assert after["rss"] - before["rss"] < 8 * MIB
    assert memory.forget_peak()
    assert memory.resident_bytes()["peak"] - before["rss"] < 8 * MIB


def test_status_fields_are_kib():
    assert memory.kib_field({"VmRSS": "\t  1234 kB"}, "VmRSS") == 1234 * 1024
    assert memory.kib_field({}, "RssAnon") is None


@needs_current_rss
def test_a_fresh_process_for_each_cache(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "tiny.gguf", TinyModel())
    assert (
        main(["memory", str(model), "-c", str(N_CTX), "--fill", "64", "--caches", "f16,q4_0", "--threads", "1", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    f16, q4_0 = result["rows"]
    assert [f16["cache"], q4_0["cache"]] == ["f16", "q4_0"]
    assert (f16["ratio_to_f16"], f16["kv"], q4_0["kv"]) == (1.0, None, None)
    # Compute buffers are alike, so the difference is the caches': 16 - 4.5 of 16 bits.
    assert f16["rss_delta"] - q4_0["rss_delta"] == pytest.approx(F16_BYTES * 11.5 / 16, abs=4 * MIB)


def test_errors_of_the_process_are_reported(tmp_path, capfd):
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF")
    assert main(["memory", str(model), "--caches", "f16"]) == 1
    printed = capfd.readouterr().err
    assert "truncated" in printed
    assert "ended with status 1" in printed


@pytest.mark.parametrize("fill", ["-1", "300"])
def test_bad_fill(fill, capsys):
    assert main(["memory", "model.gguf", "-c", "256", "--fill", fill]) == 2
    assert f"--fill {fill}" in capsys.readouterr().err


def test_elsewhere_the_largest_resident_set_is_told(monkeypatch, tmp_path):
    pytest.importorskip("resource", reason="skipped: Windows has no resource module")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    found = memory.resident_bytes()
    assert found["rss"] > 10 * MIB
    assert found["anonymous"] is None
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(memory.MikvError, match="measure on Linux or macOS"):
        memory.resident_bytes()
