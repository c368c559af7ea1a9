"""How a cache stores its tokens: `KVConfig`, its presets, and the words in which a budget may be given."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional, Union

from mikv_cpp.errors import ConfigError
from mikv_cpp.spread import POOL_SPREADS, SPREADS

BASE_BITS = (2, 3, 4)
REFINED_BITS = (4, 5, 6, 8)
EXACT_BITS = 16  #: refined_bits of tokens that are refined to f16
HALF = -1  #: the group of half the head size
GROUPS = (0, 32, 64, HALF)
BALANCES = ("off", "max", "rms", "salience", "range", "basis", "alike")
MAX_SINKS = 64
MAX_WINDOW = 4096

#: Policies of the native library; `register_policy` adds names.
POLICIES = ["h2o", "normalized", "snapkv", "peak", "clamped", "probes", "expected", "rdkv", "keydiff", "recent", "random"]

#: Behind a policy's name: its priorities times the norm of the value. Of the built-in ones these two give no weights.
BY_VALUE = "*v"
_NO_WEIGHTS = ("recent", "random")

_LAYER_ROW = re.compile(r"\d+(\.\d+)?:(k[234]|v[234]|r([234568]|16)|r[kv][234568]|s(0?\.\d+|[01](\.0*)?)|p\d+(\.\d+)?)+")
_UNIT_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_BUDGET_FORMS = 'say "25%" (of the f16 cache), "1.5GiB", "800MB", or a number of bytes'


class Budget(NamedTuple):
    """A parsed budget: a share of the f16 cache's bytes, or a number of bytes; the other one is None."""

    share: Optional[float]
    size_bytes: Optional[int]

    def of(self, f16_bytes: int) -> int:
        """Bytes of this budget for a cache that takes f16_bytes in f16."""
        if self.size_bytes is not None:
            return self.size_bytes
        return int((self.share or 0.0) * f16_bytes)


def parse_budget(budget: Union[str, int]) -> Budget:
    """Read "25%", "1.5GiB", "800MB" or a number of bytes.

    Raises:
        ConfigError: other text, nothing, or more than 100 %.
    """
    if isinstance(budget, bool) or not isinstance(budget, (str, int)):
        raise ConfigError(f"budget {budget!r} is not text or a whole number: {_BUDGET_FORMS}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%|[A-Za-z]*)\s*", str(budget), flags=re.ASCII)
    unit = match.group(2).upper() if match else ""
    if match is None or (unit != "%" and unit not in _UNIT_BYTES):
        raise ConfigError(f"budget {budget!r} cannot be read: {_BUDGET_FORMS}")
    number = float(match.group(1))
    if unit == "%":
        if not 0 < number <= 100:
            raise ConfigError(f"budget {budget!r} is not above 0 % and at most 100 % of the f16 cache: {_BUDGET_FORMS}")
        return Budget(share=number / 100, size_bytes=None)
    size_bytes = number * _UNIT_BYTES[unit]
    if not 1 <= size_bytes < 2**63:
        raise ConfigError(f"budget {budget!r} is not a usable number of bytes: {_BUDGET_FORMS}")
    return Budget(share=None, size_bytes=int(size_bytes))


