"""`solorun status [DIR or ROOT ...]`: every run, read-only."""

from __future__ import annotations

import argparse
import gc
import json
import os
from typing import Any

from solorun import __version__
from solorun.cli.places import current_settings, note, roots
from solorun.cli.render import runs_table
from solorun.process import here
from solorun.runstate import PROBLEMS
from solorun.status import as_row, survey, wall_clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("places", nargs="*", metavar="DIR", help="results directories, or roots to search")
    parser.add_argument("--json", action="store_true", help="for programs; the schema is frozen")
    parser.add_argument("--exit-code", action="store_true", help="exit 4 when a run needs attention")
    parser.add_argument("--all-hosts", action="store_true", help="also every host of solorun.toml, at once, over ssh")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show every run; 0, or with --exit-code 4 when one needs attention, 6 when a host does not answer."""
    if arguments.host:
        return _far(arguments, [])
    gc.disable()  # thousands of small values that all live to the end: looking through them costs a tenth
    settings = current_settings()
    now = wall_clock()
    places = roots(arguments.places, settings, tell=note)
    found = survey(places, now, settings)
    rows = [as_row(directory, state, evidence, now) for directory, state, evidence in found]
    if arguments.all_hosts:
        return _far(arguments, rows)
    if arguments.json:
        told = {"schema": 1, "version": __version__, "host": here().host, "cwd": os.getcwd(), "runs": rows}
        print(json.dumps(told, indent=1))
    elif rows:
        print("\n".join(runs_table(rows)))
        if any(row["memory_bytes"] for row in rows):  # else nobody asks what the machine has left
            print(f"\nmemory of {here().host}: {_memory()}")
    else:
        looked = ", ".join(str(place) for place in (places or settings.roots))
        print(f"no runs found in {looked}")
    return 4 if arguments.exit_code and any(row["state"] in PROBLEMS for row in rows) else 0


def _far(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    from solorun.cli import farstatus  # a status of this machine alone need not know ssh

    return farstatus.show(arguments, rows)


def _memory() -> str:
    from solorun.memory import describe, read

    seen = read()
    return describe(seen) if seen is not None else "cannot be told"
