"""The search for a profile: its decisions on their own, the search on a model that is only arithmetic, and the command."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp import KVConfig
from mikv_cpp.caches import parse_cache
from mikv_cpp.calibrate import rungs
from mikv_cpp.calibrate.__main__ import main, run
from mikv_cpp.calibrate.allocation import (
    Allocation,
    Band,
    Choice,
    Harm,
    as_measured,
    by_band,
    cut_bands,
    exchanged,
    fitted,
    numbered,
    share_weights,
)
from mikv_cpp.calibrate.search import Search, Terms
from mikv_cpp.eval.__main__ import main as eval_main
from mikv_cpp.eval.divergence import Scores
from mikv_cpp.model_file import read_model_file
from mikv_cpp.plan import plan_cache
from mikv_cpp.plugin import native_library

N_LAYER, N_USE, BUDGET = 6, 8192, 38_000
harm_values = st.floats(0, 1, allow_subnormal=False)
harm_lists = st.lists(st.builds(Harm, harm_values, harm_values), min_size=1, max_size=8)
bases = st.builds(
    KVConfig, k_bits=st.sampled_from([2, 3, 4]), v_bits=st.sampled_from([2, 3, 4]), refined_bits=st.sampled_from([4, 8])
)


def row_bits(config: KVConfig, layer: int) -> tuple[int, int, float]:
    """Key bits, value bits and share that a table gives a layer."""
    k, v, share = config.k_bits, config.v_bits, config.refined_share
    for row in filter(None, config.layers.split(",")):
        place, _, chosen = row.partition(":")
        if int(place) == layer:
            k = int(chosen[chosen.index("k") + 1]) if "k" in chosen else k
            v = int(chosen[chosen.index("v") + 1]) if "v" in chosen else v
            share = float(chosen.partition("s")[2]) if "s" in chosen else share
    return k, v, share


def size_of(allocation: Allocation) -> int:
    """Thousandths of a bit per key and value pair, summed over layers."""
    config = allocation.config()
    rows = [row_bits(config, layer) for layer in range(N_LAYER)]
    return round(1000 * sum(k + v + share * (2 * config.refined_bits - k - v) for k, v, share in rows))


# --- decisions ----------------------------------------------------------------------------------------------------------------


@given(
    bases, st.lists(st.sampled_from([0.25, 0.5, 1.0, 4.0]), min_size=N_LAYER, max_size=N_LAYER), st.integers(20_000, 110_000)
)
def test_fitted_spends_what_it_can_and_never_more(base: KVConfig, weights: list[float], budget: int) -> None:
    layers = {layer: Choice(base.k_bits, base.v_bits, weight) for layer, weight in enumerate(weights)}
    found = fitted(Allocation(base, 0.0, layers), size_of, budget)
    if found is None:
        assert size_of(Allocation(base, 0.0, layers)) > budget
        return
    assert size_of(found) <= budget
    more = Allocation(base, found.share + 1 / 1024, layers)
    assert size_of(more) > budget or size_of(more) == size_of(found)


def test_an_allocation_is_written_as_rows_of_what_differs() -> None:
    base = KVConfig(k_bits=3, v_bits=2, refined_bits=5, policy="h2o")
    layers = {0: Choice(4, 2), 2: Choice(3, 3, 0.5), 3: Choice(3, 2), 5: Choice(3, 2, 9.0)}
    config = Allocation(base, 0.2, layers).config()
    assert (config.layers, config.refined_share, config.policy) == ("0:k4,2:v3s0.1000,5:s1.0000", 0.2, "h2o")
    assert numbered(config, [2, 5]).layers == "0:v3s0.1000,1:s1.0000"
    assert Allocation(base, 3.0).config().refined_share == 1.0


@given(st.floats(0, 1), st.integers(256, 40_000), st.integers(256, 40_000), st.integers(0, 300))
def test_as_measured_keeps_the_part_of_old_tokens(share: float, n_use: int, n_measured: int, n_reserved: int) -> None:
    found = as_measured(share, n_use, n_measured, n_reserved)
    assert 0 <= found <= 1
    assert as_measured(1.0, n_use, n_measured, n_reserved) == 1.0
    if min(n_use, n_measured) > n_reserved and share * n_use > n_reserved:
        old = (share * n_use - n_reserved) / (n_use - n_reserved)
        assert (found * n_measured - n_reserved) / (n_measured - n_reserved) == pytest.approx(old, abs=1e-9)


@given(st.lists(st.integers(0, 99), min_size=1, unique=True).map(sorted), st.integers(1, 14))
def test_bands_are_all_layers_in_order_and_even(layers: list[int], most: int) -> None:
    bands = cut_bands(layers, lambda _layer: (3, 5), most)
    assert [layer for band in bands for layer in band.layers] == layers
    sizes = {len(band.layers) for band in bands}
    assert len(bands) == min(most, len(layers))
    assert max(sizes) - min(sizes) <= 1
    assert all((band.k_values, band.v_values) == (3 * len(band.layers), 5 * len(band.layers)) for band in bands)


@given(bases, harm_lists, st.data())
def test_exchanges_need_no_more_bytes_and_promise_less_harm(base: KVConfig, harms: list[Harm], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=len(harms), max_size=len(harms)))
    bands = [Band((index,), 64 * size, 32 * size) for index, size in enumerate(sizes)]
    found = exchanged(base, bands, harms)
    even = [(base.k_bits, base.v_bits)] * len(bands)
    spent, had = (sum(k * b.k_values + v * b.v_values for b, (k, v) in zip(bands, bits)) for bits in (found, even))
    assert spent <= had
    assert all(bits in (2, 3, 4) for pair in found for bits in pair)
    now, before = (sum(harm.at(*bits) for harm, bits in zip(harms, chosen)) for chosen in (found, even))
    assert found == even or now < before


def test_a_bit_goes_to_the_band_that_is_harmed_most() -> None:
    base = KVConfig(k_bits=3, v_bits=3, refined_bits=5)
    bands = [Band((index,), 64, 64) for index in range(3)]
    assert exchanged(base, bands, [Harm(1, 0.1), Harm(0.1, 0.1), Harm(0.1, 0.001)])[0] == (4, 3)
    assert exchanged(base, bands, [Harm(0.1, 0.1)] * 3) == [(3, 3)] * 3


@given(harm_lists, st.sampled_from([0.5, 1.0]))
def test_shares_follow_harm(harms: list[Harm], power: float) -> None:
    bands = [Band((index,), 64, 64) for index in range(len(harms))]
    bits = [(3, 2)] * len(bands)
    weights = share_weights(bands, harms, bits, power)
    assert all(0.25 <= weight <= 4 for weight in weights)
    for (one, a), (two, b) in itertools.combinations(zip(harms, weights), 2):
        assert (one.at(3, 2) - two.at(3, 2)) * (a - b) >= 0
    assert by_band(bands, bits, weights)[0] == Choice(3, 2, round(weights[0], 3))


@given(st.integers(20_000, 120_000))
def test_rungs_spend_the_budget_and_rounds_are_each_once(budget: int) -> None:
    found = rungs.rungs(KVConfig(), size_of, budget)
    assert bool(found) == (size_of(rungs.smallest(KVConfig())) <= budget)
    assert all(size_of(rung) <= budget for rung in found.values())
    assert len(found) <= 1 or all(size_of(rung) >= 0.97 * budget for rung in found.values())
    first = rungs.first_round(list(found))
    assert sorted({key[:2] for key in found}) == [key[:2] for key in first]
    second = rungs.second_round(list(found), {key: sum(key) for key in first})
    assert not set(first) & set(second)
    assert {key[:2] for key in second} <= {key[:2] for key in sorted(first, key=sum)[:2]}


# --- the search ---------------------------------------------------------------------------------------------------------------


class Arithmetic:
    """A model whose divergence is the sum over layers of what their bits leave; layer 3 weighs more than others."""

    def __init__(self, held_out_weight: float = 8.0, stop_after: Optional[int] = None) -> None:
        self.weights = {False: 8.0, True: held_out_weight}
        self.stop_after, self.names, self.expected = stop_after, [], 0

    def expect(self, n_more: int) -> None:
        self.expected += n_more

    def score(self, name: str, config: KVConfig, held_out: bool = False) -> Scores:
        if len(self.names) == self.stop_after:
            raise KeyboardInterrupt
        self.names.append((held_out, name))
        kl = 0.0
        for layer in range(N_LAYER):
            k, v, share = row_bits(config, layer)
            weight = self.weights[held_out] if layer == 3 else 1.0
            for bits in (k, v):
                kl += 1e-3 * weight * ((1 - share) * 4.0**-bits + share * 4.0**-config.refined_bits)
        return Scores(kl * np.linspace(0.5, 1.5, 64), np.zeros(64), np.ones(64, dtype=np.bool_))


def search_with(measure: Arithmetic, budget: int = BUDGET) -> Search:
    bands = cut_bands(range(N_LAYER), lambda _layer: (64, 64), 12)
    bits_of: Callable[[Allocation], float] = lambda allocation: size_of(allocation) / (2000 * N_LAYER)  # noqa: E731
    return Search(Terms(KVConfig(), size_of, bits_of, budget, N_USE, 1024), measure, bands)


def test_the_layer_that_is_harmed_most_gets_more() -> None:
    measure = Arithmetic()
    search = search_with(measure)
    assert run(search)
    assert search.best is not None
    harm = {band.layers[0]: harm.k for band, harm in search.harms.items()}
    assert max(harm, key=lambda layer: harm[layer]) == 3
    uniform = min((trial for trial in search.trials if trial.stage == "ladder"), key=lambda trial: trial.mean_kl)
    chosen, other = search.best.layers[3], search.best.layers[0]
    assert (chosen.k_bits + chosen.v_bits, chosen.weight) > (other.k_bits + other.v_bits, other.weight)
    assert all(size_of(trial.allocation) <= BUDGET for trial in search.trials)
    assert min(trial.mean_kl for trial in search.trials) < 0.9 * uniform.mean_kl
    assert search.held_out is not None
    assert search.held_out.value < 1
    assert len(measure.names) <= measure.expected
    assert len(measure.names) == len(set(measure.names)), "nothing is measured twice"


def test_what_does_worse_on_the_held_out_text_is_not_taken() -> None:
    search = search_with(Arithmetic(held_out_weight=0.0))
    assert run(search)
    assert search.held_out is not None
    assert search.held_out.value > 1
    assert search.best is not None
    assert search.best.layers == {}


@pytest.mark.parametrize("stop_after", [0, 1, 5, 20])
def test_ctrl_c_keeps_the_best_so_far(stop_after: int) -> None:
    search = search_with(Arithmetic(stop_after=stop_after))
    assert not run(search)
    if stop_after == 0:
        assert search.best is None
        return
    best = min(search.trials, key=lambda trial: trial.mean_kl)
    assert search.best == best.allocation
    assert search.best_name == best.name


# --- the command --------------------------------------------------------------------------------------------------------------

SHORT = ["-c", "256", "-ub", "64", "-t", "1", "--ctx-size", "4096"]


@pytest.fixture(scope="module")
def calibrated(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A tiny model, its profile, and the folder of what was scored."""
    folder, model = tmp_path_factory.mktemp("calibrate"), str(tiny_model())
    assert main([model, "--budget", "30%", *SHORT, "-o", str(folder / "p.toml"), "--keep", str(folder / "keep")]) == 0
    return model, folder / "p.toml", folder / "keep"


