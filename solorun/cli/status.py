"""`solorun status [DIR or ROOT ...]`: every run, read-only."""

from __future__ import annotations

import gc
import os
import sys

from solorun import __version__
from solorun.cli.places import current_settings, note, roots
from solorun.cli.render import runs_table
from solorun.process import here
from solorun.runstate import PROBLEMS
from solorun.settings import state_directory
from solorun.status import rows as rows_of
from solorun.status import wall_clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

_PLAIN = ("--json", "--exit-code")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("places", nargs="*", metavar="DIR", help="results directories, or roots to search")
    parser.add_argument("--json", action="store_true", help="for programs; the schema is frozen")
    parser.add_argument("--exit-code", action="store_true", help="exit 4 when a run needs attention")
    parser.add_argument("--all-hosts", action="store_true", help="also every host of solorun.toml, at once, over ssh")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show every run; 0, or with --exit-code 4 when one needs attention, 6 when a host does not answer."""
    if arguments.host or arguments.all_hosts:
        from solorun.cli import farstatus  # a status of this machine alone need not know ssh

        return farstatus.show(arguments, [] if arguments.host else _rows(arguments.places)[0])
    return _show(arguments.places, as_json=arguments.json, with_code=arguments.exit_code)


def run_plain(words: Sequence[str]) -> int | None:
    """The same for what is typed most, places alone or between these two flags; None for the parser to read it.

    The parser takes longer to load than the answer does.
    """
    first, last = 0, len(words)
    while first < last and words[first] in _PLAIN:
        first += 1
    while last > first and words[last - 1] in _PLAIN:
        last -= 1
    places = words[first:last]
    if any(word.startswith("-") for word in places):
        return None
    return _show(places, as_json="--json" in words, with_code="--exit-code" in words)


def _rows(named: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every run, and where it was looked for."""
    gc.disable()  # thousands of small values that all live to the end: looking through them costs a tenth
    settings = current_settings()
    now = wall_clock()
    places = roots(named, settings, tell=note)
    state = state_directory(os.environ, sys.platform)
    return rows_of(places, now, settings, state, __version__), places or list(settings.roots)


def _show(named: Sequence[str], *, as_json: bool, with_code: bool) -> int:
    rows, places = _rows(named)
    if as_json:
        import json

        told = {"schema": 1, "version": __version__, "host": here().host, "cwd": os.getcwd(), "runs": rows}
        print(json.dumps(told, indent=1))
    elif rows:
        print("\n".join(runs_table(rows)))
        if any(row["memory_bytes"] for row in rows):  # else nobody asks what the machine has left
            print(f"\nmemory of {here().host}: {_memory()}")
    else:
        print(f"no runs found in {', '.join(places)}")
    gc.freeze()  # nor need Python look through them before it ends
    return 4 if with_code and any(row["state"] in PROBLEMS for row in rows) else 0


def _memory() -> str:
    from solorun.memory import describe, read

    seen = read()
    return describe(seen) if seen is not None else "cannot be told"
