"""scripts/soak.py, for seconds; MIKV_SOAK_MINUTES=5 makes it the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[2] / "scripts" / "soak.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="skipped: reads memory from /proc")
def test_eight_clients_lose_nothing(python: str, python_environment: dict[str, str], tiny_model: Callable[..., Path]) -> None:
    minutes = os.environ.get("MIKV_SOAK_MINUTES", "0.15")
    command = [python, str(SOAK), str(tiny_model(chat_template=True)), "--minutes", minutes, "-t", "1"]
    done = subprocess.run(command, env=python_environment, capture_output=True, text=True, check=False)
    out = json.loads(done.stdout)
    assert out["faults"] == []
    assert len(out["answers_of_each"]) == 8
    assert min(out["answers_of_each"]) >= 1
    assert done.returncode == 0, out
