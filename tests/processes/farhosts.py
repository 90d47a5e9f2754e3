"""Hosts made of namespaces: each with its own name, boot id, processes, link and sshd. Root on Linux only."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard.stage import DEADLINE_S, wait_until

from .sshd import CLIENT, SERVER, SSHD, USER, forget, known_host, make_keys

PORT = 2222
_INIT = """\
hostname {name}
mount --bind {place}/{name}.boot_id /proc/sys/kernel/random/boot_id
{sshd} -D -f {place}/{name}.sshd -E {place}/{name}.log &
wait $!
"""


def why_not() -> str:
    """Why this machine cannot make hosts; empty when it can."""
    if not sys.platform.startswith("linux") or os.getuid() != 0:
        return "hosts of namespaces need root on Linux"
    missing = [name for name in ("ip", "unshare", "ssh") if shutil.which(name) is None] + ([] if SSHD else ["sshd"])
    return f"missing: {', '.join(missing)} (apt-get install iproute2 openssh-server)" if missing else ""


def _ip(*words: str) -> None:
    told = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip(f"this machine makes no networks: ip {shlex.join(words)}: {told.stderr.strip()}")


class Host:
    """One host; it can crash, and come back with another boot id."""

    def __init__(self, place: Path, name: str, number: int) -> None:
        self.place, self.name = place, name
        tag = f"{os.getpid() % 100000}{number}"
        self.namespace, self.link, peer = f"srn{tag}", f"sh{tag}", f"sp{tag}"
        subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        near, self.address = f"{subnet}.{number * 4 + 1}", f"{subnet}.{number * 4 + 2}"
        self.init: subprocess.Popen[bytes] | None = None
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", peer, "netns", self.namespace)
        _ip("addr", "add", f"{near}/30", "dev", self.link)
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/30", "dev", peer)
        _ip("-n", self.namespace, "link", "set", peer, "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        self.heal()
        facts = {"place": place, "address": self.address, "port": PORT, "name": name, "sshd": SSHD, "user": USER}
        server = SERVER.format_map(facts).replace(f"PidFile {place}/sshd.pid", "PidFile none")
        (place / f"{name}.sshd").write_text(server)
        (place / f"{name}.init").write_text(_INIT.format_map(facts))
        self.client = CLIENT.format_map(facts).split("Host *")[0]

    def boot(self) -> None:
        """Come up, as after a power cut: same name, new boot id, no process of before."""
        (self.place / f"{self.name}.boot_id").write_text(Path("/proc/sys/kernel/random/uuid").read_text())
        log = self.place / f"{self.name}.log"
        log.write_text("")
        isolated = ["unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
        self.init = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *isolated, "sh", str(self.place / f"{self.name}.init")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: "listening" in log.read_text(), DEADLINE_S, f"sshd of {self.name}")

    def crash(self) -> None:
        """The first process of a PID namespace takes all others with it."""
        if self.init is not None:
            children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            self.init.wait(DEADLINE_S)
            self.init = None

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.link, "down")

    def heal(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self.link, "up")

    def remove(self) -> None:
        """Leave nothing of it."""
        self.crash()
        for words in (["netns", "del", self.namespace], ["link", "del", self.link]):
            subprocess.run(["ip", *words], capture_output=True, check=False)


class Network:
    """Hosts that share this machine's files, and the environment in which solorun reaches them by name."""

    def __init__(self, place: Path, sockets: Path, *names: str) -> None:
        self.sockets, self.hosts = sockets, {}
        make_keys(place)
        Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            for number, name in enumerate(names):
                self.hosts[name] = Host(place, name, number)
                self.hosts[name].boot()
        except BaseException:
            self.remove()
            raise
        every = CLIENT.partition("Host *")[2].format(place=place, user=USER)
        (place / "ssh_config").write_text("".join(host.client for host in self.hosts.values()) + f"Host *{every}")
        (place / "known_hosts").write_text("".join(known_host(place, h.address, PORT) for h in self.hosts.values()))
        # Quick, for the tests of a cut link; not so quick that a host which is busy would be taken for one that is cut.
        quick = "-o ServerAliveInterval=2 -o ServerAliveCountMax=3 -o ConnectTimeout=6"
        self.environment = {
            "SOLORUN_SSH_OPTIONS": f"-F {shlex.quote(str(place / 'ssh_config'))} {quick}",
            "XDG_RUNTIME_DIR": str(sockets),
        }

    def remove(self) -> None:
        """End every host."""
        forget(self.sockets)
        for host in self.hosts.values():
            host.remove()
