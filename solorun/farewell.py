"""The end of a run as those are told who were not looking. All pure."""

from __future__ import annotations

from typing import Any

from solorun.causes import outcome
from solorun.frozen import dataclass
from solorun.record import RunRecord
from solorun.wording import ago, printable


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    Args:
        record: of the run that is over.
        seconds: how long it ran.
        checkpoint: name of the newest checkpoint; empty when there is none.
    """

    record: RunRecord
    seconds: float
    checkpoint: str

    @property
    def occasion(self) -> str:
        """A crash, or any other end."""
        return "crash" if self.record.state in ("crashed", "killed") else "end"

    @property
    def text(self) -> str:
        """One line for people."""
        step, total = self.record.last_step, self.record.total_steps
        at = "" if step is None else f", at step {step}{f' of {total}' if total else ''}"
        kept = f"newest checkpoint {printable(self.checkpoint)}" if self.checkpoint else "no checkpoint"
        return f"{printable(outcome(self.record))}{at}, after {ago(self.seconds)}; {kept}"

    @property
    def facts(self) -> dict[str, Any]:
        """The same for programs."""
        names = ("state", "cause", "why", "stopped_by", "exit_code", "signal")
        return {
            **{name: getattr(self.record, name) for name in names},
            "step": self.record.last_step,
            "total": self.record.total_steps,
            "seconds": round(self.seconds, 1),
            "checkpoint": self.checkpoint,
        }
