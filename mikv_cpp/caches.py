"""Names of caches to compare, as the measuring commands take them.

list   := cache ("," cache)*
cache  := plain | mikv
plain  := "f16" | "q8_0" | "q5_1" | "q5_0" | "q4_1" | "q4_0"     llama.cpp's own, on the plain device
mikv   := (preset | bits | profile) (":" policy)? (":" field "=" value)*   on the MIKV device
bits   := "k" K "v" V "r" R ("s" SHARE)?                         K3 V2 refined to 5 bits, 28 %: "k3v2r5s0.28"
profile := a file whose name ends in .toml                       "my/profile.toml:sinks=0"
field  := any field of KVConfig: "mikv:sinks=0:center_keys=0", "paper:balance=off:group=half"
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from mikv_cpp.config import HALF, PRESETS, PROFILE, KVConfig
from mikv_cpp.errors import ConfigError

PLAIN_BITS: Mapping[str, float] = {"f16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5}
BITS = re.compile(r"k(?P<k_bits>\d+)v(?P<v_bits>\d+)r(?P<refined_bits>\d+)(?:s(?P<refined_share>\d*\.?\d+))?")
PROFILE_PATH = re.compile(rf".+?{re.escape(PROFILE)}(?=:|$)")  # it may have colons of its own


@dataclass(frozen=True)
class CacheSpec:
    """A cache by the name it was asked for: llama.cpp's own type, or (config set) a MIKV cache."""

    name: str
    config: Optional[KVConfig] = None


def parse_caches(text: str, overrides: Optional[Mapping[str, Any]] = None) -> list[CacheSpec]:
    """The caches that a comma-separated list names; `overrides` are KVConfig fields for all MIKV caches in it.

    Raises ConfigError for an unknown name, or a value that KVConfig refuses.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("no cache was named: give --kv a list such as q8_0,q4_0,mikv")
    return [parse_cache(name, overrides) for name in dict.fromkeys(names)]


def parse_cache(name: str, overrides: Optional[Mapping[str, Any]] = None) -> CacheSpec:
    """One cache of the list; see parse_caches."""
    if name in PLAIN_BITS:
        return CacheSpec(name)
    profile = PROFILE_PATH.match(name)
    head = profile[0] if profile else name.partition(":")[0]
    options = name[len(head) :].split(":")[1:]
    values: dict[str, Any] = dict(overrides or {})
    match = BITS.fullmatch(head)
    base = KVConfig() if match else preset(head)
    for field, value in (match.groupdict() if match else {}).items():
        if value is not None:
            values[field] = parse_field(name, field, value)
    for option in options:
        field, equals, value = option.partition("=")
        if not equals:
            field, value = "policy", option
        values[field] = parse_field(name, field, value)
    return CacheSpec(name, dataclasses.replace(base, **values))


def preset(name: str) -> KVConfig:
    """A preset by name, or the profile in a file; for an unknown one the error says everything that a cache may be called."""
    if name.endswith(PROFILE):
        return KVConfig.load(name)
    if name not in PRESETS:
        raise ConfigError(
            f"unknown cache {name!r}: give one of llama.cpp's own ({', '.join(PLAIN_BITS)}), a preset ({', '.join(PRESETS)}), "
            "bits such as k3v2r5s0.28, or a profile's .toml file"
        )
    return PRESETS[name]


def parse_field(name: str, field: str, text: str) -> Any:
    """The value of a KVConfig field, in the type of its default."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(KVConfig)}
    if field not in defaults:
        raise ConfigError(f"unknown field {field!r} in the cache {name!r}: use one of {', '.join(defaults)}")
    default = defaults[field]
    if (field, text) == ("group", "half"):
        return HALF
    wanted = "0 or 1" if isinstance(default, bool) else "a number"
    try:
        if isinstance(default, bool):
            return bool(("0", "1").index(text))
        if isinstance(default, (int, float)):
            return type(default)(text)
    except ValueError as error:
        raise ConfigError(f"{field} in the cache {name!r} is {text!r}: give {wanted}") from error
    return text
