"""Configurations that cannot be used: one sentence each, which names the value."""

from __future__ import annotations

import math

import pytest
from native_cache import NativeCache, native_config
from native_library import NativeError, check, ffi, lib, text

from mikv_cpp.reference.layout import Config, Shape

BAD = (
    ("k_bits", 1), ("k_bits", 5), ("k_bits", 0), ("v_bits", 8), ("v_bits", -2),
    ("refined_bits", 1), ("refined_bits", 7), ("refined_bits", 9), ("refined_bits", 15), ("rows", 0), ("rows", -1),
    ("rows", math.nan), ("group", 16), ("group", 128), ("group", -32), ("group", -2),
    ("sinks", -1), ("sinks", 65), ("window", -1), ("window", 4097), ("center_keys", 2), ("center_keys", -1),
    ("head_dim_k", -80), ("head_dim_v", -64), ("compress_f16", 2), ("rotate", 2), ("balance", 7), ("end_points", -1),
    ("recent_share", -0.5), ("recent_share", 1.5), ("recent_share", math.nan), ("refined_share", -0.01), ("refined_share", 1.5),
    ("refined_share", math.nan), ("budget_bytes", -1), ("lead_share", -0.1), ("lead_share", 1.1), ("lead_share", math.nan),
    ("lead_bits", 1), ("lead_bits", 5),
)  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_field_is_named_in_one_sentence(name, value):
    config = native_config(Config())
    setattr(config, name, value)
    assert lib.mikv_config_check(config) != lib.MIKV_OK
    sentence = text(lib.mikv_last_error())
    assert name.split("_dim")[0].replace("_", " ") in sentence.replace("_", " "), sentence
    assert str(value).split(".")[0] in sentence, sentence
    assert "\n" not in sentence
    assert len(sentence) < 200


def test_refined_below_base_is_refused():
    config = native_config(Config(2, 2, 4))
    check(lib.mikv_config_check(config))
    shape = ffi.new("mikv_shape *")
    assert lib.mikv_config_bytes(config, shape, ffi.new("int64_t *")) == lib.MIKV_ERROR_ARGUMENT


def test_an_unknown_policy_lists_the_known_ones():
    config = native_config(Config(policy="oracle"))
    assert lib.mikv_config_check(config) == lib.MIKV_ERROR_NOT_FOUND
    sentence = text(lib.mikv_last_error())
    assert all(word in sentence for word in ("oracle", "h2o", "recent", "random"))


@pytest.mark.parametrize("policy", ["recent*v", "random*v", "*v", "h2o*v*v", "h2o*w"])
def test_a_policy_without_weights_takes_no_value(policy):
    assert lib.mikv_config_check(native_config(Config(policy="h2o*v"))) == lib.MIKV_OK
    assert lib.mikv_config_check(native_config(Config(policy=policy))) == lib.MIKV_ERROR_NOT_FOUND


def test_a_policy_name_without_an_end_is_refused():
    config = native_config(Config())
    config.policy = b"h" * 32
    assert lib.mikv_config_check(config) != lib.MIKV_OK


@pytest.mark.parametrize(
    "shape",
    [
        Shape(head_dim_k=-80), Shape(head_dim_v=0), Shape(n_cells=0), Shape(n_layer=0), Shape(n_head_kv=-1),
        Shape(n_stream=0), Shape(head_dim_k=0),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_is_refused(shape):
    with pytest.raises(NativeError) as error:
        NativeCache(Config(), shape)
    assert error.value.status in (lib.MIKV_ERROR_ARGUMENT, lib.MIKV_ERROR_UNSUPPORTED)
    assert str(error.value)


def test_a_group_that_does_not_divide_the_head_is_refused():
    with pytest.raises(NativeError, match=r"64.*96"):
        NativeCache(Config(group=64), Shape(head_dim_k=96, head_dim_v=96))


def test_more_memory_than_there_is_is_refused():
    with pytest.raises(NativeError) as error:
        NativeCache(Config(), Shape(1000, 1000, 1 << 24, 16, 256, 256))
    assert error.value.status == lib.MIKV_ERROR_MEMORY


def test_success_leaves_no_sentence():
    assert lib.mikv_config_check(native_config(Config(policy="oracle"))) != lib.MIKV_OK
    check(lib.mikv_config_check(native_config(Config())))
    assert text(lib.mikv_last_error()) == ""


def test_the_built_in_policies_are_there():
    names = [text(lib.mikv_policy_name(i)) for i in range(lib.mikv_policy_count())]
    assert {"h2o", "recent", "random"} <= set(names)
    assert lib.mikv_policy_name(len(names)) == ffi.NULL


def test_defaults_are_usable():
    config = ffi.new("mikv_config *")
    lib.mikv_config_default(config)
    check(lib.mikv_config_check(config))
