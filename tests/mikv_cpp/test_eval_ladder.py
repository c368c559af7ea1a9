"""The ladder: which rows are Pareto-optimal, its table and its pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.config import PRESETS
from mikv_cpp.errors import MikvError
from mikv_cpp.eval import ladder, plot
from mikv_cpp.eval.__main__ import main

ROWS = [
    ("f16", 16.0, 0.0),
    ("q8_0", 8.5, 0.004),
    ("q5_0", 5.5, 0.015),
    ("q4_0", 4.5, 0.05),
    ("mikv", 3.7, 0.016),
    ("k4v3", 4.45, 0.008),
]


def rows(points=ROWS):
    return ladder.ladder([{"cache": name, "bits_per_value": bits, "mean_kl": kl} for name, bits, kl in points])


def test_rows_are_sorted_and_what_nothing_beats_is_marked():
    assert [(row["cache"], row["pareto"]) for row in rows()] == [
        ("mikv", True),
        ("k4v3", True),
        ("q4_0", False),
        ("q5_0", False),
        ("q8_0", True),
        ("f16", True),
    ]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_beats_all_the_others_and_none_of_itself(points):
    optimal = ladder.pareto(points)
    front = [point for point, one in zip(points, optimal) if one]
    assert front
    for point, one in zip(points, optimal):
        beaten = any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in front)
        assert beaten != one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


COMMON = ["-c", "128", "--chunks", "1", "--threads", "1"]


def test_command_line(model, capsys):
    assert main(["ladder", "--model", model, *COMMON, "--kv", "q4_0,f16,q8_0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["cache"] for row in result["rows"]] == ["q4_0", "q8_0", "f16"]
    assert all(row["pareto"] for row in result["rows"])
    assert result["plots"] == []
    assert main(["ladder", model, *COMMON, "--kv", "q4_0,q8_0"]) == 0
    assert "\nq4_0 *" in capsys.readouterr().out


def test_without_a_list_it_climbs_all_types_and_presets(model, capsys):
    assert main(["ladder", model, *COMMON, "--json"]) == 0
    found = [row["cache"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert sorted(found) == sorted([*ladder.OWN_TYPES, *PRESETS])


def test_pictures(model, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="skipped: no matplotlib")
    png, svg = tmp_path / "ladder.png", tmp_path / "ladder.svg"
    names = "f16,q8_0,q4_0,q5_0"
    assert main(["ladder", model, *COMMON, "--kv", names, "--plot", str(png), "--plot", str(svg)]) == 0
    assert f"drawn: {svg}" in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")
    texts = {"".join(node.itertext()).strip() for node in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314
    assert {"q8_0", "q4_0", "q5_0", "Pareto front"} <= texts
    assert "f16" not in texts, "no divergence has no place on a log axis"


def test_the_same_rows_give_the_same_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="skipped: no matplotlib")
    paths = [str(tmp_path / "one.svg"), str(tmp_path / "two.svg")]
    for path in paths:
        plot.draw(rows(), "test", [path])
    one, two = (Path(path).read_bytes() for path in paths)
    assert one == two
    plot.draw(rows([("f16", 16.0, 0.0)]), "nothing but f16", [str(tmp_path / "empty.png")])
    with pytest.raises(MikvError, match="cannot write the plot"):
        plot.draw(rows(), "test", [str(tmp_path / "missing" / "ladder.png")])


def test_matplotlib_is_imported_only_when_it_is_asked_for(python, model):
    code = f"import sys; from mikv_cpp.eval.__main__ import main; main({['ladder', model, *COMMON, '--kv', 'q8_0']!r}); "
    code += "sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [("ladder.pdf", ["'ladder.pdf'", ".svg"]), ("/nowhere/ladder.png", ["/nowhere", "does not exist"])],
)
def test_a_picture_that_cannot_be_drawn_is_refused_at_once(capsys, path, words):
    assert main(["ladder", "missing.gguf", "--plot", path]) == 2
    printed = capsys.readouterr().err
    assert all(word in printed for word in words)


def test_without_matplotlib_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["ladder", "missing.gguf", "--plot", "ladder.png"]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
