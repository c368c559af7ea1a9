"""What measurements have found, kept in a folder, so that an interrupted or extended run need not find it again.

An entry is of a kind, and is named by a key: a dictionary that says all that the entry depends on. Two files can hold it:

    KIND-HASH.npz    small arrays and the whole key, and behind them the sha256 of both (which NumPy ignores)
    KIND-HASH.f16    a table, float16 row after row, read through a memory map; KIND-sum-HASH.npz has its shape and checksum

Files are written under another name and then renamed. One that is damaged, or is of another key, counts as not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Optional

import numpy as np
import numpy.typing as npt

from mikv_cpp.errors import ConfigError, MikvError

MARKER = "mikv-eval.json"  # what tells such a folder from any other
FORMAT = {"made by": "mikv_cpp.eval", "format": 1}
KEY = "key"  # the array in each .npz that holds its key
DIGEST_BYTES = hashlib.sha256().digest_size
BLOCK_BYTES = 1 << 24

Key = Mapping[str, Any]
Arrays = dict[str, npt.NDArray[Any]]
Table = npt.NDArray[np.float16]


class Archive:
    """A folder of entries. `keeps_tables`: False where a table may be dropped once it was used."""

    def __init__(self, folder: Path, keeps_tables: bool = True) -> None:
        self.folder = folder
        self.keeps_tables = keeps_tables

    def save(self, kind: str, key: Key, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Keep small arrays. Raises MikvError when the folder cannot take them."""
        contents: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        packed = io.BytesIO()
        np.savez_compressed(packed, **{KEY: np.asarray(key_text(key)), **contents})
        with self._writing(self._path(kind, key, ".npz")) as file:
            file.write(packed.getvalue() + hashlib.sha256(packed.getvalue()).digest())

    def load(self, kind: str, key: Key) -> Optional[Arrays]:
        """The arrays of an entry; None if it is not there, damaged, or of another key."""
        try:
            data = self._path(kind, key, ".npz").read_bytes()
        except OSError:
            return None
        packed, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            return None
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays: Arrays = {name: file[name] for name in file.files}
        return arrays if str(arrays.pop(KEY)) == key_text(key) else None

    def save_table(self, kind: str, key: Key, shape: tuple[int, int], blocks: Iterable[Table]) -> None:
        """Keep a table [n, width], given as blocks of its rows. Raises MikvError when the folder cannot take it."""
        checksum = 0
        with self._writing(self._path(kind, key, ".f16")) as file:
            for block in blocks:
                data = np.ascontiguousarray(block, dtype="<f2").tobytes()
                checksum = zlib.crc32(data, checksum)
                file.write(data)
        self.save(f"{kind}-sum", key, {"shape": shape, "crc32": checksum})

    def load_table(self, kind: str, key: Key) -> Optional[Table]:
        """A kept table [n, width], mapped from its file; None if it is not there, damaged, or of another key."""
        expected, path = self.load(f"{kind}-sum", key), self._path(kind, key, ".f16")
        if expected is None or not path.is_file():
            return None
        n, width = expected["shape"].tolist()
        if path.stat().st_size != 2 * n * width:
            return None
        table: Table = np.memmap(path, dtype="<f2", mode="r", shape=(n, width))
        return table if checksum_of(table) == int(expected["crc32"]) else None

    def drop_table(self, kind: str, key: Key) -> None:
        """Delete a table's file if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._path(kind, key, ".f16").unlink()

    def _path(self, kind: str, key: Key, suffix: str) -> Path:
        return self.folder / f"{kind}-{hashlib.sha256(key_text(key).encode()).hexdigest()[:24]}{suffix}"

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[IO[bytes]]:
        """A file that gets its name when all of it was written."""
        part: Optional[Path] = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix="part-", delete=False) as file:
                part = Path(file.name)
                yield file
            part.replace(path)
        except OSError as error:
            raise MikvError(
                f"cannot keep results in {str(self.folder)!r} ({error.strerror or error}): make room there, or give another "
                "folder to --keep"
            ) from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)


def key_text(key: Key) -> str:
    """A key as text: the same for equal keys, whatever their order."""
    return json.dumps(key, sort_keys=True, default=repr)


def checksum_of(table: Table) -> int:
    """The CRC-32 of a table's bytes, read a block at a time."""
    rows = max(1, BLOCK_BYTES // max(table.shape[-1] * table.itemsize, 1))
    checksum = 0
    for start in range(0, len(table), rows):
        checksum = zlib.crc32(np.ascontiguousarray(table[start : start + rows]).tobytes(), checksum)
    return checksum


@contextlib.contextmanager
def open_archive(keep: Optional[str]) -> Iterator[Archive]:
    """The archive in the folder `keep`, made if it is not there; without one, an archive that is deleted at the end.

    Raises ConfigError for a folder that holds something else, or cannot be used.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="mikv-eval-") as folder:
            yield Archive(Path(folder), keeps_tables=False)
        return
    claim(Path(keep))
    yield Archive(Path(keep))


def claim(folder: Path) -> None:
    """Make a folder an archive's, or see that it is one. Raises ConfigError; see open_archive."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / MARKER
        if marker.exists():
            found = json.loads(marker.read_text(encoding="utf-8"))
        elif any(folder.iterdir()):
            found = None
        else:
            marker.write_text(json.dumps(FORMAT) + "\n", encoding="utf-8")
            found = FORMAT
    except OSError as error:
        raise ConfigError(f"--keep {str(folder)!r} cannot be used as a folder ({error.strerror}): give another one") from error
    except ValueError:  # neither UTF-8 nor JSON
        found = None
    if found != FORMAT:
        raise ConfigError(f"--keep {str(folder)!r} holds something else than results of this version: give a new folder")
