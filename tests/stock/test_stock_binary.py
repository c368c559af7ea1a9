"""The plug-in in llama.cpp's own, unmodified tools, against the Python path: same text, same perplexity.

Skipped unless MIKV_STOCK_BIN names the folder of llama-completion and llama-perplexity; scripts/stock_binary.sh builds them.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from stock_tools import MARKS, N_CTX, PLUGIN_OPTIONS, PROMPT, SIZES, greedy_tokens, stock_command, stock_environment

from mikv_cpp.engine import Engine
from mikv_cpp.eval.divergence import log_softmax
from mikv_cpp.eval.passages import cut_chunks
from mikv_cpp.eval.texts import read_text

pytestmark = MARKS

END = "[end of text]"  # what the tool prints where an answer ends by itself


def run_stock(tool: str, model: Path, *options: str, plugin: bool = True) -> tuple[str, str]:
    """Standard output and log of a stock tool."""
    result = subprocess.run(
        stock_command(tool, model, *options),
        env=stock_environment(plugin),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout, result.stderr


def completion(model: Path, n_predict: int, *options: str, plugin: bool = True) -> tuple[str, str]:
    how = ["--temp", "0", "-no-cnv", "--no-warmup", "--simple-io", "--no-display-prompt", "-n", str(n_predict)]
    return run_stock("llama-completion", model, "-p", PROMPT, *SIZES, *how, *options, plugin=plugin)


def test_stock_completion_gives_the_same_text(model: Path, engine: Engine):
    text, log = completion(model, 32, "-lv", "4", *PLUGIN_OPTIONS)
    expected = engine.vocabulary.detokenize(greedy_tokens(engine, 32))
    assert text.strip().removesuffix(END).strip() == expected.strip()
    assert "MIKV0" in log, "llama.cpp's log does not name the device: was it used?"


def test_stock_completion_without_the_plugin_knows_no_such_device(model: Path):
    with pytest.raises(AssertionError, match="MIKV0"):
        completion(model, 1, *PLUGIN_OPTIONS, plugin=False)


def test_stock_perplexity_gives_the_same_number(model: Path, engine: Engine, tmp_path: Path):
    text = read_text()[:6000]
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    printed = "\n".join(run_stock("llama-perplexity", model, "-f", str(file), *SIZES, "--chunks", "1", *PLUGIN_OPTIONS))
    match = re.search(r"Final estimate: PPL = ([\d.]+)", printed)
    assert match, printed[-2000:]
    nll = []
    for chunk in cut_chunks(engine.vocabulary.tokenize(text), N_CTX, 1):
        engine.clear()
        log_p = log_softmax(engine.decode(chunk))[N_CTX // 2 : -1]
        nll += list(-log_p[np.arange(len(log_p)), chunk[N_CTX // 2 + 1 :]])
    assert float(match[1]) == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)  # it prints four decimals
