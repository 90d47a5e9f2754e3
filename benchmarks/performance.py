"""Runs the benchmarks and writes their figures into docs/performance.md.

    python3 -m benchmarks.performance [NAME ...]      all, or only those named; the others' figures stay
    python3 -m benchmarks.performance --write         runs nothing, writes the document from the figures there are

Figures are kept in benchmarks/results/NAME.json with their date and machine. In the document only what stands between
the two marks is written anew: the prose around it is a person's.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import marked
from benchmarks.curves import drawing
from benchmarks.machine import described
from benchmarks.measure import Row
from benchmarks.scaling import AXES, MIDDLE, Point, curves

NAMES = ("step", "readout", "scan", "checkpoint", "tokenizing", "heartbeat", "status", "lock", "hammer", "scaling")
ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCUMENT, DRAWING = ROOT / "benchmarks/results", ROOT / "docs/performance.md", ROOT / "docs/scaling.svg"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found: on which day and machine, its rows, and its points where it draws curves."""

    date: str
    machine: str
    rows: tuple[Row, ...]
    points: tuple[Point, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Result:
        facts = json.loads(path.read_text())
        rows, points = (Row(**row) for row in facts["rows"]), (Point(**point) for point in facts["points"])
        return cls(facts["date"], facts["machine"], tuple(rows), tuple(points))


def run(name: str, machine: str) -> Result | None:
    """Run a benchmark, its output shown; None where it failed before it told of any."""
    with tempfile.TemporaryDirectory() as place:
        rows, points = Path(place, "rows"), Path(place, "points")
        extra = ["--points", str(points)] if name == "scaling" else []
        command = [sys.executable, "-m", f"benchmarks.{name}", "--rows", str(rows), *extra]
        # Not by its status: the hammer's tells of a missed aim, and telling is what a benchmark does last.
        subprocess.run(command, cwd=ROOT, check=False)
        if not (rows.exists() or points.exists()):
            return None
        found = [Row(**json.loads(line)) for line in rows.read_text().splitlines()] if rows.exists() else []
        drawn = [Point(**point) for point in json.loads(points.read_text())] if points.exists() else []
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return Result(today, machine, tuple(found), tuple(drawn))


def renewed(document: str, measured: str) -> str:
    """The document with what is between the marks replaced; raises ValueError where a mark is missing."""
    return marked.renewed(document, measured, (BEGIN, END), DOCUMENT)


def measured(results: Mapping[str, Result]) -> str:
    """All figures as Markdown."""
    return f"\n{_machines(results)}\n{table(results)}\n{_scaling(results)}"


def table(results: Mapping[str, Result]) -> str:
    """The rows that have an aim."""
    lines = ["| what | plain | ours | ratio | aim | |", "|---|---|---|---|---|---|"]
    for result in results.values():
        for row in result.rows:
            verdict = "met" if row.met else "**missed**"
            cells = (row.what, row.plain, row.ours, row.ratio, row.aim, verdict)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _machines(results: Mapping[str, Result]) -> str:
    """Each machine and day, with what was measured there and then."""
    places: dict[str, list[str]] = {}
    for name, result in results.items():
        places.setdefault(f"{result.date}, on {result.machine}", []).append(name)
    return "".join(f"- {', '.join(names)}: {place}.\n" for place, names in places.items())


def _scaling(results: Mapping[str, Result]) -> str:
    points = list(results["scaling"].points) if "scaling" in results else []
    if not points:
        return ""
    shape = ", ".join(f"{name} {size:,}" for name, size in MIDDLE.items())
    lines = [
        "## Scaling\n",
        f"Around {shape}; one size varied at a time. The straight line is cost = a + b * size through all smaller",
        "sizes, dashed; exponents are slopes on logarithmic paper.\n",
        "![time and memory of a step](scaling.svg)\n",
    ]
    for axis in AXES:
        its = [point for point in points if point.axis == axis]
        lines += [
            f"| {axis} | " + " | ".join(f"{point.size:,}" for point in its) + " |",
            "|---" * (1 + len(its)) + "|",
            "| ms a step | " + " | ".join(f"{point.ms:,.0f}" for point in its) + " |",
            "| MiB at the peak | " + " | ".join(f"{point.mib:,.0f}" for point in its) + " |",
            "",
            *(f"- {curve.told()}" for curve in curves(points, axis)),
            "",
        ]
    return "\n".join(lines)


def write(results: Mapping[str, Result]) -> None:
    """Put the figures into the document, and draw the curves."""
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(), measured(results)))
    points = list(results["scaling"].points) if "scaling" in results else []
    if points:
        pairs = [curves(points, axis) for axis in AXES]
        DRAWING.write_text(drawing([[pair[row] for pair in pairs] for row in range(2)]))


def main() -> int:
    """Run, keep, write, print; 1 where a benchmark failed."""
    parser = argparse.ArgumentParser(description="Run the benchmarks, and write docs/performance.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--write", action="store_true", help="run nothing, write the document again")
    wanted = parser.parse_args()
    if unknown := set(wanted.names) - set(NAMES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there is {', '.join(NAMES)}")
    RESULTS.mkdir(exist_ok=True)
    machine, failed = described(), []
    for name in () if wanted.write else wanted.names or NAMES:
        began = time.monotonic()
        print(f"== {name}", flush=True)
        result = run(name, machine)
        if result is None:
            failed.append(name)
            continue
        (RESULTS / f"{name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    kept = {name: Result.read(RESULTS / f"{name}.json") for name in NAMES if (RESULTS / f"{name}.json").exists()}
    write(kept)
    print(table(kept))
    if failed:
        print(f"failed, their older figures stay: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
