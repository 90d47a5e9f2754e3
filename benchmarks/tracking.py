"""Who can carry a state: running sums and recall, learned at length 64, tested at 64, 256 and 1,024.

    python3 -m benchmarks.tracking [--jobs N]     half an hour of CPU; goes on where it was left
    python3 -m benchmarks.tracking --page-only    trains nothing, writes docs/tracking.md from what there is

Each training is a process of its own (`benchmarks.solving`) and leaves a file in `results/tracking/jobs`; what is there
and was made with the present settings is not made again. A model's code is no part of its file: after changing it
delete the files. The summary is kept in benchmarks/results/tracking.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import solorun
from benchmarks.machine import described
from benchmarks.solvers import JOBS, Job
from benchmarks.tracking_page import table, write
from benchmarks.workers import Crew, Task

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = ROOT / "benchmarks/results/tracking.json"


def outcome(job: Job, folder: Path) -> dict[str, Any] | None:
    """What came of a job; None where it has not been done, or was done with other settings."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{job.name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("facts") == job.facts() else None


def wanted(folder: Path, jobs: list[Job]) -> Iterator[Task]:
    """The jobs that are not done."""
    for job in jobs:
        if outcome(job, folder) is None:
            into = folder / f"{job.name}.json"
            yield Task(job.name, ("benchmarks.solving", job.name, "--into", str(into)))


def gathered(folder: Path) -> dict[str, Any]:
    """All that is done, with the day and the machine."""
    found = [outcome(job, folder) for job in JOBS]
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"date": today, "machine": described(), "outcomes": [one for one in found if one is not None]}


def keep(summary: dict[str, Any]) -> None:
    """Write the summary, a line for each outcome."""
    *facts, (name, outcomes) = summary.items()
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in facts]
    rows = ",\n".join(json.dumps(outcome) for outcome in outcomes)
    SUMMARY.write_text("\n".join(["{", *lines, f"{json.dumps(name)}: [", rows, "]", "}"]) + "\n")


def solve(results: Path, count: int) -> int:
    """Do all jobs, so many side by side, held against a second start; 1 where one failed."""
    with solorun.hold(results) as run:
        folder = results / "jobs"
        folder.mkdir(exist_ok=True)

        def say(line: str) -> None:
            print(line, flush=True)
            run.log(line)

        crew = Crew(lambda: wanted(folder, JOBS), count, folder, lambda: run.should_stop, run.beat, say)
        say(f"{len(list(wanted(folder, JOBS)))} of {len(JOBS)} jobs to do")
        failed = crew.work()
        keep(gathered(folder))
    return 1 if failed else 0


def main() -> int:
    """See above; the exit status."""
    parser = argparse.ArgumentParser(description="Running sums and recall, and docs/tracking.md.")
    parser.add_argument("--results", type=Path, default=ROOT / "results/tracking", help="where finished jobs are kept")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--page-only", action="store_true", help="train nothing, write the page")
    said = parser.parse_args()
    status = 0 if said.page_only else solve(said.results, said.jobs)
    summary = json.loads(SUMMARY.read_text())
    write(summary)
    print(table(summary))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except solorun.SolorunError as error:
        sys.exit(solorun.explain(error))
