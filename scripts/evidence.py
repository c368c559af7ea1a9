#!/usr/bin/env python3
"""What is known of each GPU kernel's text: emulated, compiled, run. Writes docs/evidence.md from docs/evidence.json.

    evidence.py                                  check: has a text changed, do docs/evidence.md or README.md say otherwise
    evidence.py --record emulated --command ...  after a run that was good: notes the texts as they are now

A text is a kernel's header with all that it includes and the dialect of its backend. Changing it drops what was known of it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json

from metal_text import INCLUDE, NATIVE, ROOT

RECORDS = ROOT / "docs/evidence.json"
TABLE = ROOT / "docs/evidence.md"
README = ROOT / "README.md"
KERNELS = ("begin", "enter", "index", "attend", "fast_attend", "merge", "load", "score", "select", "mean", "store")
DIALECTS = {
    "emulator": ("dialect/emulated.h", "dialect/bytes.h"),
    "CUDA": ("dialect/cuda.h",),
    "Metal": ("dialect/metal.h", "dialect/bytes.h"),
}
# level -> backend it is evidence for
LEVELS = {"emulated": "emulator", "compiled": "CUDA", "type-checked": "Metal", "run on CUDA": "CUDA", "run on Metal": "Metal"}
SHORT = 12  # digits of a SHA-256 in the table


def included(name: str, seen: dict[str, str]) -> None:
    """Collects a header and all that it includes, other dialects than the one asked for left out."""
    if name in seen or name.startswith("dialect/"):
        return
    seen[name] = (NATIVE / name).read_text(encoding="utf-8")
    for line in seen[name].splitlines():
        match = INCLUDE.match(line)
        if match and match[1] == '"':
            included(match[2], seen)


def sha256(kernel: str, backend: str) -> str:
    """Of a kernel's text for a backend."""
    texts: dict[str, str] = {}
    included(f"kernel/gpu/{kernel}.h", texts)
    included("kernel/gpu/list.h", texts)
    for dialect in ("dialect/dialect.h", *DIALECTS[backend]):
        texts[dialect] = (NATIVE / dialect).read_text(encoding="utf-8")
    return hashlib.sha256("".join(texts[name] for name in sorted(texts)).encode()).hexdigest()


def load() -> dict[str, dict[str, dict[str, str]]]:
    """Level -> kernel -> sha256, date, device, command."""
    return json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}


def known(records: dict[str, dict[str, dict[str, str]]], level: str, kernel: str) -> dict[str, str] | None:
    """The record of a level, if the text is still the same."""
    record = records.get(level, {}).get(kernel)
    return record if record and record["sha256"] == sha256(kernel, LEVELS[level]) else None


def sentence(records: dict[str, dict[str, dict[str, str]]]) -> str:
    """What README.md may say, word for word."""

    def every(level: str) -> bool:
        return all(known(records, level, kernel) for kernel in KERNELS)

    def run_on(level: str, nothing: str) -> str:
        devices = sorted({record["device"] for kernel in KERNELS if (record := known(records, level, kernel))})
        return f"run on {', '.join(devices)}" if every(level) else nothing

    parts = [
        "every GPU kernel is " + ("executed by the emulator in CI" if every("emulated") else "not emulated since it changed"),
        f"for CUDA {'compiled' if every('compiled') else 'not compiled since it changed'}, "
        + run_on("run on CUDA", "not run on any GPU"),
        f"for Metal {'type-checked by clang' if every('type-checked') else 'not checked since it changed'}, "
        + run_on("run on Metal", "never compiled or run by Apple's tools"),
    ]
    return "; ".join(parts)


def table(records: dict[str, dict[str, dict[str, str]]]) -> str:
    """docs/evidence.md."""
    lines = [
        "# What is known of the GPU kernels",
        "",
        "Written by `scripts/evidence.py` from docs/evidence.json; CI fails when a kernel's text is not the one meant here.",
        "",
        f"In one sentence: {sentence(records)}.",
        "",
        "| kernel | backend | SHA-256 of the text | emulated, compiled or type-checked | run on hardware |",
        "|---|---|---|---|---|",
    ]
    for kernel in KERNELS:
        for level, run in (("emulated", None), ("compiled", "run on CUDA"), ("type-checked", "run on Metal")):
            backend, record = LEVELS[level], known(records, level, kernel)
            first = f"{level}, {record['date']}: `{record['command']}`" if record else "no"
            on = known(records, run, kernel) if run else None
            second = f"{on['date']}, {on['device']}: `{on['command']}`" if on else "not run" if run else "-"
            lines.append(f"| {kernel} | {backend} | {sha256(kernel, backend)[:SHORT]} | {first} | {second} |")
    return "\n".join(lines) + "\n"


def record_now(level: str, device: str, command: str) -> None:
    """Notes all kernels as they are now."""
    records = load()
    today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    records[level] = {
        kernel: {"sha256": sha256(kernel, LEVELS[level]), "date": today, "device": device, "command": command}
        for kernel in KERNELS
    }
    RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    TABLE.write_text(table(records), encoding="utf-8")
    print(f"README.md may say: {sentence(records)}")


def faults() -> list[str]:
    """What is not as recorded."""
    records = load()
    found = [
        f"{kernel}: changed since it was {level}: do that again, then scripts/evidence.py --record {level}"
        for level in records
        for kernel in KERNELS
        if not known(records, level, kernel) and not level.startswith("run")
    ]
    if not TABLE.exists() or TABLE.read_text(encoding="utf-8") != table(records):
        found.append("docs/evidence.md is stale: scripts/evidence.py --write")
    if sentence(records) not in README.read_text(encoding="utf-8").replace("\n", " "):
        found.append(f"README.md claims something else than: {sentence(records)}")
    return found


def main() -> int:
    """Record, write or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", choices=sorted(LEVELS))
    parser.add_argument("--device", default="", help="the GPU, for --record 'run on ...'")
    parser.add_argument("--command", default="", help="what was run")
    parser.add_argument("--write", action="store_true", help="write docs/evidence.md again")
    args = parser.parse_args()
    if args.record and (not args.command or (args.record.startswith("run") and not args.device)):
        parser.error("--record wants --command, and a run on hardware --device")
    if args.record:
        record_now(args.record, args.device, args.command)
    elif args.write:
        TABLE.write_text(table(load()), encoding="utf-8")
    found = [] if args.record else faults()
    print("\n".join([*found, f"evidence: {len(found)} faults"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
