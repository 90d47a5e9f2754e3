"""What can go wrong for a user: each class knows its exit code, each error its next step.

SolorunError            1  failed
├── BadUsage            2  wrong flag, missing argument
├── Held                3  another run holds the directory
├── NotSafe             4  a start that would harm another run, or could not end well
├── StillRunning        5  not ended within the grace
├── Unreachable         6  a host does not answer
├── Refused             7  foreign or unknown owner, other user
└── DirectoryProblem    1  missing, not a directory, no permission, disk full, moved away
"""

from __future__ import annotations

import errno
import os


class SolorunError(Exception):
    """An error a person can act on.

    Args:
        what: what is wrong and where, one line.
        next_step: what to do next, a sentence or a command; empty when there is nothing to do.
        evidence: what was seen, one fact per line.
    """

    exit_code = 1

    def __init__(self, what: str, next_step: str = "", evidence: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step
        self.evidence = evidence


class BadUsage(SolorunError):
    """The command line or the settings make no sense."""

    exit_code = 2


class Held(SolorunError):
    """Another live run holds the results directory."""

    exit_code = 3


class NotSafe(SolorunError):
    """A start would harm another run, such as by sharing its accelerator, or could not end well."""

    exit_code = 4


class StillRunning(SolorunError):
    """A run did not end within the grace it was given."""

    exit_code = 5


class Unreachable(SolorunError):
    """A host does not answer. Nothing is concluded from that about its runs."""

    exit_code = 6


class Refused(SolorunError):
    """The owner is on another host, in another PID namespace, another user, or cannot be told."""

    exit_code = 7


class DirectoryProblem(SolorunError):
    """The results directory, or a file in it, cannot be used."""


_ADVICE = {
    errno.ENOSPC: "free some room on that disk, then start again",
    errno.EDQUOT: "your disk quota is used up: free some room, then start again",
    errno.EACCES: "ask its owner for permission, or choose another results directory",
    errno.EPERM: "ask its owner for permission, or choose another results directory",
    errno.EROFS: "the file system is read-only: choose another results directory",
    errno.ENOENT: "check the path; it may have been moved or deleted",
    errno.ENOTDIR: "name a directory, not a file",
    errno.ELOOP: "the path goes in circles through symbolic links: correct them",
    errno.EAGAIN: "too many processes or threads: end some, or raise the limit with `ulimit -u`",
    errno.ENFILE: "too many open files on this machine: end what has opened them, then try again",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
    errno.EFBIG: "raise the file size limit (`ulimit -f`), or choose another disk",
    errno.EIO: "the disk reports a fault: look at the system log, and choose another disk",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EISDIR: "a directory stands in the place of a file: move it away",
    errno.ENXIO: "look at it with ls -l, and move it away",
}
_PLAIN = {errno.ENXIO: "it is no plain file"}
"""Said instead of the system's words, which tell of no device where there is a FIFO or a socket."""


def advice(error: OSError) -> str:
    """The next step after the operating system's refusal."""
    return _ADVICE.get(error.errno or 0, "look at the disk and the directory, then start again")


def directory_problem(error: OSError, action: str, path: str | os.PathLike[str]) -> DirectoryProblem:
    """The operating system's refusal as one line: action, path, reason, next step."""
    reason = _PLAIN.get(error.errno) or os.strerror(error.errno) if error.errno else str(error)
    place = f"{os.fspath(path)!r}: {_named(error, path)}"
    return DirectoryProblem(f"cannot {action} {place}{reason}", advice(error))


def _named(error: OSError, path: str | os.PathLike[str]) -> str:
    """The file in that directory that the system refused; empty where it is the directory, or a name made up by us."""
    for name in (error.filename2, error.filename):
        if isinstance(name, str) and "/" not in name and not name.startswith(".") and name != os.path.basename(path):
            return f"{name}: "
    return ""


def system_problem(error: OSError) -> SolorunError:
    """What the operating system refused where no directory is at stake, as one line and the next step."""
    gone = isinstance(error, FileNotFoundError) and not error.filename  # such as a working directory that was deleted
    where = error.filename or ("the working directory" if gone else "the system")
    return SolorunError(f"{where}: {error.strerror or error}", advice(error))


def explain(error: SolorunError) -> str:
    """An error as a person reads it: what, what was seen, what to do next."""
    lines = [error.what, *(f"  {fact}" for fact in error.evidence)]
    if error.next_step:
        lines.append(f"  next: {error.next_step}")
    return "\n".join(lines)
