"""A verb of solorun on another host, through the system's ssh: a person's configuration, agents, jump hosts count.

What ssh itself has to say goes to a file (`-E`), apart from what the far side prints, so that the exit status 255 of a
broken connection and the same status of a guarded command are never taken for each other.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from solorun import __version__
from solorun.errors import BadUsage, SolorunError, Unreachable
from solorun.farscript import NO_DIRECTORY, NO_SOLORUN, login_line, question_script, verb_script
from solorun.frozen import dataclass
from solorun.launch import OWN_VARIABLES
from solorun.settings import HostEntry, Settings
from solorun.stopping import POLITE
from solorun.wording import printable

_OF_SSH = 255
_DOUBTFUL = frozenset({2, 126, 127, _OF_SSH})
"""Statuses of a forwarded verb that may mean that it did not even start."""

_TYPING_S = 60.0
_LONGEST_SOCKET_DIRECTORY = 45
"""A socket's path has 104 bytes on macOS; ssh adds `/`, 40 digits and, while it binds, 17 more."""

_FAREWELL = re.compile(r"(Shared c|C)onnection to .* closed\.")
_LOST = re.compile(r"closed by remote host|not responding|Broken pipe")


def find_host(name: str, settings: Settings) -> HostEntry:
    """The host of that name in `solorun.toml`; any other name is an ssh destination as typed.

    Raises:
        BadUsage: it cannot be a destination.
    """
    for entry in settings.hosts:
        if entry.name == name:
            return entry
    if not name or name.startswith("-") or not name.isprintable() or " " in name:
        raise BadUsage(f"--host {name!r} is no host", "name one of solorun.toml, or an ssh destination: --host ada@box")
    return HostEntry(name, name, "", ("solorun",))


@dataclass(frozen=True, slots=True)
class Client:
    """How ssh is called from here.

    Args:
        program: ssh, and the options that a person set in the environment.
        sockets: private directory for shared connections; None shares none.
        deadline_s: how long a host may take to answer.
    """

    program: tuple[str, ...]
    sockets: Path | None
    deadline_s: float


def client(environment: Mapping[str, str], settings: Settings) -> Client:
    """The ssh to call: SOLORUN_SSH names the program, SOLORUN_SSH_OPTIONS adds options, such as `-F FILE`."""
    program = environment.get("SOLORUN_SSH") or "ssh"
    try:
        options = shlex.split(environment.get("SOLORUN_SSH_OPTIONS", ""))
    except ValueError as error:
        raise BadUsage(f"SOLORUN_SSH_OPTIONS cannot be read: {error}", "quote it as a shell would need it") from None
    return Client((program, *options), socket_directory(environment, os.getuid()), settings.host_deadline_s)


def socket_directory(environment: Mapping[str, str], user: int) -> Path | None:
    """A directory for the sockets of shared connections: ours alone, and short enough; None where there is none."""
    places = [Path("/tmp") / f"solorun-{user}"]  # noqa: S108 - the owner and the mode are checked below
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        places.insert(0, Path(runtime) / "solorun")
    for place in places:
        if len(os.fsencode(place)) > _LONGEST_SOCKET_DIRECTORY or not re.fullmatch(r"[\w./-]+", str(place)):
            continue
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            facts = place.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(facts.st_mode) and facts.st_uid == user and not facts.st_mode & 0o077:
            return place
    return None


