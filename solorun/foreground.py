"""The terminal in whose foreground a run was started: given to the command, taken back, and Ctrl-Z."""

from __future__ import annotations

import contextlib
import os
import signal


class Foreground:
    """The foreground of the terminal on standard input. Where this process has none, nothing here does anything."""

    def __init__(self) -> None:
        self.terminal = _controlling_terminal()
        """Its descriptor; -1 for none."""

    def take_back(self, group: int) -> None:
        """Take it from a process group, if that one has it."""
        self._hand(group, os.getpgrp())

    def job_control(self, group: int, number: int) -> None:
        """Suspend along with a command, and wake it when the shell wakes us.

        Args:
            group: the command's process group.
            number: the signal that stopped its leader; anything but the terminal's Ctrl-Z is no job control.
        """
        if self.terminal < 0 or number != signal.SIGTSTP:
            return
        self.take_back(group)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._hand(os.getpgrp(), group)  # woken by `fg`; after `bg` the terminal stays the shell's
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGCONT)

    def _hand(self, giver: int, taker: int) -> None:
        """Make a process group the terminal's foreground, if the other one is: never take it from a shell."""
        with contextlib.suppress(OSError):
            if self.terminal >= 0 and os.tcgetpgrp(self.terminal) == giver:
                os.tcsetpgrp(self.terminal, taker)


def _controlling_terminal() -> int:
    try:
        return 0 if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp() else -1
    except OSError:
        return -1
