"""What a supervisor hears: the signals that are meant for its run, and that a child has ended or stopped."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from types import FrameType

from solorun.stopping import POLITE

_FOR_THE_RUN = (*POLITE, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """The handlers of a supervisor, until they are put back.

    Args:
        heard: called in the handler, with the number of each signal that is meant for the run.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard = heard
        self._before: dict[int, object] = {}
        self._wake, self._wakeup = os.pipe()

    def listen(self) -> None:
        """Install the handlers; SIGHUP stays ignored if it was: that is what nohup is for."""
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in _FOR_THE_RUN:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                self._before[number] = before
                continue
            self._before[number] = signal.signal(number, self._handle)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _n, _f: None)
        # In the background of its own terminal the supervisor still writes to it and takes it back at the end.
        self._before[signal.SIGTTOU] = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        # A launcher may leave them blocked: then neither we nor the command, which inherits that, could be stopped.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_FOR_THE_RUN, signal.SIGCHLD))

    @property
    def ignores_hangup(self) -> bool:
        """Whether SIGHUP was ignored before, as under nohup."""
        return self._before.get(signal.SIGHUP) == signal.SIG_IGN

    def wait(self, seconds: float) -> None:
        """Until a signal comes, for at most so long."""
        select.select([self._wake], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def restore(self) -> None:
        """Put the handlers back that were there before, and free the descriptors."""
        signal.set_wakeup_fd(-1)
        for number, before in self._before.items():
            # A handler that was not installed from Python reads as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if before is None else before)  # type: ignore[arg-type]
        os.close(self._wake)
        os.close(self._wakeup)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._heard(number)
