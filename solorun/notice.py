"""A notice: what happened to a run, and the forms in which it is handed over. All pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from solorun.frozen import dataclass
from solorun.settings import NotifyEntry
from solorun.wording import printable

_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a run.

    Args:
        occasion: end, crash, hang, memory, disk; test for a test.
        directory: absolute path of the results directory.
        run_id: of the run.
        host: node name.
        user: login name.
        time: seconds since the epoch.
        text: what happened, one line, without directory and host.
        facts: what this occasion has to say, as plain JSON values.
    """

    occasion: str
    directory: str
    run_id: str
    host: str
    user: str
    time: float
    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A notice as it is handed over.

    Args:
        body: the JSON.
        line: one line for people.
        environment: variables for a command.
    """

    body: bytes
    line: str
    environment: Mapping[str, str]


def message(notice: Notice) -> Message:
    """A notice as JSON, as one line, and as environment variables; all three are frozen."""
    line = printable(f"{notice.directory} on {notice.host}: {notice.text}")[:_LONGEST]
    told = {
        "schema": 1,
        "occasion": notice.occasion,
        "time": round(notice.time, 3),
        "host": notice.host,
        "user": notice.user,
        "directory": notice.directory,
        "run_id": notice.run_id,
        "text": line,
        "facts": dict(notice.facts),
    }
    environment = {
        "SOLORUN_NOTICE": notice.occasion,
        "SOLORUN_TEXT": line,
        "SOLORUN_DIRECTORY": notice.directory,
        "SOLORUN_HOST": notice.host,
        "SOLORUN_USER": notice.user,
        # Not SOLORUN_RUN_ID: who carries that counts as a process of the run, and would hold the directory.
        "SOLORUN_RUN": notice.run_id,
    }
    return Message(json.dumps(told).encode() + b"\n", line, environment)


def wants(entry: NotifyEntry, notice: Notice) -> bool:
    """Whether an entry asks for such a notice. A crash is an end too, and is told once to who asks for both."""
    return notice.occasion in ("test", *entry.on) or (notice.occasion == "crash" and "end" in entry.on)


def called(entry: NotifyEntry) -> str:
    """An entry's name for logs: arguments and URLs may hold secrets, and stay out."""
    if entry.command:
        return f"command {printable(entry.command[0])}"
    scheme, _, rest = (entry.webhook or entry.apprise).partition("://")
    if entry.apprise:
        return f"apprise {printable(scheme)}"
    return f"webhook {scheme}://{printable(rest.partition('/')[0].rpartition('@')[2].partition('?')[0])}"
