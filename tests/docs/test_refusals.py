"""docs/faq.md has every sentence with which something is refused, as it is printed."""

from __future__ import annotations

import re

from refusals import NATIVE, PYTHON, ROOT, literals, said_by_native, said_by_python

FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
QUOTED = [match[2] for match in re.finditer(r"^- (`+) ?(.*?) ?\1(?!`)", FAQ, flags=re.MULTILINE)]


def test_every_sentence_quoted_is_in_the_sources() -> None:
    """All its fixed parts, in one file."""
    texts = [literals(path) for path in [*PYTHON, *NATIVE]]

    def is_said(sentence: str) -> bool:
        parts = [part for part in sentence.split("…") if len(part.strip()) > 3]
        return bool(parts) and any(all(part in text for part in parts) for text in texts)

    assert len(QUOTED) > 100
    assert [sentence for sentence in QUOTED if not is_said(sentence)] == []


def test_every_refusal_of_the_sources_is_quoted() -> None:
    """A new one gets its line in docs/faq.md."""
    said = {sentence for path in PYTHON for sentence in said_by_python(path)}
    said |= {sentence for path in NATIVE for sentence in said_by_native(path)}
    assert len(said) > 100
    assert sorted(said - set(QUOTED)) == []