def options(client: Client, *, terminal: bool, asks: bool, log: str) -> list[str]:
    """The options of one call of ssh. Of an option given twice ssh takes the first: a person's come before ours.

    Args:
        client: how ssh is called.
        terminal: whether the far side gets one.
        asks: whether ssh may ask for a password.
        log: file for what ssh itself says.
    """
    found = {
        "ConnectTimeout": str(max(1, round(client.deadline_s))),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "RemoteCommand": "none",
        "ClearAllForwardings": "yes",  # a tunnel of the person's own login would clash with that login
    }
    if client.sockets is not None:
        found |= {"ControlMaster": "auto", "ControlPersist": "60", "ControlPath": f"{client.sockets}/%C"}
    if not asks:
        found["BatchMode"] = "yes"
    settings = [word for key, value in found.items() for word in ("-o", f"{key}={value}")]
    return [*client.program, "-E", log, *settings, "-t" if terminal else "-T"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host answered to a question.

    Args:
        version: of solorun there.
        code: exit status of the verb.
        out: what it printed after the version.
        err: its complaints.
    """

    version: str
    code: int
    out: str
    err: str


def ask(host: HostEntry, words: Sequence[str], client: Client, *, asks: bool = False) -> Answer:
    """Run a verb on a host without a terminal, within the deadline, and give what it printed.

    Args:
        host: where.
        words: verb and arguments; none asks for the version alone.
        client: how ssh is called.
        asks: whether ssh may ask the person for a password; the time to type it comes on top of the deadline.

    Raises:
        Unreachable: no answer in time, the connection failed, or there is no solorun.
    """
    line = login_line(question_script(host, words))
    with (
        tempfile.NamedTemporaryFile(prefix="solorun-ssh-") as log,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        argv = [*options(client, terminal=False, asks=asks, log=log.name), "--", host.ssh, line]
        code = _within(argv, out, err, client.deadline_s + (_TYPING_S if asks else 0))
        said, complained, ssh_said = (_text(file) for file in (out, err, log))
    if code is None:
        raise unreachable(host, f"no answer within {client.deadline_s:g} s")
    if code == _OF_SSH and (broken := _last_line(ssh_said)):
        raise unreachable(host, broken, ssh_said)
    if code == NO_DIRECTORY:
        raise Unreachable(
            f"host {host.name} has no directory {host.directory!r}", f'correct "directory" in [hosts.{host.name}]'
        )
    version = re.search(r"^solorun (\S+)\n", said, re.MULTILINE)  # a login shell may print before it
    if code == NO_SOLORUN or version is None:
        raise no_solorun(host, _last_line(complained))
    return Answer(version[1], code, said[version.end() :], complained)


def _within(argv: Sequence[str], out: IO[bytes], err: IO[bytes], deadline_s: float) -> int | None:
    """The exit status; None when the deadline passed. Files, not pipes: a shared connection would keep those open."""
    try:
        child = subprocess.Popen(argv, env=_environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    except OSError as error:
        raise _no_client(argv, error) from None
    try:
        return child.wait(deadline_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _environment() -> dict[str, str]:
    """Ours, without the marks of a run: a shared connection outlives the call and is no survivor of it."""
    return {key: value for key, value in os.environ.items() if key not in OWN_VARIABLES}


def _no_client(argv: Sequence[str], error: OSError) -> BadUsage:
    return BadUsage(f"cannot execute {argv[0]!r}: {error.strerror}", "install the OpenSSH client")


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _FAREWELL.fullmatch(line.strip())]
    return printable(lines[-1]) if lines else ""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """How a forwarded verb ended.

    Args:
        code: exit status: the verb's own, or 128 + the signal that ended it here.
        signal: the signal that ended it here, before the far side had answered.
        note: what else the person should know, empty for nothing.
    """

    code: int
    signal: int | None = None
    note: str = ""


def forward(host: HostEntry, words: Sequence[str], client: Client, *, terminal: bool, reads: bool) -> Forwarded:
    """Run a verb on a host with this process's own streams, to its end.

    Args:
        host: where.
        words: verb and arguments.
        client: how ssh is called.
        terminal: whether the far side gets a terminal, so that Ctrl-C is typed there.
        reads: whether the verb may read the standard input; else a caller's loop over a list would lose its list.

    Raises:
        Unreachable: the connection failed or was lost, or there is no solorun over there.
    """
    line = login_line(verb_script(host, words, terminal=terminal))
    with tempfile.NamedTemporaryFile(prefix="solorun-ssh-") as log:
        argv = [*options(client, terminal=terminal, asks=True, log=log.name), "--", host.ssh, line]
        code, asked = _to_its_end(argv, None if reads else subprocess.DEVNULL)
        ssh_said = _text(log)
    if asked is not None:
        return Forwarded(128 + asked, asked)
    if code == _OF_SSH and (broken := _last_line(ssh_said)):
        raise unreachable(host, broken, ssh_said)
    note = _doubt(host, code, client) if code in _DOUBTFUL else ""
    if code == _OF_SSH and not note:  # a shared connection that is cut says no more than a command that ends with 255
        name = printable(host.name)
        note = f"status 255: its own, or the connection to host {name} was lost: solorun status --host {name}"
    return Forwarded(code, note=note)


def _to_its_end(argv: Sequence[str], stdin: int | None) -> tuple[int, int | None]:
    """The exit status, and the signal that ended us first. A signal to us is passed on: ssh must not stay behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, POLITE)
    asked: int | None = None
    try:
        # What is blocked here while we wait must not be blocked there.
        child = subprocess.Popen(argv, env=_environment(), stdin=stdin, preexec_fn=lambda: _restore(before))
        waiter = threading.Thread(target=_wake_at_the_end, args=(child, threading.get_ident()))
        waiter.start()
        while child.returncode is None:
            number = signal.sigwait(POLITE)
            if child.returncode is None:
                asked = asked or number
                child.send_signal(number)
        waiter.join()
        while signal.sigpending() & set(POLITE):
            signal.sigwait(POLITE)
        return child.returncode, asked
    except OSError as error:
        raise _no_client(argv, error) from None
    finally:
        _restore(before)


