"""Start a run: take its turn, claim the directory, supervise the command; here, or where it goes on by itself."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from solorun import waiting
from solorun.claim import Claim, claim
from solorun.errors import DirectoryProblem, Held, NotSafe, SolorunError, directory_problem, explain
from solorun.frozen import dataclass
from solorun.handshake import Failed, Holding, Listener, Over, Report, Waiting, failure, teller
from solorun.label import look
from solorun.launch import LaunchPlan
from solorun.owner import Held as HeldBy
from solorun.settings import Settings
from solorun.supervisor import Audience, Ended, supervise
from solorun.wording import ago

LOOK_EVERY_S = 0.3
FIRST_STEPS_S = 1.0
"""How long a background start goes on listening: most wrong commands end within this time, and can be told at once."""

Tell = Callable[[Report], None]


@dataclass(frozen=True, slots=True)
class Queued:
    """A start that waits for its turn.

    Args:
        require_safe: raises NotSafe while it must not start although the directory is free; asked when its turn comes.
    """

    require_safe: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Started:
    """A run that goes on by itself.

    Args:
        holding: it holds the directory.
        over: it ended within the first moment.
    """

    holding: Holding
    over: Over | None


def in_foreground(
    plan: LaunchPlan,
    directory: Path,
    settings: Settings,
    turn: Queued | None,
    audience: Audience,
) -> Ended:
    """Run a command as the only one in a results directory, to its end.

    Args:
        plan: what to start.
        directory: the results directory; made if it is missing.
        settings: how long to settle, what to watch for.
        turn: how it queues behind the run that is there; None refuses instead.
        audience: who follows it; told also when it waits.

    Raises:
        Held: another run holds it (without queueing), others wait for it, or the wait was called off.
        Refused, DirectoryProblem, BadUsage: as `claim` and `supervise` do.
    """
    if turn is None:
        made = _claim_unless_queued(directory, settings)
    else:
        made = _take_turn(turn, plan, directory, settings, audience.tell)
    return supervise(plan, made, audience, settings)


def in_background(plan: LaunchPlan, directory: Path, settings: Settings, turn: Queued | None) -> Started | Waiting:
    """The same in a session of its own, that no hang-up reaches; returns when it is known what became of it.

    Raises:
        The same, as they happened in the background; then nothing was started.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _go_into_background(plan, directory, settings, turn, write)
    os.close(write)
    with contextlib.suppress(ChildProcessError):  # whoever started us ignores SIGCHLD: the kernel reaps it
        os.waitpid(child, 0)  # it only made the supervisor, in a session that has no terminal and never gets one
    listener = Listener(read)
    try:
        return await_start(listener, lambda: not listener.closed)
    finally:
        listener.close()


def await_start(listener: Listener, is_alive: Callable[[], bool]) -> Started | Waiting:
    """Hear what became of a start that goes on by itself.

    Args:
        listener: the hearing end.
        is_alive: whether the other side may still say something.

    Raises:
        SolorunError: it failed, with the reason from there.
    """
    is_over = False
    while True:
        match listener.hear(0.5):
            case Failed() as failed:
                raise failed.error()
            case Waiting() as queued:
                return queued
            case Holding() as holding:
                over = listener.hear(FIRST_STEPS_S)
                return Started(holding, over if isinstance(over, Over) else None)
            case _ if is_over:
                raise DirectoryProblem(
                    "the start ended before it could say how", "start in the foreground to see why it does"
                )
            case _:  # heard once more: it may say how, and end, between the two looks
                is_over = not is_alive()


def _go_into_background(
    plan: LaunchPlan, directory: Path, settings: Settings, turn: Queued | None, write: int
) -> NoReturn:
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _let_go_of_the_terminal()
        tell = teller(write)
        try:
            in_foreground(plan, directory, settings, turn, Audience(None, tell))
        except SolorunError as error:
            tell(failure(error))
            with contextlib.suppress(OSError):
                os.write(2, f"solorun: {explain(error)}\n".encode())
        except BaseException as error:
            tell(failure(error))
            raise
    finally:
        os._exit(0)


def _let_go_of_the_terminal() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)


def _claim_unless_queued(directory: Path, settings: Settings) -> Claim:
    queue = waiting.read_queue(directory)
    if queue and not _is_held(directory):
        first = queue[0]
        raise Held(
            f"{str(directory)!r} is free, but {len(queue)} wait for it, first PID {first.process.pid} of {first.user}",
            "queue behind them: add --wait",
        )
    return claim(directory, time.time, settings.settle_s)


def _take_turn(turn: Queued, plan: LaunchPlan, directory: Path, settings: Settings, tell: Tell) -> Claim:
    """Wait for those ahead and for the run that is there, then claim; the place in the queue is given up in the end."""
    try:
        ticket = waiting.join(directory, plan.argv, time.time())
    except OSError as error:
        raise directory_problem(error, "queue in", directory) from None
    try:
        return _wait_for_turn(ticket, turn, directory, settings, tell)
    finally:
        ticket.leave()


def _wait_for_turn(ticket: waiting.Ticket, turn: Queued, directory: Path, settings: Settings, tell: Tell) -> Claim:
    told: Report | None = None
    while True:
        ahead = ticket.ahead()
        if not ahead and not _is_held(directory):
            try:
                turn.require_safe()
                made = claim(directory, time.time, settings.settle_s)
            except (Held, NotSafe) as there:  # it was quicker, what is left of a run lives on, or a device is used
                behind = there.what
            else:
                if ticket.redeem():
                    return made
                # Whoever takes the ticket away decides: what was told to be called off must not run after all.
                made.lock.release()
                raise _called_off(directory)
        else:
            behind = _who_is_there(directory, ahead)
        report = Waiting(len(ahead), behind, os.getpid())
        if report != told:
            tell(report)
            told = report
        time.sleep(LOOK_EVERY_S)
        if ticket.is_called_off():
            raise _called_off(directory)


def _called_off(directory: Path) -> Held:
    return Held(f"the wait for {str(directory)!r} was called off", "start it again, with or without --wait")


def _who_is_there(directory: Path, ahead: tuple[waiting.Waiter, ...]) -> str:
    try:
        verdict = look(directory)
    except OSError as error:
        return str(error.strerror)
    holder = "the end of a run"
    if isinstance(verdict, HeldBy):
        owner = verdict.owner
        holder = f"PID {verdict.pid}" + (f" of {owner.user} (since {_clock(owner.since)})" if owner else "")
    return holder + "".join(f", then PID {one.process.pid} of {one.user}" for one in ahead)


def _clock(moment: float) -> str:
    return time.strftime("%H:%M", time.localtime(moment))


def _is_held(directory: Path) -> bool:
    try:
        return isinstance(look(directory), HeldBy)
    except OSError:  # it does not exist yet, or is lost: the claim says so
        return False


def waiting_line(report: Waiting) -> str:
    """How a start that waits is told to a person."""
    place = "" if not report.ahead else f" ({report.ahead} ahead in the queue)"
    return f"waiting for {report.behind}{place}"


def ended_line(ended: Ended) -> str:
    """How a run that is over is told to a person."""
    return f"{ended.state} after {ago(ended.seconds)}, exit status {ended.exit_code}"
