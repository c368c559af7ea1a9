"""A model's layers on several devices: two emulated GPUs, a GPU beside the CPU, and a GPU that has some of them only.

Every layer computes what it does on one device, so tokens, logits and the rows of each layer are those of one device with the
CPU's plain kernels; each device holds the caches of its own layers and of no others. Needs a library with the emulated devices
(-DMIKV_EMULATED=ON) in MIKV_LIBRARY; skipped with any other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gpu_runs import (
    FEW,
    MANY,
    MIXED,
    MODELS,
    MOST_APART,
    PROMPT,
    check_same,
    greedy,
    homes,
    plain_kernels,  # noqa: F401 -- a fixture of every test here
    there,
)
from llama_contexts import Context, Split

from mikv_cpp.cache import KVCache
from mikv_cpp.plugin import _registered, native_library

pytestmark = pytest.mark.skipif(not there(), reason="skipped: the library was built without the emulated devices")

N_LAYERS = 4
SIZES = {**MODELS["llama"], "n_layer": N_LAYERS}


def open_split(path: Path, names: list[str], n_layers: int = -1, **sizes) -> Context:
    devices = _registered()
    sizes = {"n_ctx": 512, "n_batch": MANY, "n_ubatch": FEW, "n_seq_max": 1, **sizes}
    return Context(path, "q8_0", MIXED, Split([devices[name] for name in names], n_layers), **sizes)


def layers_of(context: Context) -> dict[str, set[int]]:
    """Layers of the model whose cache has this home."""
    layers: dict[str, set[int]] = {}
    for cache in context.caches:
        layers.setdefault(native_library().home(cache), set()).update(KVCache(native_library(), [cache], "").layers)
    return layers


def check_split(path: Path, one: list[str], several: list[str], most_apart: float) -> set[str]:
    """Beside all layers on one device; where the layers of the other context are."""
    alone, split = open_split(path, one), open_split(path, several)
    wanted, logits = greedy(alone, PROMPT, 12)
    found, ours = greedy(split, PROMPT, 12)
    assert found == wanted
    assert np.abs(ours - logits).max() <= most_apart
    caches = [set(native_library().caches(_registered()[device])) & set(split.caches) for device in several]
    assert all(caches), "each has some of the layers"
    assert set().union(*layers_of(split).values()) == set(range(N_LAYERS))
    check_same(alone, split)
    there = homes(split)
    alone.close()
    split.close()
    return there


def test_two_gpus(tiny_model):
    """The same bits as one."""
    assert check_split(tiny_model(**SIZES), ["MIKVE0"], ["MIKVE0", "MIKVE1"], 0.0) == {"emulated"}


@pytest.mark.parametrize("names", [["MIKVE0", "MIKV0"], ["MIKV0", "MIKVE0"]], ids=["first", "last"])
def test_a_gpu_and_the_cpu(names, tiny_model):
    """Sums in another order in every other layer: here and there a code of two bits falls on the other side in the next."""
    assert check_split(tiny_model(**SIZES), ["MIKV0"], names, 0.05) == {"CPU", "emulated"}


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("names", [["MIKVE0"], ["MIKVE0", "MIKVE1"]], ids=["one", "two"])
def test_layers_that_stay_with_llama_cpp(names, n_layers, tiny_model):
    """The first layers are the plain CPU's, with its q8_0 cache. llama.cpp counts the output as a layer."""
    path = tiny_model(**SIZES)
    cpu, gpu = open_split(path, ["MIKV0"], n_layers), open_split(path, names, n_layers)
    wanted, logits = greedy(cpu, PROMPT, 12)
    found, ours = greedy(gpu, PROMPT, 12)
    assert found == wanted
    assert np.abs(ours - logits).max() < MOST_APART
    first = N_LAYERS + 1 - n_layers
    assert layers_of(gpu) == ({"emulated": set(range(first, N_LAYERS))} if first < N_LAYERS else {})
    if first < N_LAYERS:
        check_same(cpu, gpu)
    cpu.close()
    gpu.close()


def test_prompts_and_states_of_two_gpus(tiny_model):
    """Many rows at once, each layer loaded for its own device; a state saved by two devices is loaded by one and by two."""
    path = tiny_model(**SIZES)
    one, two = (open_split(path, names, n_ubatch=MANY) for names in (["MIKVE0"], ["MIKVE0", "MIKVE1"]))
    wanted, found = greedy(one, PROMPT, 3), greedy(two, PROMPT, 3)
    assert wanted[0] == found[0]
    assert np.abs(wanted[1] - found[1]).max() < MOST_APART
    state = two.save()
    assert one.load(state)
    assert two.load(state)
    tokens = [(7, len(PROMPT) + 3, 0)]
    assert np.abs(one.decode(tokens)[1] - two.decode(tokens)[1]).max() < MOST_APART
    assert homes(one) == homes(two) == {"emulated"}
    one.close()
    two.close()
