"""What a run's processes use beside the one that holds the directory: they hear a stop, and write nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from solorun.stopping import StopRequest


class Follower:
    """A process of a run that another process holds (rank 1 and up of a data-parallel trainer).

    Used as `with Follower() as run`: SIGINT, SIGTERM and SIGHUP then ask for a stop, as under `hold`.
    """

    def __init__(self) -> None:
        self._stop = StopRequest()

    def __enter__(self) -> Self:
        self._stop.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The handlers stay, deaf: what a launcher sends to all while one of them leaves must not change its exit code.
        self._stop.leaving = True

    @property
    def should_stop(self) -> bool:
        """Whether to leave at the next safe point."""
        return self._stop.asked

    @property
    def stop_reason(self) -> str:
        """Why, empty while nothing asks for a stop."""
        return self._stop.reason

    @property
    def exit_code(self) -> int:
        """What the process shall exit with: 0, 128 + signal after a stop, 1 after one without a signal."""
        return self._stop.exit_code

    def ask_to_stop(self, reason: str, signal: int | None = None) -> None:
        """Ask for a stop, as a signal would: another process of the run has heard one.

        Args:
            reason: why.
            signal: its number, for the exit code; None where there was none.
        """
        self._stop.ask(reason, signal)
