#!/usr/bin/env python3
"""Everything that a GPU has to show, in one command, without network, in under 9 minutes on an NVIDIA machine with 16 cores.

    gpu_check.py                       builds, the conformance matrix on the device, compute-sanitizer, a model, speed
    gpu_check.py --no-hardware         the same on the emulator of GPU execution, and no speed; so too where there is no GPU

Writes build/gpu_check/result.json; if all was good, it prints the line of scripts/evidence.py that notes it. Needs the CUDA
toolkit, CMake, Ninja, this package's Python environment (with gguf and pytest), and llama.cpp's sources (MIKV_LLAMA_CPP_DIR)
unless --ggml-cuda names a libggml-cuda that was built before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from gpu_bars import bars

ROOT = Path(__file__).resolve().parent.parent
MINUTE = 60
MATRIX = ("gpu_self_test", "gpu_matrix", "gpu_cache")
SANITIZERS = (
    ("memcheck", "gpu_self_test"),
    ("racecheck", "gpu_self_test"),
    ("memcheck", "gpu_matrix"),
    ("racecheck", "gpu_matrix"),
)
SHALLOW, DEEP, ATTENTION = "speed, 8B shape, 0 and 32k", "speed, 8B shape, 128k", "attention kernel alone, 128k"
DIVERGENCES = ("KL divergence on CPU", "KL divergence on CUDA0")
MEMORY = "memory on the device"


@dataclass
class Step:
    """One part of the check and what came of it: "good", "failed", "not run" (with a word why)."""

    name: str
    verdict: str
    seconds: float = 0.0
    output: str = ""
    answer: dict[str, Any] = field(default_factory=dict)  # what it printed, if that was JSON


@dataclass
class Check:
    """The machine, and the steps so far."""

    build: Path
    hardware: bool
    architecture: str = ""
    device: str = ""
    steps: list[Step] = field(default_factory=list)

    def run(self, name: str, command: list[str], limit_s: float, **environment: str) -> bool:
        """A step that is a command; whether it was good."""
        began = time.monotonic()
        answer: dict[str, Any] = {}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
            verdict, output = ("good" if done.returncode == 0 else "failed"), done.stdout + done.stderr
            answer = json.loads(done.stdout) if verdict == "good" and done.stdout.startswith("{") else {}
        except subprocess.TimeoutExpired:
            verdict, output = "failed", f"took more than {limit_s:.0f} s"
        except OSError as error:
            verdict, output = "failed", str(error)
        return self.note(Step(name, verdict, time.monotonic() - began, output[-4000:], answer))

    def skip(self, name: str, why: str) -> None:
        """A step that cannot be run here."""
        self.note(Step(name, f"not run: {why}"))

    def note(self, step: Step) -> bool:
        """Keeps and prints a step."""
        self.steps.append(step)
        print(f"{step.name:44} {step.verdict:10} {step.seconds:6.1f} s", flush=True)
        if step.verdict == "failed":
            print("    " + step.output.strip().replace("\n", "\n    ")[-1500:], flush=True)
        return step.verdict == "good"


def find_gpu() -> tuple[str, str]:
    """(name and driver, architecture such as "90") of the first NVIDIA GPU; two empty strings: there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"],  # noqa: S607 - the driver's
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    words = [word.strip() for word in done.stdout.splitlines()[0].split(",")] if done.returncode == 0 and done.stdout else []
    return (f"{words[0]}, driver {words[1]}", words[2].replace(".", "")) if len(words) == 3 else ("", "")


def program(check: Check, name: str) -> str:
    """A native test program."""
    return str(check.build / name)


def configure_and_build(check: Check) -> bool:
    """The plug-in and the native tests; for the device, or with the emulator in the plug-in."""
    options = ["-DMIKV_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={check.architecture}-real"] if check.hardware else []
    configure = ["cmake", "-S", ".", "-B", str(check.build), "-G", "Ninja", "-DMIKV_TESTS=ON", "-DMIKV_EMULATED=ON", *options]
    return check.run("configure", configure, 2 * MINUTE) and check.run(
        "build the plug-in and the native tests", ["cmake", "--build", str(check.build)], (5 if check.hardware else 20) * MINUTE
    )


