#!/usr/bin/env python3
"""Measure the methods of the field on a model, and write the tables of docs/methods.md and docs/methods/, marked there.

    scripts/methods.py model.gguf --text a.txt --bits 2.5,3,3.5,4,4.5 -c 2048 --chunks 1 -ub 128
    scripts/methods.py model.gguf --bits 4.1 --prompts 40 --questions 20 --length 500 --depth 4096

Results are added to docs/methods.json; --render only writes the tables anew, --check says whether they are those of the file.
Options that are not named here go to `python -m mikv_cpp.eval field`, which --keep FOLDER makes resumable.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from quality import evaluate, hidden, table

from mikv_cpp.caches import PLAIN_BITS

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS, PAGE, PAGES = DOCS / "methods.json", DOCS / "methods.md", DOCS / "methods"
KEPT = ("cache", "method", "bits_per_value", "mean_kl", "mean_kl_error", "kl_999", "same_top")
MORE = ("right", "ratio_to_f16", "ratio_low", "ratio_high")

Entry = dict[str, Any]


def measure(model: str, options: list[str]) -> Entry:
    """What `eval field` finds of a model, and how it was asked."""
    named = [Path(option).name if "/" in option else option for option in hidden(options, "--keep")]
    return entry_of(evaluate("field", model, options), " ".join([Path(model).name, *named]))


def entry_of(result: dict[str, Any], asked: str) -> Entry:
    """A result of `eval field` as the file holds it."""
    rows = [{name: row[name] for name in (*KEPT, *MORE) if row.get(name) is not None} for row in result["rows"]]
    sizes = {name: result[name] for name in ("bits", "n_positions", "n_prompts", "length", "depth")}
    return {"command": f"scripts/methods.py {asked}", **sizes, "rows": rows, "left_out": result["left_out"]}


def divergences(entries: Iterable[Entry]) -> dict[str, dict[float, Entry]]:
    """Rows of a model by method and the bits that were asked for."""
    found: dict[str, dict[float, Entry]] = {}
    for entry in entries:
        for row in entry["rows"]:
            if "@" in row["cache"]:
                found.setdefault(row["method"], {})[float(row["cache"].partition("@")[2])] = row
    return found


def of_divergence(entries: list[Entry]) -> list[Entry]:
    """The measurements of divergence at several sizes; the others are of retrieval and speed."""
    return [entry for entry in entries if len(entry["bits"]) > 1]


def leaders(methods: dict[str, dict[float, Entry]], bits: float) -> list[Entry]:
    """Methods at so many bits, the least divergence first."""
    return sorted((rows[bits] for rows in methods.values() if bits in rows), key=lambda row: row["mean_kl"])


def number(row: Optional[Entry], best: Optional[Entry] = None) -> str:
    """A mean divergence; bold where it is the best."""
    if row is None:
        return ""
    text = f"{row['mean_kl']:.4f}"
    return f"**{text}**" if row is best else text


def model_table(name: str, entries: list[Entry]) -> str:
    """Every method at every size on one model."""
    methods = divergences(of_divergence(entries))
    sizes = sorted({bits for rows in methods.values() for bits in rows})
    best = {bits: leaders(methods, bits)[0] for bits in sizes}
    ranked = sorted(methods, key=lambda method: rank(methods, method, sizes))
    body = [[f"`{method}`", *(number(methods[method].get(bits), best[bits]) for bits in sizes)] for method in ranked]
    plain = [
        row for entry in of_divergence(entries) for row in entry["rows"] if row["cache"] in PLAIN_BITS and row["mean_kl"] > 0
    ]
    own = "; ".join(f"{row['cache']} ({row['bits_per_value']:.2f} bits) {row['mean_kl']:.4f}" for row in plain)
    commands = "\n".join(f"`{entry['command']}`" for entry in of_divergence(entries))
    head = ["method", *(f"{bits:g} bits" for bits in sizes)]
    return f"**{name}**: {commands}\n\n{table(head, body)}\n\nllama.cpp's own: {own}.\n"


def rank(methods: dict[str, dict[float, Entry]], method: str, sizes: list[float]) -> tuple[float, str]:
    """Where a method stands in the table: by its mean place among those that were measured at the same sizes."""
    places = [leaders(methods, bits).index(methods[method][bits]) for bits in sizes if bits in methods[method]]
    return sum(places) / len(places), method


def best_table(results: dict[str, list[Entry]]) -> str:
    """The best method of each model and size, with its divergence's standard error, and the second."""
    found = {name: divergences(of_divergence(entries)) for name, entries in results.items()}
    sizes = sorted({bits for methods in found.values() for rows in methods.values() for bits in rows})
    body = []
    for name, methods in found.items():
        cells = []
        for bits in sizes:
            first, second = [*leaders(methods, bits), None, None][:2]
            behind = f"; `{second['method']}` {second['mean_kl']:.4f}" if second else ""
            cells.append(f"`{first['method']}` {first['mean_kl']:.4f} ± {first['mean_kl_error']:.4f}{behind}" if first else "")
        body.append([name, *cells])
    return table(["model", *(f"{bits:g} bits" for bits in sizes)], body) + "\n"


