"""A real sshd on loopback with throw-away keys, and a client configuration that knows nothing but it."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guard.stage import DEADLINE_S, wait_until

from .conftest import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SERVER = """\
Port {port}
ListenAddress {address}
HostKey "{place}/host_key"
PidFile "{place}/sshd.pid"
AuthorizedKeysFile "{place}/authorized_keys"
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
UseDNS no
MaxStartups 200
MaxSessions 64
"""
CLIENT = """\
Host {name}
    HostName {address}
    Port {port}
Host *
    User {user}
    IdentityFile "{place}/user_key"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile "{place}/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    LogLevel ERROR
"""
USER = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def why_no_server() -> str:
    """Why this user cannot log in to a server of its own; empty when it can."""
    if SSHD is None:
        return "no sshd: apt-get install openssh-server"
    shell = pwd.getpwuid(os.getuid()).pw_shell
    return f"this user's login shell is {shell}" if shell.endswith(("nologin", "false")) else ""


def make_keys(place: Path) -> None:
    """Keys of a host and of a person, made once for a place."""
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key)], check=True)
    shutil.copy(place / "user_key.pub", place / "authorized_keys")


def known_host(place: Path, address: str, port: int) -> str:
    """The line of `known_hosts` for a server with this place's key."""
    kind, key, *_ = (place / "host_key.pub").read_text().split()
    return f"[{address}]:{port} {kind} {key}\n"


def forget(sockets: Path) -> None:
    """End every shared connection."""
    for path in (sockets / "solorun").glob("*"):
        subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"], capture_output=True, check=False)


class Server:
    """One sshd in the foreground, and the environment in which solorun reaches it as `box`."""

    def __init__(self, place: Path, sockets: Path) -> None:
        assert SSHD
        self.place, self.sockets = place, sockets
        self.port = free_port()  # between a stop and the next start of this server it stays free, too
        make_keys(place)
        facts = {"place": place, "address": "127.0.0.1", "port": self.port, "user": USER, "name": "box"}
        (place / "sshd_config").write_text(SERVER.format_map(facts))
        (place / "ssh_config").write_text(CLIENT.format_map(facts))
        (place / "known_hosts").write_text(known_host(place, "127.0.0.1", self.port))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)  # else made by the init system
        self.daemon: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Listen, or listen again."""
        config, log = str(self.place / "sshd_config"), str(self.place / "sshd.log")
        self.daemon = subprocess.Popen([SSHD or "", "-D", "-f", config, "-E", log], stdin=subprocess.DEVNULL)
        wait_until(self.listens, DEADLINE_S, lambda: (self.place / "sshd.log").read_text())

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End the server and every shared connection to it."""
        self.forget()
        if self.daemon is not None:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(DEADLINE_S)
            self.daemon = None

    def forget(self) -> None:
        """End the shared connections, as time does."""
        forget(self.sockets)

    @property
    def options(self) -> str:
        """For SOLORUN_SSH_OPTIONS."""
        return f"-F {shlex.quote(str(self.place / 'ssh_config'))}"

    def environment(self) -> dict[str, str]:
        """What solorun needs to reach it."""
        return {"SOLORUN_SSH_OPTIONS": self.options, "XDG_RUNTIME_DIR": str(self.sockets)}


@contextmanager
def short_place() -> Iterator[Path]:
    """A directory with a path short enough for sockets, whatever the checkout's path is."""
    with tempfile.TemporaryDirectory(prefix="srn-", dir="/tmp") as place:
        yield Path(place)


def settings_file(project: Path, *hosts: str, command: list[str] | None = None) -> None:
    """A `solorun.toml` in which each host has this project as its directory."""
    called = command or [sys.executable, "-P", "-m", "solorun"]
    entries = [
        f"[hosts.{name}]\nssh = {_quoted(name)}\ndirectory = {_quoted(str(project))}\ncommand = "
        f"[{', '.join(map(_quoted, called))}]\n"
        for name in hosts
    ]
    (project / "solorun.toml").write_text("\n".join(["host_deadline_s = 20", *entries]))


def _quoted(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'