def build_ggml_cuda(check: Check, given: Optional[Path]) -> Optional[Path]:
    """The CUDA backend of ggml itself, as a library that ggml loads; None: there is none."""
    if given:
        return given
    source = os.environ.get("MIKV_LLAMA_CPP_DIR")
    if not source:
        check.skip("build ggml-cuda", "no sources: set MIKV_LLAMA_CPP_DIR, or give --ggml-cuda")
        return None
    folder = check.build / "ggml-cuda"
    options = ["-DGGML_CUDA=ON", "-DGGML_BACKEND_DL=ON", "-DGGML_NATIVE=OFF", "-DBUILD_SHARED_LIBS=ON", "-DGGML_CUDA_NCCL=OFF"]
    options += [f"-DCMAKE_CUDA_ARCHITECTURES={check.architecture}-real", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    good = check.run("configure ggml-cuda", ["cmake", "-S", source, "-B", str(folder), "-G", "Ninja", *options], 2 * MINUTE)
    good = good and check.run("build ggml-cuda", ["cmake", "--build", str(folder), "--target", "ggml-cuda"], 6 * MINUTE)
    return next(iter(folder.rglob("libggml-cuda.so")), None) if good else None


def matrix(check: Check, quick: bool) -> None:
    """The native tests on the device, or on the emulator."""
    for name in MATRIX:
        words = (["cuda"] if check.hardware else []) + (["--quick"] if quick and name != "gpu_self_test" else [])
        check.run(f"{name} {' '.join(words)}".strip(), [program(check, name), *words], 10 * MINUTE)


def sanitize(check: Check) -> None:
    """compute-sanitizer on small cases."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for kind, name in SANITIZERS:
        if not check.hardware:
            check.skip(f"compute-sanitizer {kind} {name}", "no GPU")
            continue
        small = ["cuda", "--quick"]
        command = [tool, "--tool", kind, "--error-exitcode", "9", program(check, name), *small]
        check.run(f"compute-sanitizer {kind} {name}", command, 2 * MINUTE)


def in_llama_cpp(check: Check, ggml_cuda: Optional[Path], model: Optional[Path]) -> None:
    """Tokens, rows and statistics beside the CPU's, in llama.cpp."""
    library = {"MIKV_LIBRARY": str(check.build / "libggml-mikv.so")}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/native/test_gpu_device.py"]
    check.run("llama.cpp on the emulated devices", [*pytest, "tests/native/test_gpu_split.py"], 8 * MINUTE, **library)
    if not check.hardware:
        check.skip("llama.cpp on the device", "no GPU")
        return
    if ggml_cuda is None:
        check.skip("llama.cpp on the device", "no libggml-cuda")
        return
    backends = {**library, "MIKV_GGML_BACKENDS": str(ggml_cuda), "MIKV_TEST_DEVICE": "CUDA0", "MIKV_TEST_HOME": "CUDA"}
    check.run("llama.cpp on the device", pytest, 3 * MINUTE, **backends)
    if model:
        words = [sys.executable, "-m", "mikv_cpp.eval", "kl", str(model), "--caches", "mikv,q8_0", "--chunks", "2", "--json"]
        for name, device in zip(DIVERGENCES, ("CPU", "CUDA0")):
            check.run(name, [*words, "--device", device], 2 * MINUTE, **backends)
        words = ["mikv_cpp.eval", "memory", str(model), "--caches", "f16,mikv", "--fill", "1024", "--device", "CUDA0", "--json"]
        check.run(MEMORY, [sys.executable, "-m", *words], MINUTE, **backends)


def bench(check: Check, ggml_cuda: Optional[Path]) -> None:
    """The attention kernel alone; a model of an 8B Llama's shape. Without a GPU, that the commands work, on small ones."""
    check.run(ATTENTION, [program(check, "gpu_speed"), *(["cuda"] if check.hardware else [])], 2 * MINUTE)
    environment = {"MIKV_LIBRARY": str(check.build / "libggml-mikv.so"), "MIKV_GGML_BACKENDS": str(ggml_cuda or "")}
    if check.hardware and ggml_cuda is None:
        check.skip(SHALLOW, "no libggml-cuda")
        check.skip(DEEP, "no libggml-cuda")
        return
    model = check.build / ("8b.gguf" if check.hardware else "small.gguf")
    small = ["--layers", "2", "--embd", "256", "--heads", "4", "--kv-heads", "2", "--ff", "512", "--vocab", "1000"]
    generate = [sys.executable, "scripts/random_model.py", str(model), *([] if check.hardware else small)]
    command = [sys.executable, "-m", "mikv_cpp.bench", str(model), "--json", "--device"]
    if not check.run("generate the model", generate, 3 * MINUTE):
        return
    if check.hardware:
        rounds = ["CUDA0", "--rounds", "5"]
        check.run(SHALLOW, [*command, *rounds, "--depths", "0,32768"], 4 * MINUTE, **environment)
        # a prefill of 128k for four caches would take too long
        check.run(DEEP, [*command, *rounds, "--depths", "131072", "--fill", "repeat"], 4 * MINUTE, **environment)
        return
    few = ["MIKVE0", "--depths", "0,64", "--rounds", "2", "--burst", "2", "--ubatch", "32", "--caches", "mikv,f16"]
    check.run("commands of the benchmark, a small shape", [*command, *few], 4 * MINUTE, **environment)
    check.skip(SHALLOW, "no GPU")
    check.skip(DEEP, "no GPU")


def finish(check: Check, path: Path) -> int:
    """Writes the result and says what may be recorded; the exit status."""
    failed = [step.name for step in check.steps if step.verdict == "failed"]
    answers = {step.name: step.answer for step in check.steps} if check.hardware else {}  # an emulator's times say nothing
    hoped = bars(answers, SHALLOW, DEEP, ATTENTION, DIVERGENCES, MEMORY)
    result = {"hardware": check.hardware, "device": check.device, "good": not failed, "steps": [asdict(s) for s in check.steps]}
    result["bars"] = [{**asdict(bar), "verdict": bar.verdict} for bar in hoped]
    for bar in hoped:
        print(f"{bar.name:44} {bar.verdict:12} {'' if bar.found is None else f'{bar.found:.3f}'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{path}: {len(check.steps)} steps, {len(failed)} failed; {check.device or 'no GPU: nothing here was run on hardware'}"
    )
    skipped = any(step.verdict.startswith("not run") for step in check.steps)
    if check.hardware and not failed and not skipped:
        print(f'record it: scripts/evidence.py --record "run on CUDA" --device "{check.device}" --command scripts/gpu_check.py')
    return 1 if failed else 0


def main() -> int:
    """The whole check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-hardware", action="store_true", help="use no GPU even if there is one")
    parser.add_argument("--build", type=Path, help="a build folder with the native tests and the plug-in: nothing is built")
    parser.add_argument(
        "--ggml-cuda", type=Path, metavar="FILE", help="libggml-cuda.so of the installed llama-cpp-python's ggml"
    )
    parser.add_argument("--model", type=Path, help="a small real model, for divergences beside the CPU's")
    parser.add_argument("--quick", action="store_true", help="a tenth of the conformance matrix")
    parser.add_argument("--steps", default="matrix,sanitize,llama,bench", help="which (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build/gpu_check/result.json")
    args = parser.parse_args()
    device, architecture = ("", "") if args.no_hardware else find_gpu()
    check = Check((args.build or ROOT / "build/gpu_check").resolve(), bool(device), architecture, device)
    if not args.build and not configure_and_build(check):
        return finish(check, args.output)
    wanted = args.steps.split(",")
    cuda = build_ggml_cuda(check, args.ggml_cuda) if check.hardware and {"llama", "bench"} & set(wanted) else None
    steps: dict[str, Callable[[], None]] = {
        "matrix": lambda: matrix(check, args.quick),
        "sanitize": lambda: sanitize(check),
        "llama": lambda: in_llama_cpp(check, cuda, args.model),
        "bench": lambda: bench(check, cuda),
    }
    for name in wanted:
        steps[name]()
    return finish(check, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
