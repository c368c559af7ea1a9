"""The page, in headless Chromium. With MIKV_SCREENSHOTS=docs the pictures of docs/serve.md are taken anew."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import pytest
from served import Served, Start, serving

from mikv_cpp.serve.app import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="skipped: no playwright")
image = pytest.importorskip("PIL.Image", reason="skipped: no pillow to look at pictures with")

STORY = """Here is a note that a keeper left in the log of a lighthouse:

"The lamp was lit at half past four. Wind from the north, rising. At seven the supply boat came in with oil, flour and the
post; the captain says that the reef east of the harbour has moved again and two ships touched it last month. At nine the fog
came down and I started the horn, one long blast each minute. At eleven a steamer answered, close by, and turned away in time.
The lens wants cleaning, the clockwork that turns it runs four seconds slow, and the spare mantle is cracked. My brother takes
the watch at two. If the wind goes round to the west he should close the shutters on that side first."

When did the fog come down, what did the keeper do then, and what has to be repaired? Answer, then tell what may happen next."""


def _chromium() -> Optional[str]:
    named = os.environ.get("MIKV_CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = _chromium()
    if path is None:
        pytest.skip("skipped: no Chromium (Debian: apt install chromium; or name one in MIKV_CHROMIUM)")
    root = hasattr(os, "getuid") and os.getuid() == 0
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """open_page(served, color_scheme="dark", ...): the page; `.asked` is what it asked for, `.faults` what went wrong in it."""
    contexts = []

    def opened(served: Served, **settings: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **settings}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.asked, page.faults = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda line: page.faults.append(line.text) if line.type == "error" else None)
        page.goto(served.url)
        return page

    yield opened
    for context in contexts:
        context.close()


def _ask(page: Any, text: str, most: int) -> None:
    page.get_by_text("Options").click()
    page.get_by_label("Tokens of an answer, at most").fill(str(most))
    page.get_by_label("Temperature").fill("0")
    page.get_by_text("Options").click()
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def _ends(page: Any) -> None:
    page.get_by_text(re.compile(r"read \d+ tokens, had")).last.wait_for()
    page.get_by_text(re.compile(r"^ready")).wait_for()


def _colours(png: bytes) -> set[tuple[int, ...]]:
    return {colour for _, colour in image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24)}


def _keep(page: Any, name: str, folder: Path) -> None:
    wanted = os.environ.get("MIKV_SCREENSHOTS")
    target = (Path(wanted) if wanted else folder) / name
    image.open(io.BytesIO(page.screenshot())).quantize(128).save(target, optimize=True)
    assert target.stat().st_size < 200_000


def test_a_conversation_and_its_cache(smollm: Path, open_page: Any, tmp_path: Path) -> None:
    """Everything that a visitor does, with a real model: a long answer makes tokens lose their refinement."""
    with serving(smollm, Settings(), n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=1, n_threads_batch=1) as served:
        page = open_page(served, color_scheme="light")
        page.get_by_text("Ask something").wait_for()
        _ask(page, STORY, 200)
        page.get_by_role("button", name="Stop").wait_for()
        page.get_by_text(re.compile(r"^answering · \d+ of 1024 tokens")).wait_for()
        _ends(page)
        kv = served.http().get("/kv", params={"text": 2048}).json()
        assert kv["held"]["base"] > 50

        spans = page.locator("#text span")
        assert spans.count() == kv["tokens"]
        assert "".join(spans.all_text_contents()) == "".join(kv["text"]["pieces"])
        _tokens_are_told(page, kv)
        light = _colours(page.locator("#map").screenshot())
        assert {(143, 184, 226), (244, 178, 106), (123, 31, 99)} <= light  # base, refined, exact
        _the_keyboard_does_it_too(page)
        page.locator("#text span", has_text="answered").first.hover()
        _keep(page, "serve-light.png", tmp_path)

        other = open_page(served, color_scheme="dark")
        other.get_by_text(re.compile(r"^ready · [1-9]")).wait_for()
        other.get_by_label("importance").check()
        other.locator("#text span", has_text="answered").first.hover()
        dark = _colours(other.locator("#map").screenshot())
        assert {(51, 98, 154), (209, 138, 42), (255, 122, 182)} <= dark
        _keep(other, "serve-dark.png", tmp_path)

        assert page.faults + other.faults == []
        assert all(url.startswith(served.url) for url in page.asked + other.asked)


def _tokens_are_told(page: Any, kv: dict[str, Any]) -> None:
    """What is said of a token under the pointer is what /kv says."""
    text = kv["text"]
    place = max(range(10, len(text["bits"]) - 80), key=lambda index: text["importance"][index])
    page.locator("#text span").nth(place).hover()
    told = page.locator("#token").text_content()
    assert told.startswith(f"token {place} ")
    assert f"{text['bits'][place]:.1f} bits" in told
    mean = sum(text["importance"]) / len(text["importance"])
    assert f"importance {text['importance'][place] / mean:.1f} \u00d7 mean" in told


def _the_keyboard_does_it_too(page: Any) -> None:
    page.locator("#map").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert page.locator("#place").text_content() == 'token 0 "<|im_start|>": exact in layer 0, head 1'
    assert page.locator("#token").text_content().startswith('token 0 "<|im_start|>" · 16.0 bits (exact)')
    page.locator("#text").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#token").text_content().startswith("token 1 ")


def test_a_narrow_window(server: Served, open_page: Any) -> None:
    page = open_page(server, viewport={"width": 420, "height": 800})
    page.get_by_text(re.compile(r"^ready")).wait_for()
    box = page.locator("#cache").bounding_box()
    assert box["x"] == 0
    assert box["width"] <= 420
    page.get_by_role("textbox", name="Message").click()
    assert page.faults == []


def test_stop_and_a_new_conversation(serve: Start, open_page: Any) -> None:
    served = serve()
    served.slow_down()
    page = open_page(served)
    _ask(page, "go on", 900)
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("(stopped)").wait_for()
    served.wait_idle()
    page.get_by_role("button", name="New conversation").click()
    assert page.locator("#messages .message").count() == 0
    assert page.get_by_role("textbox", name="Message").is_enabled()
    assert page.faults == []


def test_what_the_server_refuses_is_shown(server: Served, open_page: Any) -> None:
    page = open_page(server)
    _ask(page, "x" * 3000, 10)
    page.get_by_text("at most 1023 are possible").wait_for()
    page.get_by_text("New conversation").click()
    _ask(page, "short", 4)
    _ends(page)
    assert [fault for fault in page.faults if "400" not in fault] == []


def test_a_key_is_asked_for(serve: Start, open_page: Any) -> None:
    page = open_page(serve(api_key="secret"))
    page.get_by_label("This server wants its API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_label("This server wants its API key").fill("secret")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile(r"^ready")).wait_for()
    assert not page.get_by_label("This server wants its API key").is_visible()


def test_llama_cpps_own_cache_has_no_map(serve: Start, open_page: Any) -> None:
    page = open_page(serve(kv="off"))
    page.get_by_text("own f16 cache").wait_for()
    assert not page.locator("#map").is_visible()
    assert page.faults == []
