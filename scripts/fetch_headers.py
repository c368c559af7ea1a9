#!/usr/bin/env python3
"""Fetch what the build needs of llama.cpp from the sdist of llama-cpp-python, and print the folder it is in.

A wheel of llama-cpp-python has no headers; the sdist of the same version has llama.cpp's whole source. It is downloaded once
from the index that pip is configured for, its sha256 checked, and only the headers kept (about 1 MB) in the user's cache
folder: the second call needs no network. `--source` keeps the whole llama.cpp tree instead, for building its own tools.

Standard library only: CMake runs this before anything is installed. stdout has one line, the folder; the rest goes to stderr.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import html.parser
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}  # of the sdist of each version
HEADERS = re.compile(
    r"LICENSE|ggml/CMakeLists\.txt|include/[\w-]+\.h|ggml/include/[\w-]+\.h|ggml/src/ggml-(impl|backend-impl|common)\.h"
)
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60


class FetchError(Exception):
    """One sentence for the user."""


def pinned_version() -> str:
    """The version of llama-cpp-python that pyproject.toml asks for."""
    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    pin = re.search(r"llama-cpp-python\s*==\s*([\w.]+)", pyproject.read_text(encoding="utf-8"))
    if not pin:
        raise FetchError(f"{pyproject} has no line llama-cpp-python==VERSION: add it, or set MIKV_LLAMA_CPP_DIR.")
    return pin.group(1)


def cache_folder() -> Path:
    """MIKV_CACHE_DIR, or mikv_cpp in the user's cache folder."""
    if os.environ.get("MIKV_CACHE_DIR"):
        return Path(os.environ["MIKV_CACHE_DIR"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mikv_cpp"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mikv_cpp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mikv_cpp"


def pip_output(*arguments: str) -> str:
    """What pip prints, or nothing if there is no pip."""
    # -I in the second try: a build that pip isolates hides pip itself from this interpreter, by PYTHONPATH
    for options in ((), ("-I",)):
        command = [sys.executable, *options, "-m", "pip", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "2000"}, check=False)
        if result.returncode == 0:
            return result.stdout
    return ""


def pip_settings() -> dict[str, str]:
    """Configuration of pip: environment before files, and `download`'s section before the global one."""
    found: dict[str, tuple[int, str]] = {}
    rank = {"global": 0, "download": 1, ":env:": 2}
    for line in pip_output("config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in rank and rank[section] >= found.get(key.lstrip("."), (0, ""))[0]:
            found[key.lstrip(".")] = (rank[section], str(ast.literal_eval(value)))
    return {key: value for key, (_, value) in found.items()}


def index_pages(settings: dict[str, str]) -> list[str]:
    """Addresses of llama-cpp-python's page in each index that pip would ask."""
    default = re.search(r"--index-url <url>[^(]*\(default (\S+)\)", pip_output("download", "--help"))
    index = settings.get("index-url") or (default.group(1) if default else "")
    indexes = [] if settings.get("no-index") in ("1", "true", "True") else [index]
    indexes += settings.get("extra-index-url", "").split()
    return [url.rstrip("/") + "/llama-cpp-python/" for url in indexes if url]


class Links(html.parser.HTMLParser):
    """The href of every <a> of an index page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the target of an <a>."""
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def copy_with_progress(source: object, target: Path, total_bytes: int) -> None:
    """Write what `source.read` gives to `target`; a percentage on stderr if someone is watching."""
    done_bytes = 0
    with target.open("wb") as out:
        while chunk := source.read(CHUNK_BYTES):  # type: ignore[attr-defined]
            out.write(chunk)
            done_bytes += len(chunk)
            if sys.stderr.isatty() and total_bytes:
                share = f"\r  {100 * done_bytes // total_bytes} % of {total_bytes >> 20} MiB"
                print(share, end="\n" if done_bytes >= total_bytes else "", file=sys.stderr, flush=True)


def file_link(page: str, name: str, context: ssl.SSLContext) -> str | None:
    """Address of the file of this name on an index page."""
    with urllib.request.urlopen(page, context=context, timeout=TIMEOUT_S) as answer:  # noqa: S310 (an index may be a file: URL)
        links = Links()
        links.feed(answer.read().decode("utf-8", "replace"))
        base = answer.geturl()
    urls = (urllib.parse.urldefrag(urllib.parse.urljoin(base, link)).url for link in links.targets)
    return next((url for url in urls if url.rsplit("/", 1)[-1] == name), None)


def download_from_index(name: str, folder: Path) -> Path | None:
    """The sdist from the first index that has it. None: no index gave it to a plain request."""
    settings = pip_settings()
    context = ssl.create_default_context(cafile=settings.get("cert"))
    for page in index_pages(settings):
        try:
            url = file_link(page, name, context)
            if url:
                with urllib.request.urlopen(url, context=context, timeout=TIMEOUT_S) as answer:  # noqa: S310 (as above)
                    copy_with_progress(answer, folder / name, int(answer.headers.get("Content-Length") or 0))
                return folder / name
        except (OSError, ValueError) as error:  # noqa: PERF203 (the next index may answer)
            print(f"  no answer from {page} ({error})", file=sys.stderr)
    return None


def download_with_pip(version: str, name: str, folder: Path) -> Path:
    """The sdist by pip itself: knows every way to reach an index, but prepares the package first (a minute or two)."""
    print("  asking pip, which takes longer", file=sys.stderr)
    arguments = ("download", "--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version}", "-d", str(folder))
    pip_output(*arguments)
    if not (folder / name).is_file():
        raise FetchError(
            f"{name} could not be downloaded: check that `pip {' '.join(arguments[:-2])}` works here, "
            "or set MIKV_LLAMA_CPP_DIR to the root of a llama.cpp source tree."
        )
    return folder / name


def check_sha256(path: Path, expected: str) -> None:
    """Raise FetchError unless the file has this sha256 (hexadecimal)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise FetchError(f"{path.name} has sha256 {digest.hexdigest()} where {expected} is expected: it is not used.")


def extract(archive: Path, folder: Path, whole: bool) -> None:
    """llama.cpp's headers (or, whole: all of it) from the sdist into `folder`."""
    print(f"  unpacking {archive.name}", file=sys.stderr)
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            _, vendor, inside = member.name.partition("/vendor/llama.cpp/")
            if not vendor or not member.isfile() or ".." in inside.split("/") or not (whole or HEADERS.fullmatch(inside)):
                continue
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with target.open("wb") as out:
                shutil.copyfileobj(content, out)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


def fetch(whole: bool) -> Path:
    """The folder with llama.cpp's headers (or all of it), downloaded if the cache has not got it."""
    version = pinned_version()
    if version not in SHA256:
        raise FetchError(f"No sha256 is known for llama-cpp-python {version}: add it to SHA256 in {__file__}.")
    place = cache_folder() / f"llama_cpp_python-{version}-{'source' if whole else 'include'}"
    if place.is_dir():
        return place
    name = f"llama_cpp_python-{version}.tar.gz"
    print(f"Fetching {name} (77 MB, once) for llama.cpp's {'source' if whole else 'headers'}", file=sys.stderr)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="fetch-") as temporary:
        folder = Path(temporary)
        archive = download_from_index(name, folder) or download_with_pip(version, name, folder)
        check_sha256(archive, SHA256[version])
        extract(archive, folder / "tree", whole)
        try:
            (folder / "tree").rename(place)  # whole or not at all; another process may have been faster
        except OSError:
            if not place.is_dir():
                raise
    return place


def main() -> int:
    """Print the folder; 1 and a sentence on stderr if it cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", action="store_true", help="the whole llama.cpp source tree, not only its headers")
    try:
        print(fetch(parser.parse_args().source).as_posix())
    except (FetchError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
