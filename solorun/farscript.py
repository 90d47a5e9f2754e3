"""What a host's shell is given to run: scripts for sh, in a line that any login shell takes. All pure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from solorun.forwarded import VARIABLE
from solorun.settings import HostEntry

NO_DIRECTORY, NO_SOLORUN = 97, 98
"""Exit statuses of a question to a host; verbs are never run under them."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _./:=,@+-;|&()<>~")
_HOME = re.compile(r"(~[A-Za-z0-9._-]*)(/.*)?", re.DOTALL)


def verb_script(host: HostEntry, words: Sequence[str], *, terminal: bool) -> str:
    """The far side's script for one verb, for sh."""
    mark = "" if terminal else f"env {VARIABLE}=1 "
    return f"{_enter(host)} || exit 127; exec {mark}{_solorun(host)} {shlex.join(words)}"


def question_script(host: HostEntry, words: Sequence[str]) -> str:
    """The far side's script for a question: the version on a line of its own, then what the verb prints."""
    asked = f"; exec {_solorun(host)} {shlex.join(words)}" if words else ""
    return (
        f"{_enter(host)} || exit {NO_DIRECTORY}; "
        f'version=$({_solorun(host)} --version) || exit {NO_SOLORUN}; echo "$version"{asked}'
    )


def login_line(script: str) -> str:
    """A line that any login shell (sh, bash, zsh, fish, csh) takes as: run this script with sh.

    The shells agree on letters and little else: in single quotes csh still sees `!` and newlines, fish backslashes.
    So everything else travels as octal numbers, which sh itself turns back. This is the only place that quotes for it.
    """
    coded = "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in os.fsencode(script))
    return f'exec sh -c \'eval "$(printf %b "{coded}")"\''


def _enter(host: HostEntry) -> str:
    return f"cd {_path(host.directory)} 2>/dev/null" if host.directory else ":"


def _solorun(host: HostEntry) -> str:
    program, *rest = host.command
    return " ".join([_path(program) if program.startswith("~") else shlex.quote(program), *map(shlex.quote, rest)])


def _path(path: str) -> str:
    """A path for sh: `~` is the home over there; a leading dash is no option, and CDPATH leads nowhere else."""
    if match := _HOME.fullmatch(path):
        return match[1] + (f"/{shlex.quote(match[2][1:])}" if match[2] and len(match[2]) > 1 else "")
    return shlex.quote(path if path.startswith("/") else f"./{path}")