def _wake_at_the_end(child: subprocess.Popen[bytes], thread: int) -> None:
    child.wait()
    signal.pthread_kill(thread, signal.SIGTERM)  # blocked there, and taken by `sigwait`


def _restore(mask: Iterable[int]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _doubt(host: HostEntry, code: int, client: Client) -> str:
    """Whether a doubtful status was the verb's own; what explains it otherwise.

    Raises:
        Unreachable: the verb did not even start.
    """
    try:
        answer = ask(host, (), client)
    except Unreachable as error:
        if code == 2 or "Permission denied" in error.what:  # the verb was heard; only this question needs a password
            return ""
        raise
    if answer.version != __version__ and code == 2:
        return f"{skew(host, answer.version)}: it may not know this verb or flag"
    return ""


def skew(host: HostEntry, version: str) -> str:
    """Two versions, in words."""
    return f"host {host.name} has solorun {printable(version)}, here {__version__}"


def no_solorun(host: HostEntry, line: str) -> SolorunError:
    """The host answers, but solorun does not."""
    called = shlex.join(host.command)
    return Unreachable(
        f"host {host.name} answers, but has no {called}" + (f": {line}" if line else ""),
        f'install it there, or say where it is: [hosts.{host.name}] command = "~/kssm/.venv/bin/solorun"',
    )


def unreachable(host: HostEntry, line: str, ssh_said: str = "") -> Unreachable:
    """A host that cannot be reached, with ssh's own last line and what to do next.

    Args:
        host: which.
        line: the line that tells most.
        ssh_said: everything that ssh itself said.
    """
    destination = shlex.quote(host.ssh)
    advice = "its runs are not known to have ended; look again: solorun status --host " + shlex.quote(host.name)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in ssh_said:
        advice = "its key is another than before: ask whether that is right before you accept the new one"
    elif "Host key verification failed" in ssh_said:
        advice = f"log in once by hand and compare its key: ssh {destination}"
    elif "Permission denied" in ssh_said or "Too many authentication failures" in ssh_said:
        advice = f"log in by hand to see why: ssh {destination}"
    elif "Could not resolve" in ssh_said:
        advice = 'check the name, or describe it in solorun.toml: [hosts.NAME] ssh = "user@host"'
    elif "refused" in ssh_said:
        advice = f"is sshd running there? its runs may be: ssh {destination}"
    what = "the connection to host {} was lost" if _LOST.search(line) else "host {} cannot be reached"
    return Unreachable(f"{what.format(host.name)}: {line}", advice)
