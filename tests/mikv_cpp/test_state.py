"""State files as bytes: every damage is found, whatever it is."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mikv_cpp import state as module
from mikv_cpp.errors import StateError
from mikv_cpp.state import HostPart, State, model_identity, read_front, read_state, write_state


def make(seed: int = 0, n_tokens: int = 100) -> State:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 50000, n_tokens, dtype=np.int32)
    host = generator.integers(0, 256, 2000, dtype=np.uint8)
    caches = [generator.bytes(3000), generator.bytes(200)]
    return State({"model": "m", "seed": seed}, tokens, HostPart.strip(host, [(100, 700), (900, 50)]), caches, {"turns": []})


def same(a: State, b: State) -> bool:
    return (a.about, a.host, a.caches, a.notes) == (b.about, b.host, b.caches, b.notes) and np.array_equal(a.tokens, b.tokens)


def damaged(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Bits that flip, an end that is missing or another's, bytes that went or came."""
    at = generator.randrange(len(data))
    kind = generator.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + other[at:]
    if kind == 3:
        return data[:at] + data[at + 1 + generator.randrange(64) :]
    if kind == 4:
        return data[:at] + generator.randbytes(1 + generator.randrange(64)) + data[at:]
    if kind == 5:
        return data + generator.randbytes(1 + generator.randrange(64))
    run = 1 + generator.randrange(512)
    return data[:at] + bytes(len(data[at : at + run])) + data[at + run :]  # a page that was never written


def test_comes_back(tmp_path: Path) -> None:
    state = make()
    path = tmp_path / "state"
    assert write_state(path, state) == path.stat().st_size == len(state.to_bytes())
    assert same(read_state(path), state)
    about, tokens = read_front(path)
    assert about["model"] == "m"
    assert np.array_equal(tokens, state.tokens)


def test_a_thousand_damages_are_all_found() -> None:
    generator = random.Random(1)  # noqa: S311 - damage, not secrets
    files = [make(seed, 50 + seed).to_bytes() for seed in range(8)]
    rounds = 0
    while rounds < 1000:
        data, other = generator.sample(files, 2)
        bad = damaged(data, other, generator)
        if bad in files:  # a run of zeros over zeros, or a splice at the very beginning
            continue
        rounds += 1
        with pytest.raises(StateError):
            State.from_bytes(bad)


def test_every_single_byte_counts() -> None:
    data = make().to_bytes()
    for at in range(len(data)):
        with pytest.raises(StateError):
            State.from_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(StateError):
            State.from_bytes(data[:at])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans(), st.integers(0, 70))
def test_anything_at_all_is_refused_in_a_sentence(data: bytes, with_magic: bool, n_sections: int) -> None:
    if with_magic:
        data = module._FIXED.pack(module.MAGIC, module.VERSION, n_sections, len(data)) + data
    with pytest.raises(StateError, match=r".+: .+"):
        State.from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"about", b"tokens", b"host", b"cache"]), min_size=3, max_size=6), st.binary(max_size=60))
def test_right_checksums_around_wrong_things_do_not_help(names: list[bytes], filling: bytes) -> None:
    """What somebody made on purpose, or another version of this package."""
    start = module._FIXED.size + len(names) * module._ENTRY.size + 16
    header = module._FIXED.pack(module.MAGIC, module.VERSION, len(names), start + len(names) * len(filling))
    for i, name in enumerate(names):
        header += module._ENTRY.pack(name, start + i * len(filling), len(filling), module._digest(filling))
    with pytest.raises(StateError):
        State.from_bytes(header + module._digest(header) + filling * len(names))


@given(st.binary(min_size=0, max_size=200))
@settings(max_examples=300, deadline=None)
def test_llama_cpps_part_refuses_what_contradicts_itself(section: bytes) -> None:
    with pytest.raises(StateError):
        HostPart.from_bytes(section)


def test_holes_that_overlap_or_lie_outside_are_refused() -> None:
    for holes in ([(10, 5), (12, 5)], [(10, 5), (5, 2)], [(90, 20)], [(10, 0)]):
        with pytest.raises(StateError, match=r"llama\.cpp's part, rows at"):
            HostPart.from_bytes(HostPart(100, holes, bytes(80)).to_bytes())
    with pytest.raises(StateError, match="its length"):
        HostPart.from_bytes(HostPart(100, [(10, 5)], bytes(80)).to_bytes())


def test_what_is_not_rows_comes_back_in_its_place() -> None:
    whole = np.random.default_rng(3).integers(1, 256, 1000, dtype=np.uint8)
    holes = [(0, 10), (500, 100), (990, 10)]
    filled = HostPart.from_bytes(HostPart.strip(whole, holes).to_bytes()).fill()
    for offset, size in holes:
        whole[offset : offset + size] = 0
    assert np.array_equal(filled, whole)


def test_other_files_and_versions_are_named_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"GGUF" + bytes(500))
    with pytest.raises(StateError, match="this is no state of mikv_cpp"):
        read_state(path)
    data = bytearray(make().to_bytes())
    data[8:12] = struct.pack("<I", 99)
    path.write_bytes(bytes(data))
    for read in (read_state, read_front):
        with pytest.raises(StateError, match="file version 99"):
            read(path)
    with pytest.raises(StateError, match="cannot be read"):
        read_state(tmp_path / "nothing")


def test_a_front_of_a_damaged_file_is_refused_too(tmp_path: Path) -> None:
    path, data = tmp_path / "state", make().to_bytes()
    front = data.index(b"model") + 3
    path.write_bytes(data[:front] + b"\0" + data[front + 1 :])
    with pytest.raises(StateError, match="damaged"):
        read_front(path)
    path.write_bytes(data[:front])
    with pytest.raises(StateError, match="damaged"):
        read_front(path)


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_state(path, make(1))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"No space left .*make room"):
        write_state(path, make(2))
    assert same(read_state(path), make(1))
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    with pytest.raises(StateError, match="cannot be written"):
        write_state(tmp_path / "nowhere" / "state", make(1))


def test_models_are_told_apart_by_their_ends(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(bytes(6 * 2**20))
    other.write_bytes(bytes(6 * 2**20 - 1) + b"\1")
    assert model_identity(path) != model_identity(other)
    other.write_bytes(path.read_bytes())
    assert model_identity(path) == model_identity(other)


def test_about_must_be_an_object() -> None:
    state = make()
    for about in ([1], {"notes": 3}):
        text = json.dumps(about).encode()
        sections = [text, state.tokens.tobytes(), state.host.to_bytes()]
        start = module._FIXED.size + 3 * module._ENTRY.size + 16
        header = module._FIXED.pack(module.MAGIC, module.VERSION, 3, start + sum(map(len, sections)))
        for name, section in zip((b"about", b"tokens", b"host"), sections):
            header += module._ENTRY.pack(name, start, len(section), module._digest(section))
            start += len(section)
        with pytest.raises(StateError, match="what it says of itself"):
            State.from_bytes(header + module._digest(header) + b"".join(sections))
