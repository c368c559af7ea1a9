"""scripts/gpu_check.py on a machine without a GPU: everything but the hardware part, and nothing claimed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "scripts"))
from gpu_bars import bars  # noqa: E402 - a script's

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
    assert verdicts["speed, 8B shape, 128k"] == verdicts["compute-sanitizer memcheck gpu_matrix"] == "not run: no GPU"
    assert verdicts["commands of the benchmark, a small shape"] == verdicts["attention kernel alone, 128k"] == "good"
    assert {bar["verdict"] for bar in said["bars"]} == {"not measured"}


def test_a_step_that_fails_fails_the_check(tmp_path):
    result = tmp_path / "result.json"
    command = [sys.executable, "scripts/gpu_check.py", "--no-hardware", "--build", str(tmp_path), "--steps", "matrix"]
    done = subprocess.run([*command, "-o", str(result)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert not json.loads(result.read_text())["good"]


def test_what_is_measured_is_held_to_the_bars():
    rows = [
        {"cache": cache, "depth": 32768, "decode_tps": tps} for cache, tps in (("mikv", 12.1), ("f16", 10.0), ("q8_0", 12.0))
    ]
    kl = [{"rows": [{"cache": "mikv", "mean_kl": found}]} for found in (0.1, 0.103)]
    kv = {"bytes_f16": 1000, "bytes_total": 250}
    memory = {"rows": [{"cache": "f16", "device_delta": 1200, "kv": None}, {"cache": "mikv", "device_delta": 500, "kv": kv}]}
    answers = {"shallow": {"rows": rows}, "alone": {"fast_of_copy": 0.6}, "cpu": kl[0], "gpu": kl[1], "memory": memory}
    verdicts = {bar.name: bar.verdict for bar in bars(answers, "shallow", "deep", "alone", ("cpu", "gpu"), "memory")}
    assert verdicts["device memory saved, of what the byte count says"] == "reached"
    assert verdicts["decode at 32k, of f16"] == verdicts["attention at 128k, of the copy bandwidth"] == "reached"
    assert verdicts["decode at 32k, of q8_0"] == verdicts["divergence, of the CPU's"] == "not reached"
    assert verdicts["decode at 32k, of q4_0"] == verdicts["decode at 128k, of f16"] == "not measured"
