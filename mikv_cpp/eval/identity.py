"""What makes two measurements the same one: names of models, caches and tokens that do not depend on where they lie."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from mikv_cpp.caches import CacheSpec
from mikv_cpp.engine import Tokens
from mikv_cpp.errors import ModelError
from mikv_cpp.native import find_library

SAMPLES = 64
SAMPLE_BYTES = 1 << 16
HEADER_BYTES = 1 << 20


def identify_model(path: Path) -> dict[str, Any]:
    """A model file by its size, the engine that runs it, and a digest of its header and of 64 places in its weights.

    Raises ModelError when it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(file.read(HEADER_BYTES))
            for index in range(SAMPLES):
                file.seek(size * index // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise ModelError(f"cannot read the model {str(path)!r} ({error.strerror}): give a readable GGUF file") from error
    return {"bytes": size, "sampled": digest.hexdigest(), "llama-cpp-python": importlib.metadata.version("llama-cpp-python")}


def identify_cache(spec: CacheSpec) -> dict[str, Any]:
    """A cache by its name, its configuration, and the native library that keeps it."""
    if spec.config is None:
        return {"name": spec.name}
    return {"name": spec.name, "config": dataclasses.asdict(spec.config), "library": file_digest(find_library())}


@functools.cache
def file_digest(path: Path) -> str:
    """The sha256 of a file; read once in a process, as a library is."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def identify_tokens(tokens: Tokens) -> str:
    """The sha256 of tokens [n]."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").tobytes()).hexdigest()
