"""Every method of the field has a page, which the index and the site know, and its tables are those of what was measured."""

from __future__ import annotations

import re
import subprocess
import sys

from documented import ROOT

from mikv_cpp.config import PRESETS

OWN = {"mikv", "mikv-tight", "mikv-pool", "mikv-safe", "mikv-2bit", "sinks", "q8"}
FIELD = sorted(set(PRESETS) - OWN)


def test_every_method_has_a_page_in_the_index_and_the_site() -> None:
    """A page says where the method comes from, what is different here, and what was published and measured."""
    index, site = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.stem for page in sorted((ROOT / "docs" / "methods").glob("*.md"))] == FIELD
    for name in FIELD:
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        assert re.search(r"^# .*`" + name + "`$", page, flags=re.MULTILINE)
        assert re.search(r"\b\d{4}\.\d{5}\b", page), "its paper"
        assert "## What is different here, and why" in page
        assert "## Published, and here" in page
        assert f"<!-- begin {name} -->" in page
        assert f"[`{name}`](methods/{name}.md)" in index
        assert f"methods/{name}.md" in site


def test_tables_are_those_of_the_measurements() -> None:
    """scripts/methods.py --render writes them."""
    script = [sys.executable, str(ROOT / "scripts" / "methods.py"), "--check"]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
