"""One knob: the plan's bytes are those that are taken, and the choice is the best that fits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mikv_cpp import BudgetError, ConfigError, KVConfig, Llama, arguments, plugin, run
from mikv_cpp.model_file import read_model_file
from mikv_cpp.plan import __main__ as command
from mikv_cpp.plan import choice as choice_module
from mikv_cpp.plan import kv_bytes, plain_bytes
from mikv_cpp.plan.choice import PLAIN_KL, TIERS, budget_sentence, choose, choose_for_this_machine, free_bytes, room_for_cache
from mikv_cpp.plugin import native_library

Writer = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
MODELS: list[dict[str, Any]] = [
    {},
    {"head_dim": 128, "n_head_kv": 1, "n_layer": 3},
    {"head_dim": 96, "n_head": 4, "n_head_kv": 4},
    {"arch": "mpt", "n_head": 2, "n_head_kv": 2, "n_layer": 5},
    {"arch": "gemma2", "n_layer": 5, "sliding_window": 300},
    {"arch": "gemma3", "n_layer": 8, "head_dim": 256, "n_head_kv": 1, "sliding_window": 512},
]


@pytest.mark.parametrize("n_ctx", [1024, 4096, 16384])
@pytest.mark.parametrize("sizes", MODELS, ids=["gqa", "mqa", "dim96", "alibi", "windows2", "windows6"])
@pytest.mark.parametrize("preset", ["q8", "mikv-tight"])
def test_bytes_are_those_that_are_taken(tiny_model: Writer, sizes: dict[str, Any], n_ctx: int, preset: str) -> None:
    _check_bytes(tiny_model(**sizes, n_ctx_train=16384), n_ctx, preset)


@pytest.mark.parametrize("n_ctx", [1024, 4096, 16384])
def test_bytes_of_a_real_model(smollm: Path, n_ctx: int) -> None:
    _check_bytes(smollm, n_ctx, "mikv")


def _check_bytes(path: Path, n_ctx: int, preset: str) -> None:
    """After the first whole micro-batch: before it, its rows have no room yet."""
    planned = kv_bytes(native_library(), read_model_file(path), KVConfig.preset(preset), n_ctx)
    f16_bytes = plain_bytes(read_model_file(path), n_ctx)
    llm = Llama(path, n_ctx=n_ctx, n_batch=512, n_ubatch=512, kv=preset, swa_full=False, verbose=False)
    llm.eval(list(np.arange(512) % 200 + 20))
    stats = llm.kv.stats()
    llm.close()
    assert stats.bytes_total == pytest.approx(planned, rel=0.01)
    assert stats.bytes_f16 == f16_bytes


@pytest.mark.parametrize(
    ("arch", "budget"),
    [("llama", "40%"), ("llama", "1300KiB"), ("llama", "1.5GiB"), ("gemma3", "40%"), ("gemma3", "1.5GiB")],
)
def test_a_budget_says_first_what_it_takes(tiny_model: Writer, arch: str, budget: str) -> None:
    path = tiny_model(arch=arch, n_layer=6 if arch == "gemma3" else 2)
    config = KVConfig(budget=budget)
    sentence = budget_sentence(native_library(), read_model_file(path), config, 4096)
    llm = Llama(path, n_ctx=4096, n_batch=512, n_ubatch=512, kv=config, swa_full=False, verbose=False)
    llm.eval(list(np.arange(512) % 200 + 20))
    taken = llm.kv.stats().bytes_total / MIB
    llm.close()
    planned = float(sentence.split("tokens: ")[1].split(" MiB")[0])
    assert taken == pytest.approx(planned, rel=0.01, abs=0.05)  # it is printed with one digit
    assert f"expected KL to f16 at most {TIERS[2].mean_kl:.4f}" in sentence


def test_a_budget_below_the_preset_promises_less(tiny_model: Writer) -> None:
    library, model = native_library(), read_model_file(tiny_model())
    own = kv_bytes(library, model, KVConfig(), 4096)
    assert "expected KL to f16 above 0.0094" in budget_sentence(library, model, KVConfig(budget=own - 20_000), 4096)
    assert "not measured" in budget_sentence(library, model, KVConfig(k_bits=3, budget=own), 4096)
    with pytest.raises(BudgetError, match="smallest that works"):
        budget_sentence(library, model, KVConfig(budget=own // 2), 4096)


@pytest.mark.parametrize("words", [["--budget", "60%"], ["--budget", "auto"]])
def test_the_plan_is_said_before_the_answer(tiny_model: Writer, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run.main([str(tiny_model()), "-c", "1024", "-p", "x", "-n", "1", "-t", "1", *words]) == 0
    said = capfd.readouterr().err
    assert "expected KL to f16" in said.partition("KV cache")[0]


def test_windowed_layers_as_the_file_says(tiny_model: Writer) -> None:
    model = read_model_file(tiny_model(arch="gemma3", n_layer=8))
    assert model.windowed_layers == [True] * 5 + [False] + [True] * 2
    given = {**model.fields, "gemma3.attention.sliding_window_pattern": [True, False] * 4}
    assert replace(model, fields=given).windowed_layers == [True, False] * 4
    assert (
        replace(model, fields={**model.fields, "gemma3.attention.sliding_window_pattern": 2}).windowed_layers
        == [True, False] * 4
    )
    assert read_model_file(tiny_model()).windowed_layers == [False, False]


def test_windowed_layers_that_are_not_known_are_an_upper_bound(tiny_model: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_model(arch="gemma3", n_layer=8)
    model = read_model_file(path)
    fields = {name.replace("gemma3.", "other."): value for name, value in model.fields.items()}
    other = replace(model, fields={**fields, "general.architecture": "other"})
    assert other.windowed_layers is None
    assert kv_bytes(native_library(), other, KVConfig(), 4096) > 2 * kv_bytes(native_library(), model, KVConfig(), 4096)
    assert command.main([str(path), "-c", "4096", "--memory", "1GiB"]) == 0
    assert "upper bounds" not in capsys.readouterr().out


def _memory_for(path: Path, room: int) -> int:
    """Memory of which so many bytes are left for a cache."""
    return room + read_model_file(path).size_bytes + 256 * MIB


def test_the_best_that_fits(tiny_model: Writer) -> None:
    path = tiny_model()
    library, model = native_library(), read_model_file(path)
    for tier in TIERS:
        size = kv_bytes(library, model, KVConfig.preset(tier.preset), 4096)
        assert choose(library, model, 4096, _memory_for(path, size)).tier is tier
        chosen = choose(library, model, 4096, _memory_for(path, size))
        assert chosen.size_bytes == size
        assert tier.preset in chosen.sentence()
    with pytest.raises(BudgetError, match=r"mikv-tight.*at most \d+ tokens"):
        choose(library, model, 4096, _memory_for(path, size - 1))


def test_a_refusal_names_what_works(tiny_model: Writer) -> None:
    """The context that it names fits, and 256 tokens more do not; so does the memory."""
    path = tiny_model()
    library, model = native_library(), read_model_file(path)
    memory = _memory_for(path, 300_000)
    with pytest.raises(BudgetError) as refused:
        choose(library, model, 8192, memory)
    most = int(str(refused.value).split("at most ")[1].split()[0])
    assert choose(library, model, most, memory).n_ctx == most
    with pytest.raises(BudgetError):
        choose(library, model, most + 256, memory)
    assert choose(library, model, 8192, memory, shorten=True).n_ctx == most
    enough = int(str(refused.value).split("or give ")[1].removesuffix("MiB")) * MIB
    assert choose(library, model, 8192, enough).n_ctx == 8192
    with pytest.raises(BudgetError):
        choose(library, model, 8192, enough - MIB)
    with pytest.raises(BudgetError, match="give"):
        choose(library, model, 8192, 1000, shorten=True)
    assert room_for_cache(model, 1000) == 0


def test_tiers_are_as_measured() -> None:
    texts = json.loads((ROOT / "docs" / "quality.json").read_text(encoding="utf-8"))["SmolLM2-135M-Instruct.Q4_1"]["texts"]
    rows = [row for text in texts for row in text["rows"]]

    def mean(cache: str, field: str) -> float:
        return float(np.mean([row[field] for row in rows if row["cache"] == cache]))

    for tier in TIERS[1:]:  # q8's are README's
        assert tier.mean_kl == pytest.approx(mean(tier.preset, "mean_kl"), abs=6e-5)
        assert tier.same_top == pytest.approx(mean(tier.preset, "same_top"), abs=6e-4)
    for name, kl in PLAIN_KL.items():
        assert kl == pytest.approx(mean(name, "mean_kl"), abs=6e-5)
    assert [tier.mean_kl for tier in TIERS] == sorted(tier.mean_kl for tier in TIERS)


# --- commands and Llama -------------------------------------------------------------------------------------------------------


def test_the_table(tiny_model: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_model())
    assert command.main([path, "-c", "4096", "--memory", "1GiB"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("f16", "mikv-tight", "512", "4,096", "--budget auto takes q8 for 4096 tokens"))
    assert command.main([path, "-c", "4096", "--memory", "1GiB", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["contexts"] == [512, 1024, 2048, 4096]
    assert table["choice"]["preset"] == "q8"
    sizes = {row["cache"]: row["bytes"][-1] for row in table["rows"]}
    assert sizes["f16"] == 2 * 2 * 4096 * 128 * 2
    assert sizes["mikv-tight"] == kv_bytes(native_library(), read_model_file(path), KVConfig.preset("mikv-tight"), 4096)


def test_nothing_fits(tiny_model: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tiny_model()), "-c", "65536", "--memory", "260MiB"]) == 1
    out = capsys.readouterr()
    assert "mikv-tight" in out.out
    assert out.err.startswith("error: no cache of 65536 tokens fits")


@pytest.mark.parametrize("arguments", [["--memory", "50%"], ["--memory", "much"], ["-c", "-1"], ["missing.gguf"]])
def test_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*arguments, "x.gguf"] if arguments[0] != "missing.gguf" else arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_automatic_chooses_by_free_memory(tiny_model: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model()
    size = kv_bytes(native_library(), read_model_file(path), KVConfig.preset("mikv"), 2048)
    monkeypatch.setattr(choice_module, "available_bytes", lambda: _memory_for(path, size))
    llm = Llama(path, n_ctx=2048, kv="auto", verbose=False)
    assert llm.kv_config == KVConfig.preset("mikv")
    llm.close()
    monkeypatch.setattr(choice_module, "available_bytes", lambda: None)
    assert choose_for_this_machine(native_library(), read_model_file(path), 512).tier.preset == "mikv"


def test_memory_is_the_gpus_where_there_is_one(tiny_model: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's device stands in for a GPU: ggml says that all of the machine's memory is free there."""
    monkeypatch.setattr(plugin, "plain_devices", lambda: [1])
    assert plugin.gpu_free_bytes() is None, "a GPU is there, but the CPU was chosen"
    monkeypatch.setattr(plugin, "_kind", lambda _: plugin._DEVICE_TYPE_GPU)
    assert free_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = tiny_model()
    size = kv_bytes(native_library(), read_model_file(path), KVConfig.preset("mikv-safe"), 2048)
    monkeypatch.setattr(plugin, "gpu_free_bytes", lambda: _memory_for(path, size))
    monkeypatch.setattr(choice_module, "available_bytes", lambda: 1)
    assert choose_for_this_machine(native_library(), read_model_file(path), 2048).tier.preset == "mikv-safe"


@pytest.mark.parametrize("more", [["--kv", "q8"], ["--k-bits", "3"], ["--refined-share", "0.5"]])
def test_automatic_and_a_choice_of_ones_own(more: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"leave {more[0]} out"):
        arguments.kv_setting(arguments.build_parser().parse_args(["--budget", "auto", *more]))
