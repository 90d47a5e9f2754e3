"""The end of a run as those are told who were not looking. All pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solorun import process
from solorun.record import State
from solorun.wording import ago, printable


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, for those who were not looking.

    Args:
        state: completed, interrupted, crashed, killed.
        exit_code: exit status.
        signal: that ended or stopped it.
        why: one line on it.
        seconds: how long it ran.
        step: steps done; None for a run that reports none.
        total: steps wanted.
        checkpoint: name of the newest checkpoint; empty when there is none.
    """

    state: State
    exit_code: int
    signal: int | None
    why: str
    seconds: float
    step: int | None
    total: int | None
    checkpoint: str

    @property
    def occasion(self) -> str:
        """A crash, or any other end."""
        return "crash" if self.state in ("crashed", "killed") else "end"

    @property
    def text(self) -> str:
        """One line for people."""
        reason = process.signal_name(self.signal) if self.signal else ""
        if self.state == "crashed":
            reason = f"exit status {self.exit_code}"
        if self.why and self.why != reason:
            reason += f"{': ' if reason else ''}{printable(self.why)}"
        step = "" if self.step is None else f" at step {self.step}{f' of {self.total}' if self.total else ''}"
        kept = f"newest checkpoint {printable(self.checkpoint)}" if self.checkpoint else "no checkpoint"
        return f"{self.state}{step} after {ago(self.seconds)}{f' ({reason})' if reason else ''}; {kept}"

    @property
    def facts(self) -> dict[str, Any]:
        """The same for programs."""
        told = {name: getattr(self, name) for name in Ending.__slots__}
        return {**told, "seconds": round(self.seconds, 1)}
