"""What MkDocs does beside rendering docs/ (`mkdocs build --strict`; named under `hooks` in mkdocs.yml).

Pages link to files outside docs/, as they stand in the repository: those become files of the site, under source/, and the links
follow. A line `<!-- help: mikv_cpp.run -->` becomes what `python -m mikv_cpp.run --help` prints.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=(?:#[^)\s]*)?\))")
_HELP = re.compile(r"^<!-- help: ([\w.]+(?: \w+)*) -->$", flags=re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for link in _LINK.findall((ROOT / in_repository(page)).read_text(encoding="utf-8")):
            uri = place_on_site(target(page, link))
            if uri and uri.startswith("source/") and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / in_repository(uri))))
                if uri.endswith(".md"):
                    waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Any, **_others: Any) -> str:
    """Turn links to where their files are on the site, and fill in the help of commands."""
    here = page.file.src_uri

    def turned(link: re.Match[str]) -> str:
        uri = place_on_site(target(here, link[1]))
        return posixpath.relpath(uri, posixpath.dirname(here) or ".") if uri else link[1]

    text = _HELP.sub(lambda match: f"```text\n{help_of(match[1])}```", _LINK.sub(turned, markdown))
    return text.replace("][", "]&#91;") if here.startswith("source/") else text  # shapes such as [D][n_cells] are no references


def in_repository(uri: str) -> str:
    """Path in the repository of a page of the site."""
    return uri[len("source/") :] if uri.startswith("source/") else f"docs/{uri}"


def place_on_site(path: str) -> str:
    """Where a file of the repository is on the site; nothing if it is no file of the repository."""
    if path.startswith("..") or not (ROOT / path).is_file():
        return ""
    return path[len("docs/") :] if path.startswith("docs/") else f"source/{path}"


def target(page: str, link: str) -> str:
    """Path in the repository that a link of a page names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(page)), link))


def help_of(command: str) -> str:
    """What a command of the package says of itself."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
    asked = [sys.executable, "-m", *command.split(), "--help"]
    return subprocess.run(asked, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
