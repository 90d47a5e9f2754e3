"""Sends notices to people who are not looking: that a run ended, crashed, hangs, or lacks memory or disk.

A notice is sent by a courier: a process of its own session that knows neither the run's id nor its lock. Whatever a
mail server or a webhook does, the run, its release and the next start do not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from solorun.frozen import dataclass
from solorun.logs import LogFile
from solorun.notice import Message, Notice, called, message, wants
from solorun.record import journal
from solorun.settings import NotifyEntry
from solorun.wording import printable

if TYPE_CHECKING:  # a start that tells nobody does not load it
    import subprocess

DEADLINE_S = 30.0
"""A sender that takes longer is killed."""

WEBHOOK_S = 10.0
"""How long a webhook may be silent."""

NO_APPRISE = "the package apprise is missing: pip install 'solorun[notify]'"

_REAPING_S = 2.0
_GLANCE_S = 0.05
_PIPE = 1 << 16
"""Bytes that a pipe holds."""
_COURIER = "import sys; sys.path.insert(0, sys.argv[1]); from solorun.notify import main; main()"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one notice to one entry. `problem` is empty when it was sent."""

    notice: Notice
    entry: NotifyEntry
    problem: str


def reachable(entries: Sequence[NotifyEntry]) -> tuple[NotifyEntry, ...]:
    """The entries that can be served: without the package apprise, those that need it cannot."""
    if any(entry.apprise for entry in entries) and importlib.util.find_spec("apprise") is None:
        return tuple(entry for entry in entries if not entry.apprise)
    return tuple(entries)


def send(
    notices: Sequence[Notice], entries: Sequence[NotifyEntry], environment: Mapping[str, str]
) -> subprocess.Popen[bytes] | None:
    """Start a courier that delivers each notice to whom it concerns, and writes down what became of it.

    Args:
        notices: what happened.
        entries: whom to tell.
        environment: the courier's, without the guard's own variables.

    Returns:
        The courier, None when nobody wants these notices.

    Raises:
        OSError: the courier could not be started.
    """
    if not any(wants(entry, notice) for entry in entries for notice in notices):
        return None
    import subprocess

    job = {
        "notices": [{**asdict(notice), "facts": dict(notice.facts)} for notice in notices],
        "entries": [{**asdict(entry), "on": sorted(entry.on)} for entry in entries],
        "directory": _identity(notices[0].directory),
    }
    courier = subprocess.Popen(
        [sys.executable, "-P", "-c", _COURIER, str(Path(__file__).resolve().parents[1])],
        stdin=subprocess.PIPE,  # not by arguments: everybody can read those, and a webhook's URL is a secret
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    assert courier.stdin is not None  # noqa: S101 - tells the type checker what PIPE makes sure of
    os.set_blocking(courier.stdin.fileno(), False)  # a courier that does not start to read must not hold us
    try:
        os.write(courier.stdin.fileno(), json.dumps(job).encode() + b"\n")
    finally:
        courier.stdin.close()
    return courier


def main() -> None:
    """The courier: one job as JSON on standard input."""
    signal.alarm(round(2 * DEADLINE_S))  # nobody waits for us, so nobody else would end us
    job = json.loads(sys.stdin.buffer.read())
    notices = [Notice(**facts) for facts in job["notices"]]
    entries = [NotifyEntry(frozenset(e["on"]), tuple(e["command"]), e["webhook"], e["apprise"]) for e in job["entries"]]
    for delivery in deliver(notices, entries, os.environ):
        with contextlib.suppress(OSError):
            _write_down(delivery, job["directory"])
    os._exit(0)  # a thread that still hangs in a webhook ends here


def deliver(
    notices: Sequence[Notice],
    entries: Sequence[NotifyEntry],
    environment: Mapping[str, str],
    deadline_s: float = DEADLINE_S,
) -> list[Delivery]:
    """Deliver each notice to whom it concerns, all at once, and say what became of each within the deadline.

    Args:
        notices: what happened.
        entries: whom to tell.
        environment: of the commands.
        deadline_s: after it a command is killed, and an answer is no longer waited for.
    """
    jobs = [(notice, entry) for notice in notices for entry in entries if wants(entry, notice)]
    problems = [f"no end within {deadline_s:g} s"] * len(jobs)

    def work(index: int) -> None:
        problems[index] = _deliver_one(*jobs[index], environment, deadline_s)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(jobs))]
    end = time.monotonic() + deadline_s + _REAPING_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [Delivery(*job, problem) for job, problem in zip(jobs, problems, strict=True)]


