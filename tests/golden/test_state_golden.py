"""A state file that was once right stays right: for the definition, for the reader and for the native code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from native_cache import NativeCache

sys.path.append(str(Path(__file__).resolve().parent))
from make_state import GOLDEN_STATE, HOLES, HOST, N_CELLS, cache, rows, state_file

from mikv_cpp.reference.layout import Config, Shape
from mikv_cpp.state import HostPart, State, read_state

CONFIG = Config(3, 2, 5, sinks=2, refined_share=0.25, center_keys=False, policy="recent")
SHAPE = Shape(n_cells=N_CELLS)


def without_compressed(data: bytes) -> bytes:
    """zlib's output may differ between its versions; what it stands for may not."""
    state = State.from_bytes(data)
    return b"".join([repr((state.about, state.notes, state.host)).encode(), state.tokens.tobytes(), *state.caches])


def test_the_definition_still_makes_it():
    assert without_compressed(state_file()) == without_compressed(GOLDEN_STATE.read_bytes())


def test_it_is_read_and_written_again_as_it_is():
    data, state = GOLDEN_STATE.read_bytes(), read_state(GOLDEN_STATE)
    assert state.tokens.tolist() == [1, 2, 3]
    assert state.about == {}
    assert state.host == HostPart.strip(np.frombuffer(HOST, np.uint8), HOLES)
    assert state.caches == [cache()]
    assert without_compressed(state.to_bytes()) == without_compressed(data)


def test_native_code_writes_it():
    keys, values = rows()
    with NativeCache(CONFIG, SHAPE) as native:
        native.write(0, 0, 0, 0, keys[:, None])
        native.write(0, 1, 0, 0, values[:, None])
        assert native.write_state(np.arange(5)) == cache()


def test_native_code_reads_it():
    _, values = rows()
    with NativeCache(CONFIG, SHAPE) as native:
        native.read_state(cache())
        assert native.write_state(np.arange(5)) == cache()
        assert native.precision(0, 0)[0].tolist() == [16, 16, 3, 5, 5, 0, 0, 0]
        assert np.array_equal(native.read(0, 1, 0, 0, 2)[:, 0], values[:2].astype(np.float16).astype(np.float32))


def test_the_page_has_its_first_bytes():
    page = (Path(__file__).parents[2] / "docs" / "state.md").read_text(encoding="utf-8")
    quoted = [bytes.fromhex(text) for text in re.findall(r"`((?:[0-9a-f]{2} +)+[0-9a-f]{2})`", page)]
    data = GOLDEN_STATE.read_bytes()
    assert data.startswith(quoted[0])
    assert data[32:40] == quoted[1]
    assert data[213:225] == quoted[2]
    assert len(quoted) == 3
