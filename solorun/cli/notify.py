"""`solorun notify`: send a test notice to everybody that `solorun.toml` names."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from solorun import notify, process
from solorun.cli.places import current_settings
from solorun.errors import BadUsage
from solorun.notice import Notice, called
from solorun.settingsfile import FILE
from solorun.status import wall_clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Send a test to every entry and say what became of each; 0 when all were sent, else 1."""
    entries = current_settings().notify
    if not entries:
        raise BadUsage(f"{FILE} names nobody to tell", "add [[notify]] with command, webhook or apprise")
    test = Notice(
        occasion="test",
        directory=str(Path.cwd()),
        run_id="",
        host=process.here().host,
        user=process.user_name(os.getuid()),
        time=wall_clock(),
        text="a test of `solorun notify`; nothing happened",
        facts={},
    )
    outcomes = notify.deliver([test], entries, os.environ)
    width = max(len(called(one.entry)) for one in outcomes)
    for one in outcomes:
        print(f"{called(one.entry):{width}}  {one.problem or 'sent'}")
    return 1 if any(one.problem for one in outcomes) else 0
