"""What a run said last: the traceback, or the lines that tell of trouble, at the end of its log."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from solorun.rundir import LOG

LONGEST = 20
"""Lines of last words that are kept."""

_TAIL = 1 << 16
_NEAR_THE_END = 60
_HEAD = re.compile(r"^(?P<prefix>.*?)Traceback \(most recent call last\):\s*$")
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:: |$)")
_TROUBLE = re.compile(
    r"error|fatal|exception|abort|killed|segmentation|panic|out of memory|cannot|failed", re.IGNORECASE
)
_OURS = re.compile(r"^(solorun: |Released lock$)")


def last_words(text: str) -> tuple[str, ...]:
    """What a log says last: the last traceback if it stands near the end, else the last lines that tell of trouble.

    Args:
        text: the end of a log, whole lines or not.

    Returns:
        At most LONGEST lines; of a longer traceback its first and its last lines.
    """
    # A progress bar overwrites its line with carriage returns: what counts is what stood there last.
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    lines = [line for line in lines if not _OURS.match(line)]
    while lines and not lines[-1].strip():
        lines.pop()
    starts = [n for n, line in enumerate(lines) if _HEAD.match(line)]
    if starts:
        block, end = _block(lines, starts[-1])
        if len(lines) - end <= _NEAR_THE_END:
            return _shortened(block)
    recent = [line for line in lines[-_NEAR_THE_END:] if line.strip()]
    return tuple(line[:300] for line in (trouble(recent) or recent)[-5:])


def trouble(lines: Sequence[str]) -> list[str]:
    """The lines that tell of trouble, by their words."""
    return [line for line in lines if _TROUBLE.search(line)]


def _block(lines: list[str], start: int) -> tuple[list[str], int]:
    """One traceback, and the index after it. Launchers of several processes put a prefix before each line."""
    head = _HEAD.match(lines[start])
    prefix = head["prefix"] if head else ""
    found = [lines[start][len(prefix) :]]
    for n in range(start + 1, len(lines)):
        if not lines[n].startswith(prefix.rstrip()):
            continue  # another process's line in between
        line = lines[n][len(prefix) :]
        found.append(line)
        if line and not line[0].isspace():
            return found, n + 1
    if len(found) == 1:  # such as a group of exceptions, which is drawn with lines of another kind
        found = lines[start:]
    return found, len(lines)


def _shortened(block: list[str]) -> tuple[str, ...]:
    if len(block) > LONGEST:
        block = [*block[:3], f"  ... {len(block) - LONGEST + 1} lines ...", *block[-(LONGEST - 4) :]]
    return tuple(line[:300] for line in block)


def error_line(words: tuple[str, ...]) -> str:
    """The error in one line, `ValueError: ...`; empty when the last words name none."""
    return words[-1].strip() if words and _HEAD.match(words[0]) and _ERROR.match(words[-1]) else ""


def read_last_words(directory: int, start: int) -> tuple[str, ...]:
    """The last words of a run in `training.log`; none where it cannot be read.

    Args:
        directory: descriptor of the results directory.
        start: where the run's part of the log begins, in bytes.
    """
    try:
        fd = os.open(LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return ()
    try:
        size = os.fstat(fd).st_size
        begin = max(start if start <= size else 0, size - _TAIL)  # a log that was rotated is shorter
        return last_words(os.pread(fd, _TAIL, begin).decode("utf-8", "replace"))
    except OSError:
        return ()
    finally:
        os.close(fd)
