"""Profiles: how a cache stores its tokens, found for one model and kept in a TOML file.

    [kv]                    fields of KVConfig
    k_bits = 3

    [kv.layers]             what some layers do otherwise: a layer, neighbouring layers, or a KV head of one
    "0-2" = "k4v3"
    "7.1" = "s0.4"

    [measured]              where it comes from; nothing depends on it

`layers` may also be the text that KVConfig takes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from mikv_cpp.config import KVConfig
from mikv_cpp.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LAYERS = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+)|(?P<head>\.\d+))?", flags=re.ASCII)
_MOST_LAYERS = 10_000  # that one row may name
_REMEDY = "correct it, or make one with python -m mikv_cpp.calibrate"


@dataclass(frozen=True)
class Profile:
    """What a profile says. measured: text, numbers, lists of tables; where the configuration comes from."""

    config: KVConfig
    measured: Mapping[str, Any] = field(default_factory=dict)


def load_profile(path: Union[str, os.PathLike[str]]) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has a field or value that KVConfig does not.
    """
    name = os.fspath(path)
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"profile {name!r} cannot be read ({error.strerror}): check the path, or make one with python -m mikv_cpp.calibrate"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"profile {name!r} is not TOML ({error}): {_REMEDY}") from error
    kv, measured = tables.get("kv"), tables.get("measured", {})
    if not isinstance(kv, dict) or not isinstance(measured, dict):
        raise ConfigError(f"profile {name!r} has no table [kv]: {_REMEDY}")
    try:
        return Profile(_config_of(kv), measured)
    except ConfigError as error:
        raise ConfigError(f"profile {name!r}: {error}") from error


def save_profile(path: Union[str, os.PathLike[str]], profile: Profile) -> None:
    """Write a profile, in the place of one that is there.

    Raises:
        ConfigError: it cannot be written there.
    """
    part = Path(path).with_name(Path(path).name + ".part")
    try:
        part.write_text(profile_text(profile), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"profile {os.fspath(path)!r} cannot be written ({error.strerror}): name a file in a folder that can be written to"
        ) from error


def profile_text(profile: Profile) -> str:
    """A profile as TOML."""
    fields = {name: value for name, value in dataclasses.asdict(profile.config).items() if value is not None}
    layers = fields.pop("layers")
    rows = layer_rows(layers) if layers else {}
    if layers_text(rows) != layers:
        rows, fields["layers"] = {}, layers
    lines = ["[kv]", *_pairs(fields)]
    if rows:
        lines += ["", "[kv.layers]", *_pairs(rows, quoted=True)]
    if profile.measured:
        lines += ["", *_table("measured", profile.measured)]
    return "\n".join(lines) + "\n"


def _config_of(kv: Mapping[str, Any]) -> KVConfig:
    """The configuration in the table [kv]."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(KVConfig)}
    unknown = sorted(set(kv) - set(defaults))
    if unknown:
        raise ConfigError(f"KVConfig has no field {unknown[0]!r}: it has {', '.join(defaults)}")
    values = dict(kv)
    if isinstance(values.get("layers"), dict):
        values["layers"] = layers_text(values["layers"])
    for name, value in values.items():
        if isinstance(defaults[name], str) and not isinstance(value, str):
            raise ConfigError(f"{name}={value!r} is not text")
    return KVConfig(**values)


def layers_text(rows: Mapping[str, Any]) -> str:
    """KVConfig's text for the rows of a table [kv.layers]: {"0-1": "k4"} is "0:k4,1:k4".

    Raises:
        ConfigError: a row that names no layer, or whose choices are no text.
    """
    parts = []
    for key, choices in rows.items():
        match = _LAYERS.fullmatch(key)
        first = int(match["first"]) if match else 0
        last = int(match["last"]) if match and match["last"] else first
        if match is None or not isinstance(choices, str) or not 0 <= last - first < _MOST_LAYERS:
            raise ConfigError(f'layers has the row {key!r} = {choices!r}: write "0-2" = "k4v3" or "7.1" = "s0.4"')
        parts += [f"{layer}{match['head'] or ''}:{choices}" for layer in range(first, last + 1)]
    return ",".join(parts)


def layer_rows(layers: str) -> dict[str, str]:
    """Rows of a table [kv.layers] for KVConfig's text: neighbouring layers with the same choices share one.

    The text may say more than a table can: the same place twice. What the table says is then not the same.
    """
    runs: list[tuple[str, str, str]] = []  # first and last place of each row, and its choices
    for row in layers.split(","):
        place, _, chosen = row.partition(":")
        if runs and chosen == runs[-1][2] and _continues(runs[-1][1], place):
            runs[-1] = (runs[-1][0], place, chosen)
        else:
            runs.append((place, place, chosen))
    return {first if first == last else f"{first}-{last}": chosen for first, last, chosen in runs}


def _continues(place: str, following: str) -> bool:
    return "." not in place + following and int(following) == int(place) + 1


# --- TOML ---------------------------------------------------------------------------------------------------------------------


def _table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """A table with its values first, then the lists of tables in it."""
    lists = {key: value for key, value in values.items() if isinstance(value, (list, tuple))}
    yield f"[{name}]"
    yield from _pairs({key: value for key, value in values.items() if key not in lists})
    for key, rows in lists.items():
        yield from _rows(f"{name}.{key}", rows)


def _rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield from ("", f"[[{name}]]", *_pairs(row))


def _pairs(values: Mapping[str, Any], quoted: bool = False) -> Iterator[str]:
    for key, value in values.items():
        yield f"{_text(key) if quoted else key} = {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, (int, float)) else _text(str(value))


def _text(text: str) -> str:
    """A TOML string: JSON's, but for one more control character, and for surrogates, which no file can hold."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(whole, ensure_ascii=False).replace("\x7f", "\\u007f")
