"""--prompt-cache of the server: a conversation that another one displaced comes back from disk."""

from __future__ import annotations

from pathlib import Path

from served import Served, Start

from mikv_cpp.prompt_cache import PromptCache


def _ask(served: Served, text: str) -> tuple[str, int]:
    """The answer, and how many of the prompt's tokens were not read."""
    done = served.client().chat.completions.create(
        model="any", messages=[{"role": "user", "content": text}], max_tokens=4, temperature=0
    )
    assert done.usage is not None
    assert done.usage.prompt_tokens_details is not None
    return done.choices[0].message.content or "", done.usage.prompt_tokens_details.cached_tokens or 0


def test_a_displaced_conversation_is_not_read_again(serve: Start, tmp_path: Path) -> None:
    served = serve()
    served.llm.prompt_cache = PromptCache(tmp_path)
    one, two = "First talk. " * 20, "Another one. " * 20
    answer, n_cached = _ask(served, one)
    assert n_cached == 0
    _ask(served, two)
    again, n_cached = _ask(served, one)
    assert n_cached > len(one)
    assert again == answer
    assert _ask(served, two)[1] > len(two)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_a_folder_it_is_read_again(serve: Start) -> None:
    served = serve()
    one, two = "First talk. " * 20, "Another one. " * 20
    _ask(served, one)
    _ask(served, two)
    assert _ask(served, one)[1] < 64
