"""`solorun logs DIR [-f] [-n N]`: the log of a run."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from solorun.cli.screen import unscreened
from solorun.errors import BadUsage, directory_problem
from solorun.logs import follow, for_terminal, last_lines
from solorun.rundir import RunDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on across rotation and new runs; Ctrl-C ends it"
    )
    parser.add_argument(
        "-n", "--lines", type=int, default=10, metavar="N", help="last lines to show first (default 10)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the end of the log, and with -f what is appended."""
    if arguments.lines < 0:
        raise BadUsage("-n counts lines, 0 or more", "write, for example, -n 20")
    directory = Path(arguments.directory)
    if not directory.is_dir():
        number = errno.ENOTDIR if directory.exists() else errno.ENOENT
        raise directory_problem(OSError(number, ""), "find the directory", directory)
    path = RunDir(directory).log
    clean, out = (for_terminal if sys.stdout.isatty() else str), unscreened(sys.stdout)
    lines: list[str] = []
    end = 0  # where the tail ends, the following begins: no line falls between the two
    try:
        end = path.stat().st_size
        lines = list(last_lines(path, arguments.lines, end))
    except FileNotFoundError:
        if not arguments.follow:
            print(f"no log in {directory} yet", file=sys.stderr)
            return 1
    except OSError as error:
        raise directory_problem(error, "read", path) from None
    for line in lines:
        print(clean(line), file=out)
    out.flush()  # into a pipe too: what stands there is seen before the waiting begins
    if arguments.follow:
        try:
            for text in follow(path, until=lambda: False, start=end):
                out.write(clean(text))
                out.flush()
        except KeyboardInterrupt:
            return 0
    return 0
