"""End several claimants of a directory together: ask each once, wait, prove, and go further only when told to."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from enum import Enum, auto

from solorun import process
from solorun.frozen import dataclass
from solorun.grouping import Claimant
from solorun.owner import ProcessId

_POLL_S = 0.05
_TERM_S = 10.0
_KILL_S = 10.0


class Move(Enum):
    """What comes next."""

    WAIT = auto()
    TERM = auto()
    KILL = auto()
    GIVE_UP = auto()
    DONE = auto()


@dataclass(frozen=True, slots=True)
class Patience:
    """How far to go.

    Args:
        ask_s: seconds to wait after asking.
        term: whether SIGTERM may follow without `kill`: for what is left of a run that is over.
        kill: whether SIGTERM and then SIGKILL may follow.
    """

    ask_s: float
    term: bool = False
    kill: bool = False


def next_move(patience: Patience, since_s: float, *, alive: bool, sent: int) -> Move:
    """Decide the next move.

    Args:
        patience: how far to go.
        since_s: seconds since the last signal.
        alive: whether any of them lives.
        sent: the strongest signal so far.
    """
    if not alive:
        return Move.DONE
    if sent == signal.SIGINT:
        if since_s < patience.ask_s:
            return Move.WAIT
        return Move.TERM if patience.term or patience.kill else Move.GIVE_UP
    if sent == signal.SIGTERM:
        if since_s < _TERM_S:
            return Move.WAIT
        return Move.KILL if patience.kill else Move.GIVE_UP
    return Move.WAIT if since_s < _KILL_S else Move.GIVE_UP


def end_all(
    claimants: Iterable[Claimant],
    patience: Patience,
    *,
    ask: Iterable[Claimant] | None = None,
    asked: Callable[[Claimant, ProcessId, int], None] = lambda _one, _whom, _number: None,
    tell: Callable[[str], None] = lambda _line: None,
    while_waiting: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[ProcessId, ...]:
    """Ask all of them to end, and wait; who still lives at the end.

    Args:
        claimants: whom.
        patience: how far to go.
        ask: those of them that have not been asked yet; None for all.
        asked: called for each process that was asked, with the signal.
        tell: told in one line what is going on.
        while_waiting: called at every look.
        clock: monotonic seconds.
        sleep: waits.

    Raises:
        PermissionError: one of them belongs to another user; some may have been asked by then.
    """
    everyone = tuple(claimants)
    for one in everyone if ask is None else ask:
        for whom, number in one.ask:
            tell(f"asking PID {whom.pid} to stop ({process.signal_name(number)})")
            if process.send(whom, number):
                asked(one, whom, number)
    sent, since = int(signal.SIGINT), clock()
    while True:
        while_waiting()
        living = [member for one in everyone for member in one.members if process.is_alive(member)]
        move = next_move(patience, clock() - since, alive=bool(living), sent=sent)
        if move in (Move.DONE, Move.GIVE_UP):
            return tuple(living)
        if move is not Move.WAIT:
            sent, since = (signal.SIGTERM if move is Move.TERM else signal.SIGKILL), clock()
            pids = ", ".join(str(member.pid) for member in living)
            tell(f"PID {pids} still live: {process.signal_name(sent)}")
            _signal(living, {guard for one in everyone for guard in one.guards}, sent)
        sleep(_POLL_S)


def _signal(living: list[ProcessId], guards: set[ProcessId], number: int) -> None:
    """Signal the run, and its guards only when they are all that is left: a guard writes down how its run ended."""
    for member in [one for one in living if one not in guards] or living:
        process.send(member, number)
