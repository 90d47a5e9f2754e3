"""docs/models.md is made from the figures that are kept, and no verdict is louder than its seeds."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.contestants import SEEDS
from benchmarks.models_drawings import drawings
from benchmarks.models_page import BEGIN, DOCS, DOCUMENT, END, compared, renewed, verdict
from benchmarks.plots import ticks
from benchmarks.summary import SUMMARY, Run, Standing, Summary

KEPT = Summary.read(SUMMARY)


def standing(name: str, kind: str, steps: int, losses: tuple[float, ...], *, layers: int) -> Standing:
    shown = [0.5] * layers
    runs = tuple(
        Run(seed, 0.05 * steps, loss, loss - 0.03, loss - 0.04, tuple(
            {"step": step, "tokens": step * 768, "cpu_s": 0.05 * step, "train": 2.0, "validation": loss + 100 / step,
             "order_parameter": shown, "coupling": shown} for step in (steps // 2, steps)))
        for seed, loss in zip(SEEDS, losses, strict=True)
    )  # fmt: skip
    return Standing(name, name, kind, steps, 12, 64, 800_000, ((3e-3, losses[0]), (6e-3, None)), 3e-3, runs)


MADE = replace(
    KEPT,
    standings=(
        standing("gpt", "main", 2_000, (1.76, 1.77, 1.78), layers=0),
        standing("v4", "main", 2_000, (1.62, 1.63, 1.64), layers=2),
        standing("v4-uncoupled", "main", 2_000, (1.65, 1.67, 1.66), layers=2),
        standing("v4-800-steps", "short", 800, (1.75, 1.76, 1.74), layers=2),
    ),
    speeds={"v4": {"ratio": 1.25}, "v4-uncoupled": {"ratio": 1.3}},
)


def test_the_page_in_the_repository_is_what_the_kept_figures_make() -> None:
    page = DOCUMENT.read_text()
    assert renewed(page, compared(KEPT)) == page
    for name, picture in drawings(KEPT).items():
        assert (DOCS / name).read_text() == picture


def test_what_a_person_wrote_survives_and_a_page_without_its_marks_is_refused() -> None:
    assert renewed(f"before\n{BEGIN}old\n{END}after\n", "new\n") == f"before\n{BEGIN}new\n{END}after\n"
    with pytest.raises(ValueError, match="lacks its marks"):
        renewed(BEGIN, "new\n")


def test_the_kept_figures_come_back_from_their_file(tmp_path: Path) -> None:
    MADE.write(tmp_path / "models.json")
    assert Summary.read(tmp_path / "models.json") == MADE


def test_the_page_tells_means_seeds_gains_and_the_time_to_the_gpts_loss() -> None:
    page = compared(MADE)
    assert "| v4 | 800,000 | 0.003 | 1.630 | 1.620, 1.630, 1.640 | 1.600 | 1.590 | 1.25 | 100 |" in page
    assert "| coupling | 64 | +0.030 | +0.030, +0.040, +0.020 | helps, in every seed |" in page
    assert "**800 steps, 40 CPU s, 40%**" in page
    assert "| 5 | kneser-ney | 1.561 | 194,505 |" in page
    assert "| v4 | **1.620** | broke |" in page


@pytest.mark.parametrize(
    ("gains", "told"),
    [((0.03, 0.02, 0.04), "helps"), ((-0.03, -0.02, -0.04), "costs"), ((0.03, -0.01, 0.02), "nothing shown")],
)
def test_a_part_is_worth_something_where_all_seeds_agree(gains: tuple[float, ...], told: str) -> None:
    assert told in verdict(gains)


def test_the_drawings_are_whole_and_show_every_model_and_layer() -> None:
    made = drawings(MADE)
    shapes = {name: ET.fromstring(picture) for name, picture in made.items()}  # noqa: S314 - our own
    lines = {name: len(list(shape.iter("{http://www.w3.org/2000/svg}polyline"))) for name, shape in shapes.items()}
    assert lines == {"models-loss.svg": 2 * 3, "models-oscillators.svg": 2 * 3}
    assert ticks(0, 2_000) == [0, 500, 1_000, 1_500, 2_000]
    assert ticks(1.5, 2.6)[0] == 1.6