def test_the_profile_meets_the_budget_and_is_used(calibrated: tuple[str, Path, Path], capsys: Any) -> None:
    model, path, _ = calibrated
    assert parse_cache(str(path)).config == KVConfig.load(path)
    arguments = ["memory", model, "-c", "4096", "--fill", "64", "--caches", f"q4_0,{path}", "-t", "1", "--json"]
    assert eval_main(arguments) == 0
    kv = json.loads(capsys.readouterr().out)["rows"][-1]["kv"]
    plan = plan_cache(native_library(), read_model_file(model), KVConfig.load(path), 4096)
    assert 0.295 < plan.size_bytes / kv["bytes_f16"] <= 0.30
    assert kv["bytes_total"] <= plan.size_bytes, "the plan has room for a longer micro-batch"


def test_a_second_run_takes_all_from_the_archive(calibrated: tuple[str, Path, Path], capsys: Any) -> None:
    model, path, keep = calibrated
    before = path.read_text(encoding="utf-8")
    assert main([model, "--budget", "30%", *SHORT, "-o", str(path), "--keep", str(keep), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert path.read_text(encoding="utf-8") == before
    assert {trial["stage"] for trial in found["trials"]} >= {"ladder", "layers"}
    assert [band["layers"] for band in found["bands"]] == ["0", "1"]
    assert all(trial["bits_per_value"] <= 0.30 * 16 for trial in found["trials"])
    best = {trial["cache"] for trial in found["trials"]}
    assert found["best"] in best
    assert found["complete"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "10%"], ["'10%'", "smallest plan", "k2v2r4"]),
        (["--budget", "lots"], ["'lots'", "25%"]),
        ([], ["--budget"]),
        (["--budget", "30%", "-o", "profile.json"], ["profile.json", ".toml"]),
        (["--budget", "30%", "-o", "nowhere/p.toml"], ["nowhere/p.toml"]),
        (["--budget", "30%", "--chunks", "0"], ["--chunks 0"]),
        (["--budget", "30%", "--ctx-size", "0"], ["--ctx-size 0"]),
        (["--budget", "30%", "--chunks", "900"], ["too few"]),
        (["--budget", "30%", "--kv", "best"], ["'best'", "mikv"]),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_model: Callable[..., Path], capsys: Any, arguments: list[str], words: list[str]
) -> None:
    assert main([str(tiny_model()), *SHORT, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


def test_ctrl_c_before_anything_was_measured_writes_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mikv_cpp.eval.scoring.Scorer.score", stop)
    assert main([str(tiny_model()), "--budget", "30%", *SHORT, "-o", str(tmp_path / "p.toml")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_windowed_layers_are_calibrated_too(tiny_model: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    model, path = str(tiny_model(arch="gemma3", n_layer=13)), tmp_path / "p.toml"
    assert main([model, "--budget", "24%", *SHORT, "-o", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["bands"]) > 2
    assert {"0", "12"} <= {part for band in found["bands"] for part in re.split("[, -]+", band["layers"])}
    assert all(trial["bits_per_value"] <= 0.24 * 16 for trial in found["trials"])
