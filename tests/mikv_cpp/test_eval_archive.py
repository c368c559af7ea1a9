"""The archive: what was kept is found again, and nothing else is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp.errors import ConfigError, MikvError
from mikv_cpp.eval.archive import MARKER, Archive, checksum_of, key_text, open_archive

KEY = {"model": {"bytes": 1}, "cache": {"name": "q4_0"}, "n_ctx": 512}
ROWS = np.random.default_rng(0).normal(0, 5, (40, 33)).astype(np.float16)


@pytest.fixture
def archive(tmp_path):
    with open_archive(str(tmp_path / "kept")) as opened:
        yield opened


def only_file(archive, pattern):
    (path,) = archive.folder.glob(pattern)
    return path


def test_arrays_are_found_again(archive):
    archive.save("scores", KEY, {"kl": np.arange(3.0), "bits": [3.7]})
    found = archive.load("scores", dict(reversed(KEY.items())))
    assert found["kl"].tolist() == [0.0, 1.0, 2.0]
    assert found["bits"].tolist() == [3.7]
    assert archive.load("top", KEY) is None
    assert archive.load("scores", {**KEY, "n_ctx": 1024}) is None


def test_tables_are_mapped_not_read(archive):
    archive.save_table("reference", KEY, ROWS.shape, (ROWS[start : start + 7] for start in range(0, 40, 7)))
    table = archive.load_table("reference", KEY)
    assert isinstance(table, np.memmap)
    np.testing.assert_array_equal(table, ROWS)
    assert only_file(archive, "*.f16").stat().st_size == ROWS.nbytes
    del table
    archive.drop_table("reference", KEY)
    archive.drop_table("reference", KEY)
    assert archive.load_table("reference", KEY) is None


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_trusted(tmp_path_factory, position, bit):
    archive = Archive(tmp_path_factory.mktemp("kept"))
    archive.save("scores", KEY, {"kl": np.linspace(0, 1, 50)})
    archive.save_table("reference", KEY, ROWS.shape, [ROWS])
    whole = {path: path.read_bytes() for path in archive.folder.iterdir()}
    for path, data in whole.items():
        damaged = bytearray(data)
        damaged[int(position * len(data))] ^= 1 << bit
        path.write_bytes(damaged)
        assert (archive.load("scores", KEY) is None) == path.name.startswith("scores")
        assert (archive.load_table("reference", KEY) is None) == path.name.startswith("reference")
        path.write_bytes(data)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("pattern", ["scores-*.npz", "reference-*.f16", "reference-sum-*.npz"])
def test_a_file_cut_short_counts_as_not_there(archive, keep, pattern):
    archive.save("scores", KEY, {"kl": np.arange(300.0)})
    archive.save_table("reference", KEY, ROWS.shape, [ROWS])
    path = only_file(archive, pattern)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert (archive.load("scores", KEY) is None) == pattern.startswith("scores")
    assert (archive.load_table("reference", KEY) is None) == pattern.startswith("reference")


def test_an_entry_of_another_key_is_not_taken_even_under_the_right_name(archive):
    archive.save("scores", KEY, {"kl": [1.0]})
    own = only_file(archive, "scores-*")
    data = own.read_bytes()
    own.unlink()
    archive.save("scores", {**KEY, "n_ctx": 1024}, {"kl": [2.0]})
    other = only_file(archive, "scores-*")
    other.replace(own)
    assert archive.load("scores", KEY) is None
    own.write_bytes(data)
    assert archive.load("scores", KEY) is not None


def test_a_file_that_something_else_wrote_is_not_read(archive):
    archive.save("scores", KEY, {"kl": [1.0]})
    np.savez(only_file(archive, "scores-*"), key=np.asarray(key_text(KEY)), kl=np.array([{}], dtype=object))
    assert archive.load("scores", KEY) is None


def test_numpy_alone_reads_what_was_kept(archive):
    archive.save("scores", KEY, {"kl": [1.0, 2.0]})
    with np.load(only_file(archive, "scores-*")) as file:
        assert json.loads(str(file["key"])) == KEY
        assert file["kl"].tolist() == [1.0, 2.0]


def test_an_interrupted_write_leaves_nothing(archive):
    def blocks():
        yield ROWS[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.save_table("reference", KEY, ROWS.shape, blocks())
    assert [path.name for path in archive.folder.iterdir()] == [MARKER]
    assert archive.load_table("reference", KEY) is None


def test_the_checksum_does_not_depend_on_the_blocks(monkeypatch):
    whole = checksum_of(ROWS)
    monkeypatch.setattr("mikv_cpp.eval.archive.BLOCK_BYTES", 100)
    assert checksum_of(ROWS) == whole


def test_without_a_folder_everything_is_gone_at_the_end():
    with open_archive(None) as archive:
        assert not archive.keeps_tables
        archive.save("scores", KEY, {"kl": [1.0]})
    assert not archive.folder.exists()


def test_a_folder_is_opened_again(tmp_path):
    for _ in range(2):
        with open_archive(str(tmp_path / "deep" / "kept")) as archive:
            assert archive.keeps_tables


@pytest.mark.parametrize("content", ["{}", "no JSON", json.dumps({"made by": "mikv_cpp.eval", "format": 99})])
def test_a_folder_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(ConfigError, match=r"holds something else.*new folder"), open_archive(str(tmp_path)):
        pass


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ConfigError, match="holds something else"), open_archive(str(tmp_path)):
        pass
    with pytest.raises(ConfigError, match="cannot be used as a folder"), open_archive(str(tmp_path / "letter.txt")):
        pass


def test_a_folder_that_takes_nothing_is_one_sentence(tmp_path):
    archive = Archive(tmp_path / "gone")
    with pytest.raises(MikvError, match=r"cannot keep results in .*--keep"):
        archive.save("scores", KEY, {"kl": [1.0]})
