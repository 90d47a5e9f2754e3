"""`solorun check [DIR ...]`: is it safe to start? Clears locks that are proven stale, and says so."""

from __future__ import annotations

import argparse
import json

from solorun.cli.places import current_settings, note, roots
from solorun.cli.render import next_steps, typed
from solorun.preflight import Safe, check
from solorun.rundir import find_all
from solorun.status import wall_clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument(
        "directories", nargs="*", metavar="DIR", help="results directories; default: all that are known"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line per directory; 0 when all are safe, 4 otherwise."""
    settings = current_settings()
    named = roots(arguments.directories, settings, tell=note)
    if not arguments.directories:
        named = find_all(named)
    findings = check(named, wall_clock(), settings)
    safe = all(isinstance(finding, Safe) for finding in findings)
    if arguments.json:
        rows = [
            {"directory": str(f.directory), "safe": True, "cleared": f.cleared}
            if isinstance(f, Safe)
            else {**f.row, "safe": False}
            for f in findings
        ]
        print(json.dumps({"schema": 1, "safe": safe, "directories": rows}, indent=1))
        return 0 if safe else 4
    for finding in findings:
        where = typed(finding.directory)
        if isinstance(finding, Safe):
            print(f"safe      {where}" + (f"  (stale lock cleared: {finding.cleared})" if finding.cleared else ""))
        else:
            print(f"NOT SAFE  {where}  {finding.row['state']}: {finding.row['detail']}")
            print(f"          next: {next_steps(str(finding.row['state']), where)}")
    if not findings:
        print("safe      no results directory is in use")
    return 0 if safe else 4
