"""How long a stop waits, and what it does next. All pure."""

from __future__ import annotations

import signal
from enum import Enum, auto

from solorun.frozen import dataclass

_TERM_GRACE_S = 10.0
_KILL_GRACE_S = 10.0
_AFTER_SAVE_S = 5.0


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """How patient to be.

    Args:
        graceful_s: seconds to wait for the run's own end, with its checkpoint.
        kill: afterwards TERM, then KILL, the whole run.
        save_extension_s: seconds that a save in progress may take beyond that.
    """

    graceful_s: float = 60.0
    kill: bool = False
    save_extension_s: float = 600.0


class Action(Enum):
    """What a stop does next."""

    WAIT = auto()
    TERM = auto()
    KILL = auto()
    GIVE_UP = auto()
    DONE = auto()


def next_action(
    policy: StopPolicy,
    elapsed_s: float,
    *,
    alive: bool,
    sent: int,
    sent_at_s: float = 0.0,
    saving_at_s: float | None = None,
) -> Action:
    """Decide the next action.

    Args:
        policy: how patient to be.
        elapsed_s: seconds since the run was asked.
        alive: whether any process of it lives.
        sent: the strongest signal that was sent so far.
        sent_at_s: when, counted likewise.
        saving_at_s: when a save was last seen in progress, likewise; None when none was.
    """
    if not alive:
        return Action.DONE
    if elapsed_s < policy.graceful_s:
        return Action.WAIT
    # Also with --kill: what is killed in the middle of its last save has lost more than the time.
    if sent != signal.SIGKILL and elapsed_s < _save_deadline(policy, saving_at_s):
        return Action.WAIT
    if not policy.kill:
        return Action.GIVE_UP
    if sent == signal.SIGINT:
        return Action.TERM
    if elapsed_s < sent_at_s + (_TERM_GRACE_S if sent == signal.SIGTERM else _KILL_GRACE_S):
        return Action.WAIT
    return Action.KILL if sent == signal.SIGTERM else Action.GIVE_UP


def _save_deadline(policy: StopPolicy, saving_at_s: float | None) -> float:
    """Until when a save keeps us waiting: as long as it lasts and a moment to leave after it, up to the extension."""
    if saving_at_s is None:
        return 0.0
    return min(saving_at_s + _AFTER_SAVE_S, policy.graceful_s + policy.save_extension_s)
