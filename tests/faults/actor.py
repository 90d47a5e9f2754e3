"""Processes that play in a results directory and obey: one server that knows the guard, forked for each of them.

`python3 -m tests.faults.actor FD` is the server. It imports solorun once, so that a new process costs milliseconds.
Each actor believes what it is told of its host, boot, PID namespace and wall clock, and does one thing at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import solorun
from solorun import claim, history, label, process, refusal, registry, start, status
from solorun.errors import SolorunError, explain
from solorun.handshake import Holding
from solorun.hold import Run, hold
from solorun.launch import LaunchPlan
from solorun.owner import Here
from solorun.progress import read_progress
from solorun.record import read_events
from solorun.settings import Settings
from solorun.stop import StopPolicy, stop
from solorun.supervisor import Audience
from tests.processes.old_trainer import OldLock

_BACKSTOP_S = 600
_wall_clock = time.time


class Actor:
    """One process: holds, beats, leaves, forks, as it is told.

    Args:
        line: where it hears and answers, a JSON object per line.
    """

    def __init__(self, line: socket.socket) -> None:
        self.line = line
        self.heard = b""
        self.holding: hold | None = None
        self.running: Run | None = None
        self.old: OldLock | None = None
        self.step = 0

    def play(self) -> None:
        """Obey until the line is closed, or the held run is asked to stop."""
        while (asked := self._hear()) is not None:
            answer = getattr(self, asked.pop("do"))(**asked)
            self.line.sendall(json.dumps(answer).encode() + b"\n")
        if self.running is not None and self.running.should_stop:
            code = self.running.exit_code
            self.leave()
            os._exit(code)

    def _hear(self) -> dict[str, Any] | None:
        self.line.settimeout(0.02)
        while b"\n" not in self.heard:
            if self.running is not None and self.running.should_stop:
                return None
            with contextlib.suppress(TimeoutError):
                data = self.line.recv(1 << 16)
                if not data:
                    return None
                self.heard += data
        line, _, self.heard = self.heard.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def clock(self, offset: float) -> None:
        """Believe that the wall clock is so many seconds ahead."""
        time.time = lambda: _wall_clock() + offset

    def hold(self, directory: str) -> dict[str, Any]:
        """Become the run of a directory."""
        self.holding = hold(directory, settle_s=0, exit_on_stop=False)
        try:
            self.running = self.holding.__enter__()
        except SolorunError as error:
            self.holding = None
            return {"refused": error.exit_code, "said": explain(error)}
        return {"run": self.running.run_id, "previous": self.running.previous_run_id}

    def beat(self) -> None:
        """Report a step."""
        self.step += 1
        if self.running is not None:
            self.running.progress(self.step, 1000)

    def leave(self) -> None:
        """End the run well."""
        if self.holding is not None:
            self.holding.__exit__(None, None, None)
        self.holding = self.running = None

    def crash(self) -> None:
        """End the run with an error."""
        if self.holding is not None:
            error = RuntimeError("the loss is nowhere to be found")
            self.holding.__exit__(RuntimeError, error, None)
        self.holding = self.running = None

    def fork(self) -> int:
        """A worker that keeps every descriptor, as `fork` leaves it."""
        pid = os.fork()
        if pid == 0:
            self.line.close()
            signal.alarm(_BACKSTOP_S)
            while True:
                signal.pause()
        return pid

    def spawn(self) -> int:
        """A worker that keeps only the environment, as `spawn` and `Popen` leave it."""
        return subprocess.Popen(["/bin/sleep", str(_BACKSTOP_S)], start_new_session=True).pid

    def old_style(self, directory: str) -> bool:
        """Do as the first trainers did: True when its PID file says that it may."""
        self.old = OldLock(directory)
        if not self.old.acquire():
            self.old = None
            return False
        os.utime(os.path.join(directory, "training.lock"), (time.time(), time.time()))
        return True

    def old_leave(self) -> None:
        """Remove the PID file, without a look at whose it is."""
        if self.old is not None:
            self.old.release()
        self.old = None

    def check(self, directory: str) -> bool:
        """What `solorun check` clears."""
        return claim.clear_stale(Path(directory), time.time()) is not None

    def stop(self, directory: str) -> str:
        """`solorun stop`."""
        try:
            return type(stop(Path(directory), StopPolicy(10.0))).__name__
        except SolorunError as error:
            return f"refused {error.exit_code}: {explain(error)}"

    def supervise(self, directory: str) -> dict[str, Any]:
        """`solorun start DIR -- sleep`; ends with its command."""
        self.line.settimeout(None)

        def told(report: object) -> None:
            if isinstance(report, Holding):
                answer = {"run": report.run_id, "pid": report.pid}
                self.line.sendall(json.dumps(answer).encode() + b"\n")

        plan = LaunchPlan(("/bin/sleep", str(_BACKSTOP_S)), Path("/"), dict(os.environ), "foreground")
        try:
            start.in_foreground(plan, Path(directory), Settings(settle_s=0), None, Audience(None, told))
        except SolorunError as error:
            return {"refused": error.exit_code, "said": explain(error)}
        os._exit(0)

    def look(self, directory: str) -> dict[str, Any]:
        """What status and history tell of a directory, and what its journal holds."""
        state, evidence = status.examine(directory, time.time(), Settings(), window_s=0.0, sleep=lambda _s: None)
        row = status.as_row(directory, state, evidence, time.time())
        fd = os.open(directory, os.O_RDONLY)
        try:
            told = [event for event in read_events(fd) if event["event"] in ("started", "ended", "found dead")]
            beat = read_progress(fd)
        finally:
            os.close(fd)
        return {
            "state": row["state"],
            "detail": row["detail"],
            "step": beat.step if beat else None,
            "journal": [[event["event"], event.get("run_id"), event.get("parent")] for event in told],
            "history": [[past.record.run_id, past.record.state] for past in history.runs_of(Path(directory))],
        }


def serve(line: socket.socket) -> None:
    """Make actors, and reap those that were killed, until the line is closed."""
    claim.SURVIVORS_S = 0.0  # nobody here is about to notice that its parent died
    label.EMPTY_GRACE_S = 0.01
    refusal._PUBLISHING_S = 0.02
    for module in ("shlex", "textwrap", "traceback", "pwd", *_rooms()):
        importlib.import_module(module)  # another user may not be allowed to read where they lie
    registry.note = lambda *_: None  # type: ignore[assignment]  # the user's list of runs is another test's
    while data := line.recv(1 << 16):
        asked = json.loads(data)
        if "reap" in asked:
            _, wait_status = os.waitpid(asked["reap"], 0)
            line.sendall(json.dumps(wait_status).encode())
            continue
        near, far = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            line.close()
            near.close()
            _begin(asked, far)
        far.close()
        socket.send_fds(line, [json.dumps(pid).encode()], [near.fileno()])
        near.close()


def _rooms() -> list[str]:
    found = pkgutil.iter_modules(solorun.__path__, "solorun.")
    return [room.name for room in found if not room.name.endswith("__main__")]


def _begin(asked: dict[str, Any], line: socket.socket) -> None:
    code = 70
    try:
        os.setsid()
        os.umask(0)
        signal.alarm(_BACKSTOP_S)
        if asked["user"]:
            os.setgroups([])
            os.setresgid(asked["user"], asked["user"], asked["user"])
            os.setresuid(asked["user"], asked["user"], asked["user"])
        process._place[:] = [Here(**asked["place"])]
        actor = Actor(line)
        actor.clock(asked["offset"])
        actor.play()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def forked_server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A server as a process of its own, and the line to it."""
    near, far = socket.socketpair()
    root = str(Path(__file__).parents[2])
    own = ("SOLORUN_RUN_ID", "SOLORUN_LOCK_FD", "SOLORUN_SUPERVISOR")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tests.faults.actor", str(far.fileno())]
    made = subprocess.Popen(command, pass_fds=[far.fileno()], env=environment, cwd=root)
    far.close()
    return made, near


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
