"""The host side of a GPU in llama.cpp, on the emulated device MIKVE0, beside the CPU's device with its plain kernels.

Micro-batches of few tokens are attended by our kernels: the same tokens, places and scores, and logits within what sums in
another order make. Those of many are attended by the inner device over rows in f16, as llama.cpp's own f16 cache is, and it
adds in f16 too: a code of 2 bits that falls on the other side then moves logits by a tenth. So the root mean square of the
difference may be a tenth of what quantizing itself costs (0.03 of it where this was first run).
Needs a library with the emulator (-DMIKV_EMULATED=ON) in MIKV_LIBRARY; skipped with any other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Optional

import llama_cpp.llama_cpp as api
import numpy as np
import pytest
from gpu_runs import (
    DEVICE,
    FEW,
    HOME,
    MANY,
    MIXED,
    MODELS,
    MOST_APART,
    MOST_OF_QUANTIZING,
    PROMPT,
    check_near,
    check_same,
    greedy,
    homes,
    plain_kernels,  # noqa: F401 -- a fixture of every test here
    there,
)
from llama_contexts import Context

from mikv_cpp import Llama
from mikv_cpp.config import KVConfig
from mikv_cpp.plugin import native_library

pytestmark = pytest.mark.skipif(not there(), reason="skipped: the library was built without the emulated device")


def open_on(device: str, path: Path, config: Optional[KVConfig], cache: str = "q8_0", **sizes) -> Context:
    os.environ["MIKV_DEVICE"] = device
    return Context(path, cache, config, **{"n_ctx": 512, "n_batch": MANY, "n_ubatch": FEW, "n_seq_max": 1, **sizes})


def compare(path: Path, config: KVConfig, cache: str = "q8_0", most_apart: float = MOST_APART) -> None:
    cpu, gpu = open_on("CPU", path, config, cache), open_on(DEVICE, path, config, cache)
    try:
        wanted, logits = greedy(cpu, PROMPT, 12)
        assert homes(cpu) == {"CPU"}
        assert homes(gpu) == {HOME}
        found, ours = greedy(gpu, PROMPT, 12)
        assert found == wanted or DEVICE != "MIKVE0"
        check_near(ours, logits, most_apart)
        assert homes(gpu) == {HOME}, "every graph was one for the device"
        check_same(cpu, gpu)
    finally:
        cpu.close()
        gpu.close()


@pytest.mark.parametrize("name", MODELS)
def test_tokens_rows_and_statistics_are_the_cpus(name, tiny_model):
    compare(tiny_model(**MODELS[name]), MIXED)


FAST = {**MODELS, "multi-query 256": {"arch": "llama", "head_dim": 256, "n_head": 2, "n_head_kv": 1}}


@pytest.mark.parametrize("name", FAST)
def test_fast_kernels(name, tiny_model, monkeypatch):
    """They round queries and weights to 15 bits. What the next layer stores then differs by a code here and there."""
    path = tiny_model(**FAST[name])
    f16, plain = open_on("CPU", path, None, "f16"), open_on(DEVICE, path, MIXED)
    truth, logits = greedy(f16, PROMPT, 0)[1], greedy(plain, PROMPT, 0)[1]
    monkeypatch.delenv("MIKV_GPU")
    fast = open_on(DEVICE, path, MIXED)
    ours = greedy(fast, PROMPT, 0)[1]
    assert homes(fast) == {HOME}
    apart, quantizing = (np.sqrt(((x - logits).astype(np.float64) ** 2).mean()) for x in (ours, truth))
    assert 0 < apart <= MOST_OF_QUANTIZING * quantizing
    check_same(plain, fast, most_other=0.05)
    for context in (f16, plain, fast):
        context.close()


@pytest.mark.parametrize("policy", ["snapkv*v", "normalized", "recent"])
def test_policies(policy, tiny_model):
    compare(tiny_model(**MODELS["llama"]), replace(MIXED, policy=policy))


@pytest.mark.parametrize("name", MODELS)
def test_prompts_go_through_the_inner_devices_attention(name, tiny_model):
    path = tiny_model(**MODELS[name])
    contexts = [
        open_on(device, path, config, cache, n_ubatch=MANY)
        for device, config, cache in (("CPU", None, "f16"), ("CPU", MIXED, "q8_0"), (DEVICE, MIXED, "q8_0"))
    ]
    f16, cpu, gpu = (greedy(context, PROMPT, 0)[1].astype(np.float64) for context in contexts)
    assert homes(contexts[2]) == {HOME}
    assert 0 < np.sqrt(((gpu - cpu) ** 2).mean()) <= MOST_OF_QUANTIZING * np.sqrt(((cpu - f16) ** 2).mean())
    check_same(*contexts[1:], most_other=0.05)
    for context in contexts:
        context.close()


def test_rotation_of_our_own(tiny_model):
    """The second layer gets its rows from sums in another order: here, a code of two bits falls on the other side."""
    compare(tiny_model(head_dim=80, n_head=4, n_head_kv=2), MIXED, cache="f16", most_apart=0.05)


@pytest.mark.parametrize("policy", ["expected", "keydiff"])
def test_what_kernels_do_not_know_goes_through_the_cpu(policy, tiny_model):
    path = tiny_model(**MODELS["llama"])
    cpu, gpu = open_on("CPU", path, replace(MIXED, policy=policy)), open_on(DEVICE, path, replace(MIXED, policy=policy))
    prompt = list(range(100))
    wanted, logits = greedy(cpu, prompt, 4)
    found, ours = greedy(gpu, prompt, 4)
    assert homes(gpu) == {"CPU"}
    assert found == wanted or DEVICE != "MIKVE0"
    check_near(ours, logits)
    check_same(cpu, gpu)
    cpu.close()
    gpu.close()


def test_a_state_is_saved_and_loaded(tiny_model):
    path = tiny_model(**MODELS["llama"])
    gpu, other = open_on(DEVICE, path, MIXED), open_on("CPU", path, MIXED)
    greedy(gpu, list(range(90)), 3)
    state = gpu.save()
    assert other.load(state), "on another device"
    assert gpu.load(state)
    tokens = [(7, 93, 0)]
    here, there = gpu.decode(tokens)[1], other.decode(tokens)[1]
    check_near(here, there)
    assert homes(gpu) == {HOME}
    gpu.close()
    other.close()


def test_a_saved_conversation_goes_on_there(tiny_model, tmp_path):
    """Packed bytes from a GPU to the CPU, and back: rows have the bits and the scores that they had."""
    path, state = tiny_model(**MODELS["llama"]), tmp_path / "state"
    seen = []
    for device in (DEVICE, "CPU", DEVICE):
        os.environ["MIKV_DEVICE"] = device
        llm = Llama(path, kv=MIXED, n_ctx=512, n_batch=FEW, n_ubatch=FEW, n_threads=1, verbose=False)
        if state.exists():
            llm.load_kv(state)
        else:
            llm.eval(PROMPT[:100])
        llm.save_kv(state)
        seen.append([(llm.kv.precision_map(layer).tolist(), llm.kv.scores(layer).tolist()) for layer in range(2)])
        llm.eval(PROMPT[100:])  # the device takes what was loaded
        assert llm.kv.stats().tokens == len(PROMPT)
        assert {native_library().home(cache) for cache in llm.kv.ids} == {HOME if device == DEVICE else "CPU"}
        llm.close()
    assert seen[0] == seen[1] == seen[2]


def test_shifts_copies_and_removals(tiny_model):
    """What the host does with rows of the device, then attention there again."""
    path = tiny_model(**MODELS["llama"])
    rows = []
    for device in ("CPU", DEVICE):
        context = open_on(device, path, MIXED, n_seq_max=2, kv_unified=False)
        for sequence in (0, 1):
            assert context.decode([(token, token, sequence) for token in range(40)])[0] == 0
        api.llama_memory_seq_rm(context.memory, 0, 10, 20)
        api.llama_memory_seq_add(context.memory, 0, 20, -1, -10)
        api.llama_memory_seq_rm(context.memory, 1, -1, -1)
        api.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        rows.append([context.decode([(5 + i, 30 + i, sequence)])[1] for i in range(3) for sequence in (0, 1)])
        api.llama_memory_clear(context.memory, True)
        rows[-1].append(context.decode([(token, token, 0) for token in range(50)])[1])
        assert homes(context) == {HOME if device == DEVICE else "CPU"}
        context.close()
    for wanted, found in zip(*rows):
        check_near(found, wanted)


# What a broken device leads to is a process's affair: devices are tested once.
BROKEN = """
import os, sys
sys.path[:0] = {path!r}
import test_gpu_device as t
from pathlib import Path
t.open_on("CPU", Path({model!r}), t.MIXED)
gpu = t.open_on(t.DEVICE, Path({model!r}), t.MIXED)
print(*t.greedy(gpu, list(range(60)), 3)[0], *t.homes(gpu))
"""


@pytest.mark.skipif(DEVICE != "MIKVE0", reason="skipped: a real device cannot be broken on purpose")
@pytest.mark.parametrize("fault", ["", "mikv_attend_2", "mikv_store"])
def test_a_device_that_fails_its_self_test_is_not_trusted(fault, tiny_model, tmp_path):
    model = tiny_model(**MODELS["llama"])
    here = Path(__file__).resolve().parent
    code = BROKEN.format(path=[str(here), str(here.parent), str(here.parent.parent)], model=str(model))
    environment = {**os.environ, "MIKV_EMULATED_FAULT": fault, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cpu = open_on("CPU", model, MIXED)
    wanted = greedy(cpu, list(range(60)), 3)[0]
    cpu.close()
    assert done.stdout.split() == [*map(str, wanted), "CPU" if fault else HOME]
    assert ("self-test failed" in done.stderr) == bool(fault)
    assert len(list(tmp_path.glob("mikv_cpp/gpu-*"))) == (0 if fault else 1), "only a pass is remembered"