def asked_table(results: dict[str, list[Entry]]) -> str:
    """Retrieval and speed of every method."""
    parts = []
    for entry in (entry for entries in results.values() for entry in entries if len(entry["bits"]) == 1):
        rows = sorted((row for row in entry["rows"] if was_asked(row)), key=lambda row: (-row.get("right", 0), row["cache"]))
        columns = {"lines found": [right(entry, row) for row in rows], pace_head(entry): [pace(row) for row in rows]}
        measured = {head: cells for head, cells in columns.items() if any(cells)}
        body = [[f"`{row['method']}`", f"{row['bits_per_value']:.2f}", *cells] for row, *cells in zip(rows, *measured.values())]
        parts.append(f"`{entry['command']}`\n\n{table(['method', 'bits', *measured], body)}\n")
    return "\n".join(parts)


def was_asked(row: Entry) -> bool:
    """Whether a row has retrieval or speed."""
    return "right" in row or "ratio_to_f16" in row


def pace_head(entry: Entry) -> str:
    """What stands above speeds."""
    return f"decoding behind {entry['depth']:,} tokens, f16 = 1 (95 % interval)"


def right(entry: Entry, row: Entry) -> str:
    """Right answers of a cache."""
    return f"{row['right']} of {entry['n_prompts']}" if "right" in row else ""


def pace(row: Entry) -> str:
    """Speed of decoding, with its 95 % interval."""
    return f"{row['ratio_to_f16']:.2f} ({row['ratio_low']:.2f} .. {row['ratio_high']:.2f})" if "ratio_to_f16" in row else ""


def told(entry: Entry, row: Entry) -> str:
    """Retrieval and speed of one cache in words."""
    found = f"{right(entry, row)} lines found" if "right" in row else ""
    speed = f"decoding {pace(row)} times as fast as f16 behind {entry['depth']:,} tokens" if "ratio_to_f16" in row else ""
    return f"`{row['cache']}`: {', '.join(filter(None, [found, speed]))}"


def method_block(method: str, results: dict[str, list[Entry]]) -> str:
    """What was measured of one method: its arms on every model, the best of all at the same sizes, retrieval, speed."""
    sizes = sorted({bits for entries in results.values() for entry in of_divergence(entries) for bits in entry["bits"]})
    body = []
    for name, entries in results.items():
        methods = divergences(of_divergence(entries))
        arms = [arm for arm in methods if arm.split(":")[0] == method]
        body += [[name, f"`{arm}`", *(number(methods[arm].get(bits)) for bits in sizes)] for arm in sorted(arms)]
        if arms:
            firsts = [next(iter(leaders(methods, bits)), None) for bits in sizes]
            body.append(["", "the best of all", *(f"{number(row)} `{row['method']}`" if row else "" for row in firsts)])
    asked = [
        told(entry, row)
        for entries in results.values()
        for entry in entries
        if len(entry["bits"]) == 1
        for row in entry["rows"]
        if row["method"].split(":")[0] == method and was_asked(row)
    ]
    shares = table(["model", "mean KL at", *(f"{bits:g} bits" for bits in sizes)], body)
    return "\n\n".join([shares, *asked]) + "\n"


def blocks(results: dict[str, list[Entry]]) -> dict[str, str]:
    """Every marked block: "tables", "best", "asked", and one for each method."""
    made = {
        "tables": "\n".join(model_table(name, entries) for name, entries in results.items()),
        "best": best_table(results),
        "asked": asked_table(results),
    }
    return {**made, **{page.stem: method_block(page.stem, results) for page in sorted(PAGES.glob("*.md"))}}


def rendered(text: str, made: dict[str, str]) -> str:
    """A page with its marked blocks written anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- begin {match[1]} -->\n{made[match[1]]}<!-- end -->"

    return re.sub(r"<!-- begin (\S+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Measure, if a model is named, and write the tables, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--render", action="store_true", help="only write the tables anew")
    parser.add_argument("--check", action="store_true", help="fail where a table is not that of docs/methods.json")
    args, options = parser.parse_known_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if args.model:
        entry = measure(args.model, options)
        own = results.setdefault(Path(args.model).stem, [])
        own[:] = [one for one in own if one["command"] != entry["command"]] + [entry]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    elif not (args.render or args.check):
        parser.error("name a model, or give --render or --check")
    made, stale = blocks(results), []
    for page in (PAGE, *sorted(PAGES.glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if rendered(text, made) != text:
            stale.append(page.name)
            if not args.check:
                page.write_text(rendered(text, made), encoding="utf-8")
    if args.check and stale:
        print(f"not the tables of docs/methods.json: {', '.join(stale)}: run scripts/methods.py --render", file=sys.stderr)
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