def _deliver_one(notice: Notice, entry: NotifyEntry, environment: Mapping[str, str], deadline_s: float) -> str:
    told = message(notice)
    try:
        if entry.command:
            return _by_command(entry.command, told, environment, deadline_s)
        if entry.webhook:
            return _by_webhook(entry.webhook, told)
        return _by_apprise(entry.apprise, notice, told)
    except Exception as error:  # whatever a sender throws, the others are served; its text may hold a secret URL
        return f"failed with {type(error).__name__}"


def _by_command(argv: tuple[str, ...], told: Message, environment: Mapping[str, str], deadline_s: float) -> str:
    import subprocess

    try:
        running = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, **told.environment},
            start_new_session=True,
        )
    except OSError as error:
        return f"cannot be executed: {error.strerror}"
    assert running.stdin is not None and running.stdout is not None  # noqa: S101 - PIPE makes sure of it
    said: list[bytes] = []
    over = threading.Event()
    reader = threading.Thread(target=_keep_tail, args=(running.stdout, said.append, over), daemon=True)
    reader.start()
    with contextlib.suppress(OSError):  # a command that reads nothing has closed the other side
        running.stdin.write(told.body)  # far smaller than a pipe: cannot block
        running.stdin.close()
    try:
        status = running.wait(deadline_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return f"no end within {deadline_s:g} s; killed"
    over.set()
    reader.join()
    output = printable(" ".join(said[-1].decode("utf-8", "replace").split()) if said else "")[-300:]
    ending = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
    return "" if status == 0 else f"{ending}{': ' if output else ''}{output}"


def _keep_tail(stream: IO[bytes], keep: Callable[[bytes], None], over: threading.Event) -> None:
    """All that a command says until it is over; a child that it left behind may keep the pipe open, and go on."""
    tail, rest = b"", _PIPE
    with contextlib.suppress(OSError, ValueError):
        while rest > 0:
            ended = over.is_set()  # asked before the pipe is: what was said until then is in it
            if not select.select([stream], [], [], 0 if ended else _GLANCE_S)[0]:
                if ended:
                    return
                continue
            data = os.read(stream.fileno(), 4096)
            if not data:
                return
            tail = (tail + data)[-2000:]
            keep(tail)
            rest -= len(data) if ended else 0


def _by_webhook(url: str, told: Message) -> str:
    import http.client
    import urllib.error
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_answer: Any) -> None:
            """Follow nothing: the notice would go elsewhere, or as an empty GET that looks like a success."""

    if not url.startswith(("http://", "https://")):
        return "not an http or https URL"
    headers = {"Content-Type": "application/json", "User-Agent": "solorun"}
    try:
        request = urllib.request.Request(url, data=told.body, headers=headers, method="POST")  # noqa: S310 - checked above
        urllib.request.build_opener(NoRedirect).open(request, timeout=WEBHOOK_S).close()
    except urllib.error.HTTPError as error:
        where = "; it redirects, write the final URL" if 300 <= error.code < 400 else ""
        return f"answered {error.code} {printable(str(error.reason))}{where}"
    except urllib.error.URLError as error:
        return f"not reached: {printable(str(error.reason))}"
    except http.client.HTTPException as error:
        return f"gave no sound answer ({type(error).__name__})"
    except OSError as error:
        return f"gave no answer: {error.strerror or error or type(error).__name__}"
    return ""


def _by_apprise(url: str, notice: Notice, told: Message) -> str:
    try:
        import apprise
    except ImportError:
        return NO_APPRISE
    service = apprise.Apprise()
    if not service.add(url):
        return "apprise does not understand the URL"
    title = f"solorun: {notice.occasion} of {printable(os.path.basename(notice.directory))}"
    return "" if service.notify(title=title, body=told.line) else "apprise could not deliver it"


def _write_down(delivery: Delivery, identity: Sequence[int]) -> None:
    """Into the journal, and a failure into the log; only where the directory is still the one of the run."""
    notice, problem = delivery.notice, delivery.problem
    fd = os.open(notice.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _identity(fd) != list(identity):
            return
        facts = {"occasion": notice.occasion, "to": called(delivery.entry), **({"why": problem} if problem else {})}
        journal(fd, notice.run_id, "notice failed" if problem else "notified", time.time(), **facts)
        if problem:
            log = LogFile(fd)
            log.remark(f"solorun: WARNING: notice of {notice.occasion} by {called(delivery.entry)} failed: {problem}")
            log.close()
    finally:
        os.close(fd)


def _identity(place: str | int) -> list[int]:
    try:
        facts = os.stat(place)
    except OSError:
        return []
    return [facts.st_dev, facts.st_ino]
