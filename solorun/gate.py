"""A command that is forked but waits at a gate: its PID is known, and can be put into the label, before it executes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from solorun.frozen import dataclass

NOT_LET_THROUGH = 125
CANNOT_EXECUTE = 127

_RESET = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU,
    signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Execution:
    """What the child will execute, and with what.

    Args:
        argv: program and arguments.
        cwd: working directory.
        env: environment, complete.
        output: descriptor that becomes its standard output and error.
        inherited: descriptor that it gets under the same number.
        keeps_hangup_ignored: whether SIGHUP stays ignored, as under nohup.
    """

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    output: int
    inherited: int
    keeps_hangup_ignored: bool


class Gate:
    """The guard's side of a waiting child, the leader of its own process group.

    Args:
        execution: what it will execute when it is let through.
        terminal: descriptor of a terminal whose foreground it gets; -1 for none.
    """

    def __init__(self, execution: Execution, terminal: int) -> None:
        gate, self._gate = os.pipe()
        self._problem, problem = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        # Signals wait over the fork: in the child, our handlers would swallow the one that shall end it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _RESET)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._problem)
            _be_child(execution, gate, problem, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(gate)
        os.close(problem)
        with contextlib.suppress(OSError):  # the child does the same: whoever is first
            os.setpgid(self.pid, self.pid)
        if terminal >= 0:
            with contextlib.suppress(OSError):
                os.tcsetpgrp(terminal, self.pid)

    def let_through(self) -> str:
        """Let it execute; why it could not, empty when it does."""
        with contextlib.suppress(BrokenPipeError):  # a signal ended the child at the gate
            os.write(self._gate, b"go")
        os.close(self._gate)
        with os.fdopen(self._problem, "rb") as pipe:  # ends with the exec, which closes the other side
            return pipe.read().decode("utf-8", "replace")

    def turn_away(self) -> None:
        """Let it leave without having executed anything, as it does by itself when its guard dies."""
        os.close(self._gate)
        os.close(self._problem)


def _be_child(execution: Execution, gate: int, problem: int, mask: set[int]) -> NoReturn:
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        # SIGINT back to its default even if inherited as ignored: `solorun stop` must reach any command.
        for number in _RESET:
            if not (number == signal.SIGHUP and execution.keeps_hangup_ignored):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.read(gate, 2) != b"go":
            os._exit(NOT_LET_THROUGH)
        os.set_inheritable(execution.inherited, True)
        os.dup2(execution.output, 1)
        os.dup2(execution.output, 2)
        os.chdir(execution.cwd)
        os.execvpe(execution.argv[0], execution.argv, execution.env)  # noqa: S606 - no shell on purpose
    except BaseException as error:
        os.write(problem, str(getattr(error, "strerror", None) or error).encode())
    finally:
        os._exit(CANNOT_EXECUTE)
