"""The `solorun` command: reads the command line, calls the verb, turns errors into words and exit codes."""

from __future__ import annotations

import os
import sys

from solorun.cli.screen import put_up
from solorun.errors import BadUsage, SolorunError, explain, system_problem
from solorun.truth import open_closed_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_VERBS = {
    "check": "is it safe to start here? clears locks that are proven stale",
    "start": "guard a command: the only run in its results directory",
    "attach": "live output of a run; Ctrl-C asks whether to leave it or to stop it",
    "status": "every run: state, step, rate, time left",
    "history": "every run ever: when, how long, how it ended",
    "logs": "the log of a run; -f follows it",
    "stop": "end a run gracefully, and prove that it ended",
    "recover": "a stale lock, a hung run, a fight, orphans: names it, ends it, cleans up",
    "notify": "send a test notice to everybody that solorun.toml names",
    "hosts": "the hosts of solorun.toml: do they answer, and what runs there",
}
_FORWARDED = "SOLORUN_FORWARDED"  # spelled again: `forwarded` is imported only where it is set
_ON_HOSTS = """
With --host NAME a verb runs on that host, over ssh: a name of solorun.toml or any ssh destination. A run started there
in the foreground is asked to stop, with checkpoint, when the connection ends; --background outlives it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    _open_closed_streams()
    streams = sys.stdout, sys.stderr
    put_up()
    try:
        return _answered(argv)
    finally:
        sys.stdout, sys.stderr = streams


def _answered(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] | None = None
    at = words.index("--") if "--" in words else len(words)
    if "start" in words[:at] and at < len(words):  # for the other verbs `--` says that names follow, as everywhere
        words, command = words[:at], words[at + 1 :]
    try:
        code = _run(words, command)
        sys.stdout.flush()
    except SolorunError as error:
        print(f"solorun: {explain(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left (`solorun status | head`); a second complaint at exit would only confuse.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        print(f"solorun: {explain(system_problem(error))}", file=sys.stderr)
        return 1
    return code


def _run(words: list[str], command: list[str] | None) -> int:
    if _FORWARDED in os.environ:
        from solorun.forwarded import heed_the_connection

        heed_the_connection(os.environ)
    host: str | None = None
    if any(word.startswith("--host") for word in words):
        from solorun.cli import onhost

        host, words = onhost.take(words)
    if "" in words:  # `solorun start "$RUN"` without RUN: it would be taken for the working directory
        raise BadUsage("an empty name was typed", "is a shell variable empty? write . for the working directory")
    if host is not None:
        from solorun.cli import onhost

        if onhost.is_forwarded(words):
            return onhost.run(host, words, command)
    if words[:1] == ["status"] and host is None:
        from solorun.cli import status

        answered = status.run_plain(words[1:])
        if answered is not None:
            return answered
    parser = _parser(words)
    arguments, strange = parser.parse_known_args(words)
    if strange and words[0] == "start" and not strange[0].startswith("-"):
        from solorun.wording import command_line, shell_word

        raise BadUsage(
            f"the command of a start follows `--`: {command_line(tuple(strange))}",
            f"solorun start {shell_word(arguments.directory)} -- {command_line(tuple(strange))}",
        )
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    arguments.command = command or []
    if getattr(arguments, "host", None):  # as `--hos NAME`: passed over, it would act on this machine
        raise BadUsage("--host must be written out", f"write --host {arguments.host}")
    arguments.host, arguments.words = host, words
    code: int = arguments.run(arguments)
    return code


def _open_closed_streams() -> None:
    """What the verbs print to streams that were closed (`solorun ... >&-`) goes to /dev/null."""
    open_closed_streams()
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - open to the end, as every stream is
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    import argparse
    import importlib

    from solorun import __version__

    parser = argparse.ArgumentParser(
        prog="solorun", description="One training run at a time per results directory.", epilog=_ON_HOSTS
    )
    parser.add_argument("--version", action="version", version=f"solorun {__version__}")
    verbs = parser.add_subparsers(prog="solorun", metavar="COMMAND", required=True)
    for name, words_of_help in _VERBS.items():
        verb = verbs.add_parser(
            name, help=words_of_help, description=words_of_help[0].upper() + words_of_help[1:] + "."
        )
        # Only the verb that was typed is imported: a refusal must come at once.
        if name in words:
            importlib.import_module(f"solorun.cli.{name}").add_arguments(verb)
            if name != "hosts":  # taken out before; here only for `--help`
                verb.add_argument("--host", metavar="NAME", help="run this on another host, over ssh")
                if name == "start":
                    verb.epilog = f"{verb.epilog or ''} {_ON_HOSTS}"
    return parser
