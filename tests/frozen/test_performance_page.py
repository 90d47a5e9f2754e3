"""The page of figures: measured parts are written anew, a person's words stay; curves say where they leave the line."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import performance
from benchmarks.curves import Curve, drawing
from benchmarks.measure import Row
from benchmarks.performance import BEGIN, END, Result, measured, renewed
from benchmarks.scaling import AXES, Point

ROW = Row("a step", "2 s", "1 s", "2.0x", ">= 3.0x", met=False)
POINTS = tuple(Point(axis, size, 100.0 + size, 300.0) for axis, sizes in AXES.items() for size in sizes)
RESULT = Result("2026-01-31", "a machine", (ROW,), POINTS)


def test_what_a_person_wrote_survives() -> None:
    page = f"before\n{BEGIN}old figures\n{END}why it is so\n"
    assert renewed(page, "new figures\n") == f"before\n{BEGIN}new figures\n{END}why it is so\n"


@pytest.mark.parametrize("page", ["", f"{BEGIN}", f"{END}{BEGIN}"])
def test_a_page_without_its_marks_is_refused_and_not_overwritten(page: str) -> None:
    with pytest.raises(ValueError, match="lacks its marks"):
        renewed(page, "figures")


def test_the_page_in_the_repository_has_its_marks() -> None:
    assert renewed(performance.DOCUMENT.read_text(), "") != ""


def test_rows_come_back_from_their_file_and_a_missed_aim_is_said(tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text(json.dumps(asdict(RESULT)))
    again = Result.read(tmp_path / "step.json")
    assert again == RESULT
    text = measured({"step": again, "scaling": again})
    assert "| a step | 2 s | 1 s | 2.0x | >= 3.0x | **missed** |" in text
    assert "- step, scaling: 2026-01-31, on a machine." in text


def test_a_benchmark_that_fails_leaves_its_older_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(BEGIN + END)
    (tmp_path / "step.json").write_text(json.dumps(asdict(RESULT)))
    for name, place in [("RESULTS", tmp_path), ("DOCUMENT", page), ("DRAWING", tmp_path / "drawing.svg")]:
        monkeypatch.setattr(performance, name, place)
    monkeypatch.setattr(performance, "run", lambda _name, _machine: None)
    monkeypatch.setattr("sys.argv", ["performance", "step"])
    assert performance.main() == 1
    assert Result.read(tmp_path / "step.json") == RESULT
    assert "a step" in page.read_text()


def test_a_straight_line_is_called_one_and_a_square_is_not() -> None:
    sizes = (128.0, 256.0, 512.0, 1024.0, 2048.0)
    straight = Curve("S", "ms", sizes, tuple(40 + size / 2 for size in sizes))
    square = Curve("S", "ms", sizes, tuple(size**2 for size in sizes))
    flat = Curve("H", "ms", sizes, (104, 100, 97, 102, 99))
    assert flat.leaves() is None, "noise is no slope"
    assert straight.line() == pytest.approx((40, 0.5))
    assert straight.leaves() is None
    assert square.leaves() is not None
    assert square.sizes[square.leaves()[0]] == 1024
    assert square.exponents() == pytest.approx((2, 2))
    assert "leaves it at 1,024" in square.told()


def test_the_drawing_is_whole_and_shows_every_point() -> None:
    curve = Curve("V", "MiB", (1.0, 2.0, 4.0, 8.0), (3.0, 4.0, 6.0, 30.0))
    picture = ET.fromstring(drawing([[curve, curve], [curve, curve]]))  # noqa: S314 - our own
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 16
