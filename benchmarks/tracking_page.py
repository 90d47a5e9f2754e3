"""docs/tracking.md from the summary of the puzzles: only what stands between its two marks is written anew."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import marked
from benchmarks.solvers import LENGTHS, SEEDS, SOLVERS

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/tracking.md"
BEGIN, END = "<!-- tracked: begin -->\n", "<!-- tracked: end -->\n"

# What was wanted: puzzle, solver, length, the least share of right answers with every seed, and whether as a stretch.
AIMS: tuple[tuple[str, str, int, float, str], ...] = (
    ("sum mod 5", "v4", 64, 0.99, "aim"),
    ("sum mod 5", "v4", 256, 0.97, "aim"),
    ("sum mod 5", "v4", 1024, 1.0, "stretch"),
    ("parity", "v4", 64, 0.99, "aim"),
    ("parity", "v4", 256, 0.97, "aim"),
    ("parity", "v4", 1024, 1.0, "stretch"),
    ("recall", "hybrid", 64, 0.99, "aim"),
    ("recall", "v4", 64, 0.95, "stretch"),
)

Outcome = Mapping[str, Any]


def write(summary: Mapping[str, Any]) -> None:
    """Put the figures into the page; raises ValueError where it lacks its marks."""
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(), tracked(summary)))


def renewed(document: str, figures: str) -> str:
    """The page with what is between the marks replaced; raises ValueError where a mark is missing."""
    return marked.renewed(document, figures, (BEGIN, END), DOCUMENT)


def tracked(summary: Mapping[str, Any]) -> str:
    """Everything that was found, as Markdown."""
    cpu_min = sum(one["cpu_s"] for one in summary["outcomes"]) / 60
    place = f"{summary['date']}, on {summary['machine']}; {cpu_min:.0f} minutes of CPU."
    return f"\n{place}\n\n{table(summary)}\n{verdicts(summary)}"


def table(summary: Mapping[str, Any]) -> str:
    """A table for each puzzle: the share of right answers at each length, mean and each seed."""
    return "\n".join(_puzzle(summary, puzzle) for puzzle in SOLVERS)


def verdicts(summary: Mapping[str, Any]) -> str:
    """Each aim, and whether every seed reached it."""
    heads = ("puzzle", "solver", "length", "every seed at least", "worst seed", "")
    rows = []
    for puzzle, name, length, least, kind in AIMS:
        found = _outcomes(summary, puzzle, name)
        worst = min((one["all"][str(length)] for one in found), default=0.0)
        met = len(found) == len(SEEDS) and worst >= least
        verdict = f"{kind} met" if met else f"**{kind} missed**"
        rows.append((puzzle, name, f"{length:,}", f"{least:.2f}", share(worst), verdict))
    return "### Aims\n\n" + _markdown(heads, rows)


def share(part: float) -> str:
    """A share to three digits, cut and not rounded: 1.000 means that nothing was wrong."""
    return f"{math.floor(part * 1000 + 1e-9) / 1000:.3f}"


def _puzzle(summary: Mapping[str, Any], puzzle: str) -> str:
    lengths = [f"{length:,}" for length in LENGTHS]
    heads = ("solver", "parameters", "coupling k", *lengths, f"last eighth of {lengths[-1]}", "CPU s")
    rows = []
    for solver in SOLVERS[puzzle]:
        found = _outcomes(summary, puzzle, solver.name)
        if found:
            cells = [_cell([one["all"][str(length)] for one in found]) for length in LENGTHS]
            late = _cell([one["late"][str(LENGTHS[-1])] for one in found])
            cpu = f"{statistics.mean(one['cpu_s'] for one in found):.0f}"
            rows.append((solver.title, f"{found[0]['parameters']:,}", _coupling(found), *cells, late, cpu))
    return f"### {puzzle[0].upper()}{puzzle[1:]}\n\n" + _markdown(heads, rows)


def _outcomes(summary: Mapping[str, Any], puzzle: str, name: str) -> list[Outcome]:
    facts = ((one, one["facts"]) for one in summary["outcomes"])
    return [one for one, of in facts if of["puzzle"] == puzzle and of["solver"]["name"] == name]


def _cell(shares: Sequence[float]) -> str:
    each = ", ".join(share(part) for part in shares)
    return f"{share(statistics.mean(shares))} ({each})"


def _coupling(found: Sequence[Outcome]) -> str:
    known = [one["coupling"] for one in found if one["coupling"]]
    return ", ".join(f"{k:.1g}" for k in known) if known else "-"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
