"""Real directories and real processes, beside what ought to be true of them.

The model is small: who holds which directory, what a killed holder left there, which runs there were. What a start must
answer, and what status must say, follows from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solorun import process
from solorun.owner import Gone

NOBODY = 65534
_DEADLINE_S = 60.0


@dataclass
class Place:
    """A results directory: where it is, its runs with their parents, and what the last one left there."""

    path: Path
    runs: list[tuple[str, str | None]] = field(default_factory=list)
    over: set[str] = field(default_factory=set)
    """Runs whose end must have been written down."""
    live: str = ""
    """The id of the run that goes on here; empty when none does."""
    label: bool = False
    record: str = ""
    """From which host or namespace the record that stands here is; empty when none stands."""
    robbed: bool = False
    """Its run has yet to find its label gone; it puts the record back with it."""
    copied_from: Place | None = None
    """Label and record, if there are some, and run.json were copied, and nothing has run here since."""
    born: Path = Path()
    """The path that the record and run.json tell."""


@dataclass
class Player:
    """A process, and what it does."""

    pid: int
    line: socket.socket
    user: int
    host: str
    holds: Place | None = None
    run_id: str = ""
    old: Place | None = None
    old_path: Path = Path()
    suspended: bool = False
    command: int = 0
    """Of a supervisor: the PID of its command."""

    def is_free(self) -> bool:
        return not (self.holds or self.old or self.suspended)


@dataclass
class Orphan:
    """What a run left behind: with the directory's descriptor, with the run's id in its environment, or both."""

    pid: int
    place: Place
    run_id: str
    user: int
    has_lock: bool
    in_label: bool = False


def until(what: str, condition: Callable[[], object]) -> None:
    """Wait for it, and fail when it does not come."""
    end = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"did not come: {what}"
        time.sleep(0.002)


class World:
    """All directories and processes of one example.

    Args:
        server: the line to what makes processes.
    """

    def __init__(self, server: socket.socket) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # an fsync there costs nothing
        self.top = Path(tempfile.mkdtemp(prefix="solorun-world-", dir=memory))
        self.top.chmod(0o777)
        self.line = server
        self.offset = 0.0
        here = process.here()
        self.hosts = {
            "here": {name: getattr(here, name) for name in ("host", "machine", "boot", "namespace")},
            "container": {"host": here.host, "machine": here.machine, "boot": here.boot, "namespace": "pid:[7]"},
            "far": {"host": "far", "machine": "far/7", "boot": "far-1", "namespace": "pid:[1]"},
        }
        self.places: list[Place] = []
        self.players: list[Player] = []
        self.orphans: list[Orphan] = []
        self.names = 0
        self.observer = self.enter("here", 0)
        self.players.clear()
        self.new_place()

    def close(self) -> None:
        """End and remove everything."""
        for player in [*self.players, self.observer]:
            if player.command:
                _kill(player.command)
            self._reap(player)
        for orphan in self.orphans:
            _kill(orphan.pid)
        for orphan in self.orphans:
            until("the end of an orphan", lambda pid=orphan.pid: isinstance(process.probe(pid), Gone))
        shutil.rmtree(self.top)

    # --- processes -----------------------------------------------------------------------------------------------

    def enter(self, host: str, user: int) -> Player:
        """A new process."""
        asked = {"user": user, "place": self.hosts[host], "offset": self.offset}
        self.line.sendall(json.dumps(asked).encode())
        data, (fd,), _, _ = socket.recv_fds(self.line, 100, 1)
        player = Player(int(data), socket.socket(fileno=fd), user, host)
        player.line.settimeout(_DEADLINE_S)
        self.players.append(player)
        return player

    def ask(self, player: Player, do: str, **words: Any) -> Any:
        """What a process answers."""
        player.line.sendall(json.dumps({"do": do, **words}).encode() + b"\n")
        return self.hear(player)

    def hear(self, player: Player) -> Any:
        """Its next answer."""
        heard = b""
        while not heard.endswith(b"\n"):
            data = player.line.recv(1 << 16)
            assert data, f"PID {player.pid} died over what it was asked"
            heard += data
        return json.loads(heard)

    def _reap(self, player: Player) -> None:
        _kill(player.pid)
        self.line.sendall(json.dumps({"reap": player.pid}).encode())
        self.line.recv(100)
        player.line.close()

    def kill(self, player: Player) -> None:
        """SIGKILL: what it left stands there, and what it started lives on."""
        self._reap(player)
        self.players.remove(player)
        place = player.holds
        if place is not None:
            place.live = ""
            if player.command:
                self.orphans.append(Orphan(player.command, place, player.run_id, player.user, True, in_label=True))

    def leaves(self, player: Player) -> None:
        """A run that was asked to stop ends, and writes that down."""
        until("the end of a run that was asked to stop", lambda: isinstance(process.probe(player.pid), Gone))
        self._reap(player)
        self.players.remove(player)
        self.ended(player)

    def ended(self, player: Player) -> None:
        """Its run is over, and nothing of the lock is left."""
        place = player.holds
        assert place is not None
        found = place.path / "training.lock"  # garbage that nobody took for a label stays
        garbage = found.is_file() and not found.read_text().strip().isdigit()
        place.live, place.label, place.record = "", garbage, ""
        place.over.add(player.run_id)
        player.holds, player.run_id, player.command = None, "", 0

    def end_orphan(self, orphan: Orphan) -> None:
        """SIGKILL for what a run left behind."""
        _kill(orphan.pid)
        until("the end of an orphan", lambda: isinstance(process.probe(orphan.pid), Gone))
        self.orphans.remove(orphan)

    # --- directories ---------------------------------------------------------------------------------------------

    def new_name(self) -> Path:
        """A path that nothing has yet."""
        self.names += 1
        return self.top / f"results-{self.names}"

    def new_place(self) -> Place:
        """An empty results directory that anybody may write in."""
        place = Place(self.new_name())
        place.path.mkdir()
        place.path.chmod(0o777)
        self.places.append(place)
        return place

    def holder(self, place: Place) -> Player | None:
        """The live process that holds a directory."""
        return next((player for player in self.players if player.holds is place), None)

    def old_holder(self, place: Place) -> Player | None:
        """The live old-style trainer in it."""
        return next((player for player in self.players if player.old is place), None)

    def lock_keepers(self, place: Place) -> list[Orphan]:
        """Orphans that still have its descriptor."""
        return [orphan for orphan in self.orphans if orphan.place is place and orphan.has_lock]

    def is_known_copy(self, place: Place) -> bool:
        """Whether what stands there tells of another directory that still is where it was."""
        origin = place.copied_from
        return origin is not None and origin in self.places and origin.path == place.born

    def is_claimed_by_its_origin(self, place: Place) -> bool:
        """A copy that names a live process, and does not tell any more that it works elsewhere."""
        bare = place.label and not place.record
        return place.copied_from is not None and (bare or not self.is_known_copy(place))

    def bare_orphans(self, place: Place, seen_by: Player) -> list[Orphan]:
        """Processes that only their environment tells of, as far as this user may read it."""
        last = "" if not place.runs or self.is_known_copy(place) else place.runs[-1][0]
        return [one for one in self.orphans if one.run_id == last and seen_by.user in (0, one.user)]

    def is_foreign(self, place: Place, host: str) -> bool:
        """Whether the record that stands there is of a place whose processes cannot be seen from this one."""
        if not place.record or self.is_known_copy(place):
            return False
        there, here = json.loads(place.record), self.hosts[host]
        if there["boot"] != here["boot"]:
            return bool(there["machine"] != here["machine"])
        return bool(there["namespace"] != here["namespace"])

    def looked(self, place: Place) -> dict[str, Any]:
        """What status and history tell."""
        found: dict[str, Any] = self.ask(self.observer, "look", directory=str(place.path))
        return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
