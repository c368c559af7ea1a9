"""The bytes that papers count, and ours beside them."""

from __future__ import annotations

import pytest

from mikv_cpp.caches import parse_cache
from mikv_cpp.eval.published import published_bits
from mikv_cpp.native import Library, Shape
from mikv_cpp.plugin import native_library

#: Llama-2-7B's heads, 4096 cells.
SHAPE = Shape(32, 32, 4096, 1, 128, 128)

#: Table 3 of MiKV (arXiv 2402.18096): 20 % important, the rest at INT2 in groups of 64 of 128 channels, per cent of f16.
MIKV = {"paper:refined_bits=16": 33, "paper": 23, "paper:refined_bits=4": 18, "paper:refined_bits=2": 16}


@pytest.fixture(scope="module")
def library() -> Library:
    return native_library()


@pytest.mark.parametrize(("name", "percent"), MIKV.items())
def test_mikvs_table_of_sizes(library: Library, name: str, percent: int) -> None:
    config = parse_cache(name).config
    assert config is not None
    share = published_bits(config, 128) / 16
    assert int(100 * share + 0.5) == percent  # 32.5 is 33 there
    f16_bytes = 2 * SHAPE.n_layer * SHAPE.n_cells * SHAPE.n_head_kv * 2 * 128
    ours = library.config_bytes(config, SHAPE) / f16_bytes
    print(f"{name}: {share:.1%} as published, {ours:.1%} in our bytes, everything counted")  # noqa: T201 - beside the published
    # an important token keeps its base beside what refines it, and whose slot it is; a group's params take half of theirs
    assert share - 0.03 < ours < share + 0.04


def test_leading_channels_count_their_own_bits() -> None:
    """MixKVQ (arXiv 2512.19206) at 2 bits, a quarter of the key channels at 4: 2.25 and the groups' scales and zeros."""
    config = parse_cache("mixkvq:refined_share=0:group=64").config
    assert config is not None
    assert published_bits(config, 128) == pytest.approx(2.25 + 32 / 64)


def test_dropped_tokens_count_nothing() -> None:
    arms = [parse_cache(f"qpruning:rows={rows}:refined_bits={bits}").config for rows, bits in ((0.05, 16), (0.1, 8), (0.2, 4))]
    counted = [published_bits(config, 64) for config in arms if config is not None]
    assert counted == pytest.approx([0.8, 0.85, 0.9])


@pytest.mark.parametrize("name", ["paper:balance=off", "paper:k_bits=3:v_bits=3", "paper:k_bits=4:v_bits=4:refined_bits=16"])
def test_every_arm_of_mikv_is_a_variant_of_the_preset(library: Library, name: str) -> None:
    config = parse_cache(name).config
    assert config is not None
    assert library.config_bytes(config, SHAPE) > 0
