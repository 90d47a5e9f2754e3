"""What can go wrong for a user of the trainers: each class knows its exit code and the next step."""

from __future__ import annotations


class KssmError(Exception):
    """A user's mistake or a broken surrounding, told in one line.

    Args:
        what: what is wrong and where.
        next_step: what to do next, as a sentence or a command.
    """

    exit_code = 1

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step


class BadUsage(KssmError):
    """A flag or a configuration that cannot work."""

    exit_code = 2


class CorpusError(KssmError):
    """Text or token file that is missing, unreadable, empty or damaged."""


class CheckpointError(KssmError):
    """A checkpoint that is missing, torn or of another format."""


class NoRoom(CheckpointError):
    """A checkpoint that the disk, or a quota, has no room for: it can be written when there is."""


class TooLarge(CheckpointError):
    """A checkpoint larger than a file may be, for this process or on this disk: no later one will fit either."""


class CheckpointMismatch(KssmError):
    """A sound checkpoint of another model, configuration or corpus."""

    exit_code = 2


class LostRank(KssmError):
    """Another process of this run is gone; what rank 0 has is whole, up to the last step."""


class StepFailed(KssmError):
    """A step, evaluation or sample that this process could not make; the weights are as the step before left them."""


class NotFinite(KssmError):
    """A loss or a gradient that is no number, the same on every rank."""


class Stopped(Exception):
    """A stop was asked for while a phase other than a training step was under way."""
