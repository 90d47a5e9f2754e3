"""`solorun status --host NAME` and `--all-hosts`: the runs of other hosts, drawn for this terminal."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from solorun import remote
from solorun.cli.hosts import ask_all, known_hosts
from solorun.cli.hosttable import Found, host_facts, host_rows, hosts_and_runs
from solorun.cli.onhost import beyond
from solorun.cli.places import current_settings
from solorun.errors import BadUsage
from solorun.hosts import NotReached, Reached
from solorun.process import here
from solorun.runstate import PROBLEMS
from solorun.status import wall_clock


def show(arguments: argparse.Namespace, own: Sequence[dict[str, Any]]) -> int:
    """Show the runs of one host or of all.

    Args:
        arguments: of `status`, with `host` and the words as typed.
        own: the rows of this machine, shown along with all hosts.

    Raises:
        Unreachable: the one host that was named does not answer and was never seen.
    """
    if arguments.host and arguments.all_hosts:
        raise BadUsage("--host and --all-hosts are given", "name one host, or ask all")
    settings = current_settings()
    entries = known_hosts(settings) if arguments.all_hosts else (remote.find_host(arguments.host, settings),)
    words = tuple(beyond(arguments.words, "--json", "--exit-code", "--all-hosts"))
    asks = not arguments.all_hosts and os.isatty(0) and os.isatty(2)
    found = ask_all(entries, words, settings, asks=asks)
    if not arguments.all_hosts and isinstance(found[0], NotReached) and found[0].last is None:
        raise found[0].error
    now = wall_clock()
    mine = _not_told_twice(own, found)
    rows = [*mine, *(row for one in found for row in host_rows(one, now))]
    if arguments.json:
        told = [host_facts(one, now) for one in found]
        print(json.dumps({"schema": 1, "host": here().host, "hosts": told, "runs": rows}, indent=1))
    else:
        print("\n".join(hosts_and_runs(found, mine, now)))
    return _code(arguments, found, rows)


def _code(arguments: argparse.Namespace, found: Sequence[Found], rows: Sequence[dict[str, Any]]) -> int:
    """A host that was named and is not reached is a failure; among all hosts only where somebody asks."""
    missing = next((one.error.exit_code for one in found if isinstance(one, NotReached)), 0)
    if missing and (arguments.exit_code or not arguments.all_hosts):
        return missing
    return 4 if arguments.exit_code and any(row.get("state") in PROBLEMS for row in rows) else 0


def _not_told_twice(own: Sequence[dict[str, Any]], found: Sequence[Found]) -> list[dict[str, Any]]:
    """Our own rows, without those of an entry of solorun.toml that is this very machine."""
    name = here().host
    told = {
        str(row.get("directory"))
        for one in found
        if isinstance(one, Reached) and one.report.said.get("host") == name
        for row in one.report.runs
    }
    return [{**row, "host": name, "reachable": True} for row in own if row["directory"] not in told]
