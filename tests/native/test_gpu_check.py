"""scripts/gpu_check.py on a machine without a GPU: everything but the hardware part, and nothing claimed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("MIKV_LIBRARY", "/")).resolve().parent


@pytest.mark.skipif(
    not (BUILD / "gpu_self_test").exists(), reason="skipped: no native tests beside MIKV_LIBRARY (-DMIKV_TESTS=ON)"
)
def test_the_check_runs_without_a_gpu_and_says_so(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, "scripts/gpu_check.py", "--no-hardware", "--build", str(BUILD), "--steps", "sanitize,bench"]
    done = subprocess.run([*command, "-o", str(result)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "record it" not in done.stdout
    said = json.loads(result.read_text())
    assert (said["hardware"], said["device"], said["good"]) == (False, "", True)
    verdicts = {step["name"]: step["verdict"] for step in said["steps"]}
    assert verdicts["speed, 8B shape"] == verdicts["compute-sanitizer memcheck gpu_matrix"] == "not run: no GPU"
    assert verdicts["commands of the benchmark, a small shape"] == "good"


def test_a_step_that_fails_fails_the_check(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, "scripts/gpu_check.py", "--no-hardware", "--build", str(tmp_path), "--steps", "matrix"]
    done = subprocess.run([*command, "-o", str(result)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not json.loads(result.read_text())["good"]
