"""All hosts at once, each within its deadline, and what was last seen of those that do not answer.

Unreachable is never dead: what a host said last is kept, and shown with its age.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from solorun.errors import SolorunError, Unreachable
from solorun.frozen import dataclass
from solorun.readjson import is_moment, is_whole
from solorun.remote import Answer, skew
from solorun.settings import HostEntry
from solorun.wording import printable

SCHEMA = 1
_PLACE = "hosts"
_AT_ONCE = 32
_LARGEST = 1 << 26
_NUMBERS = {
    "pid", "since", "step", "total", "rate", "eta_s", "log_age_s", "step_age_s", "memory_bytes", "checkpoint",
    "checkpoint_age_s",
}  # fmt: skip
"""Keys of a row that hold a number or nothing."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `solorun status --json` said on a host.

    Args:
        seen: when it said so, seconds since the epoch by this machine's clock.
        version: of solorun there.
        code: exit status there.
        said: the whole object, schema 1.
    """

    seen: float
    version: str
    code: int
    said: dict[str, Any]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Its rows, without numbers that are none and waiting starts that are none: they would break the table."""
        return [_readable(row) for row in self.said["runs"] if isinstance(row, dict)]


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    told = {key: None if key in _NUMBERS and not _is_number(value) else value for key, value in row.items()}
    if "waiting" in row:
        queue = row["waiting"] if isinstance(row["waiting"], list) else []
        told["waiting"] = [waiter for waiter in queue if _is_waiter(waiter)]
    return told


def _is_number(value: Any) -> bool:
    return is_moment(value) or is_whole(value)


def _is_waiter(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("user"), str):
        return False
    return is_whole(value.get("pid")) and is_moment(value.get("for_s"))


@dataclass(frozen=True, slots=True)
class Reached:
    """A host that answered."""

    host: HostEntry
    report: Report


@dataclass(frozen=True, slots=True)
class NotReached:
    """A host that did not answer, or not in words that this version knows. `last` is what it said the last time."""

    host: HostEntry
    error: SolorunError
    last: Report | None


Ask = Callable[[HostEntry, Sequence[str]], Answer]


def survey(
    hosts: Sequence[HostEntry], words: Sequence[str], ask: Ask, state: Path, clock: Callable[[], float]
) -> list[Reached | NotReached]:
    """Ask all hosts for their runs, at once; in the order given.

    Args:
        hosts: whom to ask.
        words: what to add to `status --json`; the answer to a question about some directories is not kept.
        ask: asks one host, within its deadline.
        state: the user's state directory.
        clock: seconds since the epoch.
    """

    def one(host: HostEntry) -> Reached | NotReached:
        try:
            report = read_report(host, ask(host, ("status", "--json", *words)), clock())
        except SolorunError as error:
            return NotReached(host, error, recall(state, host))
        if not words:
            remember(state, host, report)
        return Reached(host, report)

    if not hosts:
        return []
    with ThreadPoolExecutor(min(len(hosts), _AT_ONCE)) as pool:
        return list(pool.map(one, hosts))


def read_report(host: HostEntry, answer: Answer, now: float) -> Report:
    """The report in an answer.

    Raises:
        Unreachable: it is of another schema, or none.
    """
    try:
        said = json.loads(answer.out)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or "schema" not in said:
        line = answer.err.strip().splitlines()[-1:] or ["it printed no report"]
        raise Unreachable(
            f"{skew(host, answer.version)}: its status failed: {printable(line[0])}",
            "install one version on both, and correct its solorun.toml",
        )
    if said["schema"] != SCHEMA or not isinstance(said.get("runs"), list):
        raise Unreachable(
            f"{skew(host, answer.version)}: its status has schema {said['schema']!r}, this one reads {SCHEMA}",
            "install one version on both",
        )
    return Report(now, answer.version, answer.code, said)


def remember(state: Path, host: HostEntry, report: Report) -> None:
    """Keep what a host said, for the time when it does not answer. A full disk must not spoil the answer."""
    kept = {
        "schema": SCHEMA, "ssh": host.ssh, "directory": host.directory, "seen": report.seen, "version": report.version,
        "said": report.said,
    }  # fmt: skip
    with contextlib.suppress(OSError):
        path = _file(state, host)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, private = tempfile.mkstemp(prefix=".", dir=path.parent)  # 0600
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            os.replace(private, path)
        except OSError:
            os.unlink(private)
            raise


def recall(state: Path, host: HostEntry) -> Report | None:
    """What a host said last; None when nothing is known, or only of a host that went by this name before."""
    try:
        with _file(state, host).open("rb") as file:
            kept = json.loads(file.read(_LARGEST))  # of a larger one the end is missing, and that is no JSON
        if (kept["schema"], kept["ssh"], kept["directory"]) != (SCHEMA, host.ssh, host.directory):
            return None
        report = Report(kept["seen"], str(kept["version"]), 0, dict(kept["said"]))
        return report if is_moment(report.seen) and isinstance(report.said["runs"], list) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _file(state: Path, host: HostEntry) -> Path:
    """A name may hold anything; its file's name must not: no slash, no dot in front, no two names in one file."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_@") else f"%{ord(c):x}." for c in host.name)
    return state / _PLACE / f"{plain}.json"
