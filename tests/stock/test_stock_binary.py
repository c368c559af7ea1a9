"""The plug-in in llama.cpp's own, unmodified tools, against the Python path: same text, same perplexity.

Skipped unless MIKV_STOCK_BIN names the folder of llama-completion and llama-perplexity; scripts/stock_binary.sh builds them.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import KVConfig
from mikv_cpp.engine import Engine, Models
from mikv_cpp.eval.divergence import log_softmax
from mikv_cpp.eval.passages import cut_chunks
from mikv_cpp.eval.texts import read_text
from mikv_cpp.models import default_model
from mikv_cpp.native import find_library

STOCK_BIN = os.environ.get("MIKV_STOCK_BIN")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STOCK_BIN, reason="MIKV_STOCK_BIN is not set: MIKV_STOCK_BIN=$(scripts/stock_binary.sh)"),
]

END = "[end of text]"  # what the tool prints where an answer ends by itself
N_THREADS = 2
N_CTX = 512
PROMPT = "The city of Paris is the capital of France. The city of London is the capital of"
PLUGIN_OPTIONS = ["--device", "MIKV0", "-ngl", "99", "-ctk", "q8_0", "-ctv", "q8_0"]


@pytest.fixture(scope="module")
def model() -> Path:
    return default_model()


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    """A context on MIKV0 as the plug-in configures it when nobody does: the same as in a stock binary without MIKV_*."""
    return Models(str(model), N_THREADS).open(CacheSpec("mikv", KVConfig()), N_CTX, N_CTX)


def run_stock(tool: str, model: Path, *options: str, plugin: bool = True) -> tuple[str, str]:
    """Standard output and log of a stock tool."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIKV_")}
    if plugin:
        environment["GGML_BACKEND_PATH"] = str(find_library())
    command = [str(Path(STOCK_BIN or "") / tool), "-m", str(model), "-fa", "on", "-t", str(N_THREADS), *options]
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout, result.stderr


def completion(model: Path, n_predict: int, *options: str, plugin: bool = True) -> tuple[str, str]:
    sizes = ["-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(N_CTX), "-n", str(n_predict)]
    how = ["--temp", "0", "-no-cnv", "--no-warmup", "--simple-io", "--no-display-prompt"]
    return run_stock("llama-completion", model, "-p", PROMPT, *sizes, *how, *options, plugin=plugin)


def greedy_text(engine: Engine, n_predict: int) -> str:
    engine.clear()
    logits = engine.decode(engine.vocabulary.tokenize(PROMPT), -1)
    tokens = []
    while len(tokens) < n_predict:
        tokens.append(int(logits[-1].argmax()))
        if engine.vocabulary.is_end(tokens[-1]):
            break
        logits = engine.decode(np.array(tokens[-1:], dtype=np.int32), -1)
    return engine.vocabulary.detokenize(tokens)


def test_stock_completion_gives_the_same_text(model: Path, engine: Engine):
    text, log = completion(model, 32, "-lv", "4", *PLUGIN_OPTIONS)
    assert text.strip().removesuffix(END).strip() == greedy_text(engine, 32).strip()
    assert "MIKV0" in log, "llama.cpp's log does not name the device: was it used?"


def test_stock_completion_without_the_plugin_knows_no_such_device(model: Path):
    with pytest.raises(AssertionError, match="MIKV0"):
        completion(model, 1, *PLUGIN_OPTIONS, plugin=False)


def test_stock_perplexity_gives_the_same_number(model: Path, engine: Engine, tmp_path: Path):
    text = read_text()[:6000]
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    sizes = ["-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(N_CTX), "--chunks", "1"]
    printed = "\n".join(run_stock("llama-perplexity", model, "-f", str(file), *sizes, *PLUGIN_OPTIONS))
    match = re.search(r"Final estimate: PPL = ([\d.]+)", printed)
    assert match, printed[-2000:]
    nll = []
    for chunk in cut_chunks(engine.vocabulary.tokenize(text), N_CTX, 1):
        engine.clear()
        log_p = log_softmax(engine.decode(chunk))[N_CTX // 2 : -1]
        nll += list(-log_p[np.arange(len(log_p)), chunk[N_CTX // 2 + 1 :]])
    assert float(match[1]) == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)  # it prints four decimals
