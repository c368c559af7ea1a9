"""llama.cpp's own tools, unmodified, with the plug-in: where they are, how they are started, what they should say.

MIKV_STOCK_BIN names their folder; scripts/stock_binary.sh builds them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mikv_cpp.engine import Engine
from mikv_cpp.native import find_library

STOCK_BIN = os.environ.get("MIKV_STOCK_BIN")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(not STOCK_BIN, reason="MIKV_STOCK_BIN is not set: MIKV_STOCK_BIN=$(scripts/stock_binary.sh)"),
]

N_THREADS = 2
N_CTX = 512
SIZES = ["-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(N_CTX)]
PROMPT = "The city of Paris is the capital of France. The city of London is the capital of"
PLUGIN_OPTIONS = ["--device", "MIKV0", "-ngl", "99", "-ctk", "q8_0", "-ctv", "q8_0"]


def stock_command(tool: str, model: Path, *options: str) -> list[str]:
    """The words that start a tool with this model."""
    return [str(Path(STOCK_BIN or "") / tool), "-m", str(model), "-fa", "on", "-t", str(N_THREADS), *options]


def stock_environment(plugin: bool = True) -> dict[str, str]:
    """The environment without MIKV_*, and with the plug-in's path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIKV_")}
    return {**environment, "GGML_BACKEND_PATH": str(find_library())} if plugin else environment


def greedy_tokens(engine: Engine, n_predict: int) -> list[int]:
    """What the Python path answers to PROMPT: so many tokens; fewer if the last of them ends the answer."""
    engine.clear()
    logits = engine.decode(engine.vocabulary.tokenize(PROMPT), -1)
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < n_predict and not engine.vocabulary.is_end(tokens[-1]):
        logits = engine.decode(np.array(tokens[-1:], dtype=np.int32), -1)
        tokens.append(int(logits[-1].argmax()))
    return tokens
