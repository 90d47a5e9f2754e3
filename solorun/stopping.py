"""The wish that a run ends: set by SIGINT, SIGTERM or SIGHUP, read by the run where it can leave safely."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from types import FrameType
from typing import Any

SAME_REQUEST_S = 0.25
"""A second signal within this time is the first one again: `timeout` and shells signal a process and its group."""

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a run to end; it may save first."""


class StopRequest:
    """A flag with a reason. The handler does nothing else: no saving, no printing inside a signal handler."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.reason = ""
        self.leaving = False
        """The run is on its way out: impatience must not interrupt the release of the lock."""
        self._interrupted_at = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the run shall end at its next safe point."""
        return bool(self.reason)

    @property
    def exit_code(self) -> int:
        """What a run that was asked exits with: 128 + signal, 1 where there was no signal; 0 while nothing asks."""
        if not self.asked:
            return 0
        return 128 + self.signal if self.signal else 1

    def ask(self, reason: str, number: int | None = None) -> None:
        """Ask for a stop; the first reason counts."""
        if not self.reason:
            self.signal = number
            self.reason = reason

    def listen(self) -> None:
        """Install the handlers. Outside the main thread Python has none, and only `ask` works.

        SIGINT is taken even when it was inherited as ignored: a script's `nohup cmd &` ignores it, and
        `kill -SIGINT` must work. SIGHUP stays ignored if it was: that is what nohup is for.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in POLITE:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, POLITE)  # a launcher may leave them blocked
        _listening.add(self)

    def forget(self) -> None:
        """Put the handlers back that were there before."""
        for number, before in self._before.items():
            # A handler that was not installed from Python reads as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before.clear()
        _listening.discard(self)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.leaving:
            return
        if number == signal.SIGINT:
            # Twice at the keyboard means at once. One Ctrl-C after another request does not: it may be saving.
            if self._interrupted_at and time.monotonic() - self._interrupted_at > SAME_REQUEST_S:
                raise KeyboardInterrupt
            self._interrupted_at = self._interrupted_at or time.monotonic()
        self.ask(signal.Signals(number).name, number)


_listening: weakref.WeakSet[StopRequest] = weakref.WeakSet()


def _let_terminate_end_a_forked_worker() -> None:
    """`Process.terminate()` must end a worker; the terminal's Ctrl-C still must not, before the run has saved.

    By the system's own default, not by a handler in Python: that one would wait for a worker that blocks.
    """
    if _listening:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_let_terminate_end_a_forked_worker)
