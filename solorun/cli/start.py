"""`solorun start DIR -- COMMAND ...`: guard any command, in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from solorun.cli.places import current_settings
from solorun.launch import plan_command
from solorun.supervisor import supervise
from solorun.wording import ago


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.usage = "solorun start DIR -- COMMAND [ARGUMENT ...]"
    parser.add_argument("directory", metavar="DIR", help="results directory; made if it is missing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Guard the command to its end; its exit status, or 128 + the signal that ended it."""
    settings = current_settings()
    plan = plan_command(tuple(arguments.command), Path.cwd(), os.environ, sys.stdout.fileno())
    ended = supervise(plan, Path(arguments.directory), settle_s=settings.settle_s, settings=settings)
    with contextlib.suppress(OSError):  # a terminal that is gone must not cost the command's status
        print(f"solorun: {ended.state} after {ago(ended.seconds)}, exit status {ended.exit_code}", file=sys.stderr)
    return ended.exit_code
