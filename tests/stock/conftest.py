"""What the tests of stock tools share: a model, and the Python path to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stock_tools import N_CTX, N_THREADS

from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import KVConfig
from mikv_cpp.engine import Engine, Models
from mikv_cpp.models import default_model


@pytest.fixture(scope="module")
def model() -> Path:
    return default_model()


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    """A context on MIKV0 as the plug-in configures it when nobody does: the same as in a stock binary without MIKV_*."""
    with Models(str(model), N_THREADS) as models:
        yield models.open(CacheSpec("mikv", KVConfig()), N_CTX, N_CTX)
