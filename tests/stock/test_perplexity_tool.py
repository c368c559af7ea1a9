"""`eval kl` against llama.cpp's own llama-perplexity: the same text, the same chunks, the same divergence.

Skipped unless MIKV_STOCK_BIN names the tool's folder; scripts/stock_binary.sh builds it.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from stock_tools import MARKS, N_CTX, N_THREADS, stock_command

from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.texts import read_text

pytestmark = MARKS

N_CHUNKS, UBATCH = 2, 128


def perplexity(model: Path, text: Path, base: Path, *options: str) -> str:
    """What llama-perplexity prints."""
    sizes = ["-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(UBATCH), "--chunks", str(N_CHUNKS)]
    command = stock_command("llama-perplexity", model, "-f", str(text), *sizes, "--kl-divergence-base", str(base), *options)
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout + result.stderr


def printed(name: str, text: str) -> float:
    match = re.search(rf"^{re.escape(name)}\s*:\s*(-?[\d.]+)", text, re.MULTILINE)
    assert match, f"no {name!r} in {text[-3000:]}"
    return float(match[1])


def test_divergence_and_perplexity_are_the_tools(smollm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = tmp_path / "text.txt"
    text.write_text(read_text()[:9000], encoding="utf-8")
    base = tmp_path / "base.kld"
    perplexity(smollm, text, base)
    theirs = perplexity(smollm, text, base, "--kl-divergence", "-ctk", "q4_0", "-ctv", "q4_0")
    sizes = ["--context", str(N_CTX), "--chunks", str(N_CHUNKS), "--ubatch", str(UBATCH), "--threads", str(N_THREADS)]
    capsys.readouterr()
    assert main(["kl", "--model", str(smollm), "--text", str(text), *sizes, "--kv", "q4_0", "--json"]) == 0
    f16, ours = json.loads(capsys.readouterr().out)["rows"]
    assert ours["mean_kl"] == pytest.approx(printed("Mean    KLD", theirs), rel=0.01)
    assert ours["median_kl"] == pytest.approx(printed("Median  KLD", theirs), rel=0.02)
    assert ours["kl_999"] == pytest.approx(printed("99.9%   KLD", theirs), rel=0.02)
    assert 100 * ours["same_top"] == pytest.approx(printed("Same top p", theirs), abs=0.3)
    assert ours["ppl"] == pytest.approx(printed("Mean PPL(Q)", theirs), rel=1e-3)
    assert f16["ppl"] == pytest.approx(printed("Mean PPL(base)", theirs), rel=1e-3)