@dataclass(frozen=True)
class KVConfig:
    """How a cache stores its tokens. Frozen; every field is checked when it is made.

    Attributes:
        k_bits: bits of a key that is not refined, 2, 3 or 4; with lead_share also 0: only its leading channels are there.
        v_bits: the same for a value.
        refined_bits: bits of a refined token, keys and values, 2, 3, 4, 5, 6, 8 or 16 (f16); not below k_bits and v_bits.
        refined_share: share of the cache's cells that may be refined, 0 to 1; 0 leaves just what sinks and window need.
            With a pool (rows), of the rows kept. Without one, not used when there is a budget.
        rows: tokens that each KV head keeps: up to 1 a share of the cells (1: all), above that a number. The others are
            dropped for good, chosen by the policy, sinks and window never; with a budget, rows below 1 say that there is a
            pool, and the budget how large it is.
        policy: who is refined when not all can be: one of POLICIES, or a name given to `register_policy`; with "*v" behind
            it ("h2o*v"), its priority times the norm of the value decides.
        sinks: first tokens of a sequence, kept exact (f16), 0 to 64.
        window: most recent tokens of a sequence, always refined, 0 to 4096.
        center_keys: subtract the mean key of each block of 128 tokens before quantizing.
        group: values that share a scale and a minimum, 32 or 64; 0 takes 64, or 32 where the head size asks for it; "half" (-1)
            half of the head size where that is 32 or 64, else as 0.
        rotate: rotate keys, queries and values (Hadamard) before quantizing. llama.cpp does it where it can and keys are not
            balanced, mikv_cpp elsewhere.
        balance: weigh the channels of keys against those of queries before quantizing (and before the rotation): "off"; "max",
            the MiKV paper's channel balancer, sqrt(max |q| / max |k|); "rms", damped; or "alike", by the keys alone, so that
            all channels have one range. Or put them in another order, for lead_share: "salience" by mean |q| times the range
            of the keys, "range" by the latter alone, "basis" by principal axes of the keys. Each KV head's is fixed by the
            first micro-batch that it meets, if that has 32 tokens or more: until the cache is cleared.
        lead_share: share of a key's channels that lead, 0 to 1, rounded to groups (of 32, unless group says otherwise): they
            have lead_bits in place of k_bits, and are rotated apart from the rest. Which ones lead is for balance to say.
        lead_bits: bits of a leading channel of a key that is not refined, 2, 3 or 4.
        end_points: round the base's codes to a group's minimum and maximum (the MiKV paper's equation 1), not to bins' middles.
        recent_share: share of the refined tokens that are the sequence's most recent ones, 0 to 1; counts where it comes to
            more than window.
        layers: what some layers do otherwise, as rows LAYER[.HEAD]:CHOICES with commas between them; CHOICES are any of kBITS,
            vBITS, rBITS (or rkBITS and rvBITS, of keys and values alone), sSHARE and, of a pool, pTIMES (as many rows):
            "0:k4v4r8s0.5,3.1:s0.1" (a layer, and KV head 1 of another). With a budget, shares are proportions, but a share of 1
            is kept. `python -m mikv_cpp.calibrate` measures such a table for a model.
        spread: how refined tokens, or the rows of a pool, are spread over the layers: "uniform", "pyramid" (fewer from layer
            to layer), "ends" (the first and last two layers wholly at 8 bits) or "kvmix" (more bits in every fifth layer); see
            mikv_cpp.spread. `layers` goes first. With
            a budget, these are proportions, as there.
        protect: keep keys that break at few bits at more (Qwen2's first layer; see mikv_cpp.fragile). Without a budget,
            refined_share of the others is lowered so that the cache grows no larger by it.
        budget: bytes the whole cache may take: None, "25%" of the f16 cache, "1.5GiB", "800MB", or a number of bytes.

    Raises:
        ConfigError: a value that cannot be used.
    """

    k_bits: int = 4
    v_bits: int = 2
    refined_bits: int = 5
    refined_share: float = 0.12
    rows: float = 1.0
    policy: str = "normalized"
    sinks: int = 4
    window: int = 64
    center_keys: bool = True
    group: Union[int, str] = 0
    rotate: bool = True
    balance: str = "off"
    lead_share: float = 0.0
    lead_bits: int = 4
    end_points: bool = False
    recent_share: float = 0.0
    layers: str = ""
    spread: str = "uniform"
    protect: bool = True
    budget: Union[str, int, None] = None

    def __post_init__(self) -> None:
        _check_share("lead_share", self.lead_share, "0.25 gives a quarter of a key's channels lead_bits")
        _check_choice("k_bits", self.k_bits, (0, *BASE_BITS) if self.lead_share > 0 else BASE_BITS)
        _check_choice("lead_bits", self.lead_bits, BASE_BITS)
        _check_choice("v_bits", self.v_bits, BASE_BITS)
        _check_choice("refined_bits", self.refined_bits, (2, 3, *REFINED_BITS, EXACT_BITS))
        if self.refined_bits < max(self.k_bits, self.v_bits):
            raise ConfigError(
                f"refined_bits={self.refined_bits} is below the base (k_bits={self.k_bits}, v_bits={self.v_bits}): "
                "raise refined_bits or lower the base bits"
            )
        if self.group == "half":
            object.__setattr__(self, "group", HALF)
        _check_choice("group", self.group, GROUPS)
        if self.balance not in BALANCES:
            raise ConfigError(f"balance={self.balance!r} is not possible: use one of {_listed(BALANCES)}")
        _check_range("sinks", self.sinks, MAX_SINKS)
        _check_range("window", self.window, MAX_WINDOW)
        _check_share("refined_share", self.refined_share, "0.12 refines 12 % of the cells")
        _check_share("recent_share", self.recent_share, "0.5 gives the most recent tokens half of the refined ones")
        for name in ("center_keys", "rotate", "end_points", "protect"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is neither True nor False")
        if isinstance(self.rows, bool) or not isinstance(self.rows, (int, float)) or not 0 < self.rows < 1e9:
            raise ConfigError(f"rows={self.rows!r} is not possible: use a share of the context, up to 1, or a number of tokens")
        _check_layers(self.spread, self.layers)
        if self.is_pool and self.spread not in POOL_SPREADS:
            raise ConfigError(f"spread={self.spread!r} keeps layers whole, which a pool cannot: use {_listed(POOL_SPREADS)}")
        plain = self.policy[: -len(BY_VALUE)] if self.policy.endswith(BY_VALUE) else self.policy
        if plain not in POLICIES or (plain != self.policy and plain in _NO_WEIGHTS):
            raise ConfigError(f"unknown policy {self.policy!r}: use one of {_listed(POLICIES)}, or register_policy() it first")
        if self.budget is not None:
            parse_budget(self.budget)

    @property
    def is_pool(self) -> bool:
        """Whether tokens are dropped."""
        return self.rows != 1

    @classmethod
    def preset(cls, name: str, **changes: Any) -> KVConfig:
        """The preset called `name`, with some fields changed: `KVConfig.preset("paper", budget="25%")`.

        Raises:
            ConfigError: an unknown preset or field, or a value that cannot be used.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}: use one of {_listed(cls.presets())}")
        unknown = sorted(set(changes) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"KVConfig has no field {unknown[0]!r}: it has {_listed(cls.__dataclass_fields__)}")
        return replace(PRESETS[name], **changes)

    @staticmethod
    def presets() -> list[str]:
        """Names of the presets, the default first."""
        return list(PRESETS)

    def with_layers(self, rows: Iterable[str]) -> KVConfig:
        """The config with rows put before those of `layers`, which go first where both speak of a layer."""
        return replace(self, layers=",".join([*rows, self.layers] if self.layers else rows))

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> KVConfig:
        """The configuration in a profile, a TOML file as `save` and `python -m mikv_cpp.calibrate` write it.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or has a field or value that cannot be used.
        """
        from mikv_cpp.profile import load_profile  # noqa: PLC0415 - profiles are made of configurations

        return load_profile(path).config

    def save(self, path: Union[str, os.PathLike[str]], measured: Optional[Mapping[str, Any]] = None) -> None:
        """Write a profile; `measured` says where it comes from: names, numbers, and lists of such tables.

        Raises:
            ConfigError: it cannot be written there.
        """
        from mikv_cpp.profile import Profile, save_profile  # noqa: PLC0415 - the same

        save_profile(path, Profile(self, measured or {}))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _check_choice(name: str, value: object, choices: tuple[int, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value not in choices:
        raise ConfigError(f"{name}={value!r} is not possible: use one of {_listed(map(str, choices))}")


def _check_range(name: str, value: object, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise ConfigError(f"{name}={value!r} is not possible: use a whole number from 0 to {largest}")


def _check_layers(spread: str, layers: str) -> None:
    if spread not in SPREADS:
        raise ConfigError(f"spread={spread!r} is not possible: use one of {_listed(SPREADS)}")
    for row in layers.split(",") if layers else ():
        if not _LAYER_ROW.fullmatch(row):
            raise ConfigError(f"layers has {row!r}: write rows like 0:k4v4r8s0.5 or 3.1:s0.1, with commas between them")


def _check_share(name: str, value: object, example: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} is not a number: use 0 to 1")
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value} is not between 0 and 1: {example}")


#: Tokens that are dropped or kept in full: what the methods of eviction have in common.
_EVICTION = KVConfig(k_bits=2, v_bits=2, refined_bits=EXACT_BITS, refined_share=1.0, rows=0.25)

#: Two bits, and the most recent tokens exact: what the methods that only quantize have in common.
_RECENT_EXACT = KVConfig(k_bits=2, v_bits=2, refined_bits=EXACT_BITS, refined_share=0.05, policy="recent", sinks=0, window=0)

#: One row for each preset. Bits per value are all in (head size 64, context 2048; longer contexts take up to 0.1 less).
PRESETS: dict[str, KVConfig] = {
    # 3.7 bits: the default, best quality for its bytes
    "mikv": KVConfig(),
    # 3.0 bits: the smallest that answers well
    "mikv-tight": KVConfig(k_bits=3, v_bits=2, refined_share=0.03),
    # 2.6 bits: "mikv" over the 60 % of tokens that attention makes most of; it drops the others
    "mikv-pool": KVConfig(rows=0.6),
    # 4.5 bits: about as good as llama.cpp's q8_0
    "mikv-safe": KVConfig(k_bits=4, v_bits=3, refined_bits=6, refined_share=0.19),
    # 3.7 bits: the precisions and the policy of the MiKV paper, the rest as in "mikv"
    "mikv-2bit": KVConfig(k_bits=2, v_bits=2, refined_bits=8, refined_share=0.20, policy="h2o"),
    # 3.9 bits: MiKV as its paper has it (arXiv 2402.18096; important tokens at INT8)
    "paper": KVConfig(
        k_bits=2,
        v_bits=2,
        refined_bits=8,
        refined_share=0.20,
        policy="h2o",
        sinks=0,
        window=0,
        center_keys=False,
        group=HALF,
        rotate=False,
        balance="max",
        end_points=True,
        recent_share=0.5,
        protect=False,
    ),
    # Methods of the field (docs/methods.md). Those that drop tokens keep a quarter of them; with a budget, as many as it holds
    "streaming": replace(_EVICTION, policy="recent", window=0),
    "h2o": replace(_EVICTION, policy="h2o", sinks=0, window=0, recent_share=0.5),
    "snapkv": replace(_EVICTION, policy="snapkv", sinks=0, window=32),
    "pyramidkv": replace(_EVICTION, policy="snapkv", sinks=0, window=32, spread="pyramid"),
    # SnapKV with the tokens it keeps at 4 bits; refined_bits 2, 8 and 16 are the other arms
    "qpruning": replace(_EVICTION, policy="snapkv", sinks=0, window=32, refined_bits=4),
    # the salient 60 % at 4 bits, the rest at 2
    "zipcache": KVConfig(k_bits=2, v_bits=2, refined_bits=4, refined_share=0.6, policy="probes", sinks=0, window=0),
    # 2 bits, the most recent tokens exact; 3-bit keys and 4-bit values in a fifth of the layers: every fifth, or those that
    # `python -m mikv_cpp.calibrate M --method kvmix` finds
    "kvmix": replace(_RECENT_EXACT, spread="kvmix"),
    # 2 bits, 4 for the quarter of each head's key channels that queries and keys make most of; the most recent tokens exact
    "mixkvq": replace(_RECENT_EXACT, balance="salience", lead_share=0.25),
    # 2 bits, keys as if each channel were quantized on its own, the last 128 tokens exact
    "kivi": replace(_RECENT_EXACT, refined_share=0.0, window=128, group=32, rotate=False, balance="alike", protect=False),
    # keys in principal axes of which the retained keep the first half, at 4 bits; the important ones all, at 5
    "mixeddim": KVConfig(
        k_bits=0, v_bits=2, refined_bits=5, refined_share=0.2, window=32, balance="basis", lead_share=0.5, protect=False
    ),
    # dropped, 2 or 5 bits by what a token adds to the distortion of attention
    "rdkv": KVConfig(k_bits=2, v_bits=2, refined_bits=5, refined_share=0.5, rows=0.75, policy="rdkv*v", window=32),
    # 4.5 bits: no token singled out but sinks and window
    "sinks": KVConfig(k_bits=4, v_bits=4, refined_bits=8, refined_share=0.0, policy="recent"),
    # 8.9 bits: every token at 8 bits
    "q8": KVConfig(k_bits=4, v_bits=4, refined_bits=8, refined_share=1.0),
}

DEFAULT_PRESET = "mikv"

#: The cache that the free memory decides: `Llama(kv="auto")`, `--budget auto`; see mikv_cpp.plan.choice.
AUTOMATIC = "auto"

#: How the name of a profile's file ends.
PROFILE = ".toml"

#: What `Llama(kv=...)` takes.
KVSetting = Union[KVConfig, str, None]


def resolve_config(kv: KVSetting) -> Optional[KVConfig]:
    """What `Llama(kv=...)` means: None the default preset, "off" llama.cpp's own cache (None here), other text a name.

    Raises:
        ConfigError: an unknown preset, a profile that cannot be used, or something else altogether.
    """
    if kv is None:
        return KVConfig.preset(DEFAULT_PRESET)
    if isinstance(kv, KVConfig):
        return kv
    if isinstance(kv, str):
        return None if kv == "off" else named_config(kv)
    raise ConfigError(f'kv={kv!r} is not possible: use a KVConfig, the name of a preset, a profile\'s path, or "off"')


def named_config(name: str, **changes: Any) -> KVConfig:
    """A preset, or (a name that ends in .toml) the profile in that file, with some fields changed.

    Raises:
        ConfigError: an unknown preset, a profile that cannot be used, or a value that cannot.
    """
    return replace(KVConfig.load(name), **changes) if name.endswith(PROFILE) else KVConfig.preset(name, **changes)
