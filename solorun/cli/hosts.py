"""`solorun hosts`: the hosts of solorun.toml: do they answer, which version, how many runs, when last seen."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections import Counter
from pathlib import Path

from solorun import __version__, hosts, remote
from solorun.cli.hosttable import Found, columns, host_facts, problem, report_of
from solorun.cli.places import current_settings
from solorun.errors import BadUsage
from solorun.hosts import NotReached, Reached
from solorun.settings import HostEntry, Settings, state_directory
from solorun.status import wall_clock
from solorun.wording import ago, printable

EXAMPLE = 'describe one in solorun.toml: [hosts.studio] ssh = "ada@studio.local", directory = "~/kssm"'
_HEAD = ("HOST", "SSH", "STATE", "VERSION", "RUNS", "SEEN")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("--json", action="store_true", help="for programs; the schema is frozen")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show every host; 0, since a host that is off is no failure."""
    settings = current_settings()
    found = ask_all(settings.hosts, (), settings)
    now = wall_clock()
    if arguments.json:
        rows = [{**host_facts(one, now), "runs": _counts(one)} for one in found]
        print(json.dumps({"schema": 1, "version": __version__, "hosts": rows}, indent=1))
        return 0
    if not found:
        print(f"no hosts in solorun.toml\n  next: {EXAMPLE}")
        return 0
    head, *body = columns(_HEAD, [_cells(one, now) for one in found])
    print(head)
    for line, one in zip(body, found, strict=True):
        print(line)
        if isinstance(one, NotReached):
            print("\n".join(f"  {text.strip()}" for text in problem(one, now)))
        elif one.report.version != __version__:
            print(f"  {remote.skew(one.host, one.report.version)}: install one version on both")
    return 0


def ask_all(
    entries: tuple[HostEntry, ...], words: tuple[str, ...], settings: Settings, *, asks: bool = False
) -> list[Found]:
    """Ask hosts for their runs, at once, each within its deadline.

    Args:
        entries: the hosts.
        words: what to add to `status --json`.
        settings: in force.
        asks: whether ssh may ask the person for a password: only where there is one host.
    """
    client = remote.client(os.environ, settings)
    ask = functools.partial(remote.ask, client=client, asks=asks)
    return hosts.survey(entries, words, ask, Path(state_directory(os.environ, sys.platform)), wall_clock)


def known_hosts(settings: Settings) -> tuple[HostEntry, ...]:
    """The hosts of solorun.toml.

    Raises:
        BadUsage: there are none.
    """
    if not settings.hosts:
        raise BadUsage("no hosts in solorun.toml", EXAMPLE)
    return settings.hosts


def _counts(found: Found) -> dict[str, int]:
    report = report_of(found)
    return dict(Counter(str(row.get("state")) for row in report.runs)) if report else {}


def _cells(found: Found, now: float) -> tuple[str, ...]:
    report = report_of(found)
    runs = ", ".join(f"{number} {state}" for state, number in sorted(_counts(found).items()))
    reached = isinstance(found, Reached)
    cells = (
        found.host.name,
        found.host.ssh,
        "up" if reached else "unreachable",
        report.version if report else "-",
        (runs or "none") if reached else f"then {runs or 'none'}" if report else "-",
        "now" if reached else f"{ago(now - report.seen)} ago" if report else "never",
    )
    return tuple(printable(cell) for cell in cells)
