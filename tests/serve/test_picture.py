"""/kv and /metrics: what they say is what llm.kv says."""

from __future__ import annotations

import base64
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import ENDLESS, Served, Start

from mikv_cpp import KVConfig
from mikv_cpp.serve.picture import Window, picture

WAVE = KVConfig(k_bits=2, v_bits=2, refined_bits=6, refined_share=0.1, sinks=4, window=16)


@pytest.fixture
def filled(serve: Start) -> Served:
    served = serve(kv=WAVE)
    served.http().post("/v1/completions", json={"prompt": "waves" * 60, "max_tokens": 4, "logit_bias": ENDLESS})
    return served


def test_map_of_single_tokens(filled: Served) -> None:
    shown = filled.http().get("/kv", params={"columns": 4096, "text": 4096}).json()
    n_tokens = shown["tokens"]
    assert n_tokens == 303
    assert shown["map"]["tokens_per_column"] == 1
    levels = _levels(shown)
    assert levels.shape == (4, n_tokens)
    for row, (layer, head) in enumerate(shown["map"]["rows"]):
        assert (levels[row] == 10 * filled.llm.kv.precision_map(layer)[head, :n_tokens]).all()
    assert set(np.unique(levels)) == {20, 60, 160}
    text = shown["text"]
    assert "".join(text["pieces"]).startswith("waves" * 60)
    assert text["exact"][:4] == [1.0] * 4
    assert text["exact"][4] == 0
    assert text["bits"][0] == 16
    assert text["refined"][-1] == 1.0
    scores = np.mean([filled.llm.kv.scores(layer)[:, :n_tokens] for layer in (0, 1)], axis=(0, 1))
    assert text["importance"] == pytest.approx(scores.tolist(), abs=1e-5)


def test_tokens_that_were_taken_back_are_told_apart(filled: Served) -> None:
    stats = filled.llm.kv.stats()
    held = filled.http().get("/kv").json()["held"]
    assert held["taken_back"] == 0
    tiers = (held["exact"], held["refined"], held["base"])
    assert tiers == pytest.approx((stats.tokens_exact, stats.tokens_refined, stats.tokens_base), abs=0.01)
    filled.http().post("/v1/completions", json={"prompt": "waves" * 20, "max_tokens": 1})
    held = filled.http().get("/kv").json()["held"]
    assert held["taken_back"] == 303 - 100
    assert held["exact"] + held["refined"] + held["base"] == pytest.approx(100, abs=0.02)


def test_columns_are_means(filled: Served) -> None:
    single = _levels(filled.http().get("/kv", params={"columns": 4096}).json())
    shown = filled.http().get("/kv", params={"columns": 50}).json()
    wide = _levels(shown)
    per = shown["map"]["tokens_per_column"]
    assert (per, wide.shape[1]) == (7, 44)
    assert wide[:, 0].tolist() == pytest.approx(single[:, :7].mean(axis=1), abs=0.5)
    assert wide[:, -1].tolist() == pytest.approx(single[:, 43 * 7 :].mean(axis=1), abs=0.5)


def test_part_of_the_text(filled: Served) -> None:
    last = filled.http().get("/kv", params={"text": 5}).json()["text"]
    assert (last["first"], len(last["pieces"]), len(last["bits"])) == (298, 5, 5)
    some = filled.http().get("/kv", params={"text": 5, "first": 5}).json()["text"]
    assert (some["first"], "".join(some["pieces"])) == (5, "waves")
    assert filled.http().get("/kv", params={"first": 10**6}).json()["text"]["pieces"] == []
    assert filled.http().get("/kv", params={"columns": 0}).status_code == 400


def test_control_tokens_are_told_apart(server: Served) -> None:
    server.http().post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "é"}], "max_tokens": 1})
    text = server.http().get("/kv").json()["text"]
    assert text["control"][0] == 0
    assert text["pieces"][0] == "<|im_start|>"
    assert "é" in "".join(text["pieces"])


def test_while_an_answer_is_made(serve: Start) -> None:
    served = serve()
    served.slow_down()
    http = served.http()
    body = {"model": "m", "prompt": "x", "max_tokens": 1000, "stream": True, "logit_bias": ENDLESS}
    seen = []
    with served.client().completions.create(**body) as stream:
        next(iter(stream))
        for _ in range(3):
            shown = http.get("/kv").json()
            seen.append((shown["tokens"], shown["busy"]))
            time.sleep(0.01)
    assert seen[0][1]
    assert seen[0][0] < seen[-1][0]


def test_llama_cpps_own_cache(serve: Start) -> None:
    served = serve(kv="off")
    served.http().post("/v1/completions", json={"prompt": "x" * 20, "max_tokens": 1})
    shown = served.http().get("/kv").json()
    assert shown["map"] is None
    assert shown["kv"]["bytes_total"] == shown["kv"]["bytes_f16"]
    assert "bits" not in shown["text"]
    assert "own" in shown["kv"]["note"]


def test_an_empty_cache(serve: Start) -> None:
    served = serve()
    shown = picture(served.llm, Window())
    assert (shown["tokens"], shown["map"]["columns"], shown["text"]["pieces"]) == (0, 0, [])


def test_metrics(filled: Served) -> None:
    text = filled.http().get("/metrics").text
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    stats = filled.llm.kv.stats()
    kinds = ("base", "refined", "metadata", "staging")
    assert sum(values["mikv_kv_bytes", kind] for kind in kinds) == stats.bytes_total
    assert values["mikv_kv_f16_bytes",] == stats.bytes_f16
    assert sum(values["mikv_kv_tokens", tier] for tier in ("exact", "refined", "base")) == pytest.approx(stats.tokens)
    assert values["mikv_kv_demotions",] == stats.demotions > 0
    assert values["mikv_prompt_tokens_total",] == 300
    assert values["mikv_generated_tokens_total",] == 3
    assert values["mikv_tokens_per_second", "generation"] > 0
    assert values["mikv_requests_total", "/v1/completions", "200"] == 1


def _levels(shown: dict) -> np.ndarray:
    grid = shown["map"]
    return np.frombuffer(base64.b64decode(grid["levels"]), np.uint8).reshape(len(grid["rows"]), grid["columns"])
