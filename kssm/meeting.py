"""Where the ranks of a run meet: the launcher's key store, at which all wait for rank 0's word.

The word is what to train, or an exit code. Only when all have heard it is a process group formed, so that nobody hangs
in one when rank 0 is refused.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kssm.errors import LostRank, Stopped
from kssm.launched import Launch

_MEET_S = 600.0
_LEAVE_S = 60.0
_ANSWER_S = 5.0
_LOOK_S = 0.05
_CONNECT = timedelta(seconds=60)

_WORD, _HEARD, _LEFT, _GO = "word", "heard", "left", "go"


class Stoppable(Protocol):
    """What a rank asks and tells of a stop."""

    @property
    def should_stop(self) -> bool:
        """Whether this process was asked to stop."""

    @property
    def exit_code(self) -> int:
        """What it shall exit with; 0 while nothing asks for a stop."""

    def ask_to_stop(self, reason: str, signal: int | None = None, /) -> None:
        """Ask for a stop, as a signal would."""


def meet(launch: Launch, should_leave: Callable[[], bool] = lambda: False) -> Store:
    """Connect to the key store where the ranks meet; each attempt of torchrun has keys of its own.

    Args:
        launch: this process.
        should_leave: asked while there is no store yet; if it says so, that is waited for a minute at most.

    Raises:
        LostRank: nobody offers the store.
    """
    deadline = time.monotonic() + _MEET_S
    # Torch would wait inside its own code, where no signal is heard, and complain of each attempt.
    while launch.rank and not _is_offered():
        if should_leave():  # rank 0 counts on this one, and has to be told
            deadline = min(deadline, time.monotonic() + _LEAVE_S)
            should_leave = _never
        if launch.is_orphaned or time.monotonic() > deadline:
            raise LostRank("rank 0 does not come to where the ranks meet")
        time.sleep(_LOOK_S)
    return _store(launch)


def _never() -> bool:
    return False


@functools.cache
def _store(launch: Launch) -> Store:
    """One for the whole process: where rank 0 offers it, it ends with the object, and the others would be cut off."""
    with or_lost("the ranks cannot meet"):
        store, _, _ = next(rendezvous("env://", timeout=_CONNECT))
    # Of an earlier attempt the agent's store may still hold the addresses.
    return PrefixStore(f"kssm/{launch.attempt}", store)


def _is_offered() -> bool:
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 1.0).close()
    except OSError:
        return False
    return True


def say(store: Store, word: object) -> None:
    """Rank 0's word to the others: what to train, or an exit code.

    Raises:
        LostRank: the store is gone, and with it the launcher.
    """
    with or_lost("the ranks cannot be told what to train"):
        store.set(_WORD, pickle.dumps(word))  # type: ignore[arg-type] # the stub knows text alone


def gather(store: Store, launch: Launch, run: Stoppable) -> None:
    """Wait until all others have heard the word, then let all form the group; they come to it, or nobody does.

    To wait for each other in torch's own code takes no notice of signals, nor of a rank that has left.

    Raises:
        Stopped: a rank was asked to stop meanwhile.
        LostRank: a rank does not come.
    """
    deadline, code = time.monotonic() + _MEET_S, 1
    with or_lost("the ranks cannot be gathered"):
        try:
            while True:
                _hear_of_stops(store, launch, run)
                come = store.add(_HEARD, 0) + 1
                if come == launch.world:
                    code = 0
                    return
                if time.monotonic() > deadline:
                    raise LostRank(f"of {launch.world} ranks only {come} have come", "start them all again")
                time.sleep(_LOOK_S)
        finally:
            store.set(_GO, str(run.exit_code or code))


def _hear_of_stops(store: Store, launch: Launch, run: Stoppable) -> None:
    if store.check([_LEFT]):
        run.ask_to_stop(*reason_of_stop(int(store.get(_LEFT)), launch))
    if launch.is_orphaned:
        run.ask_to_stop(*reason_of_stop(1, launch))
    if run.should_stop:
        raise Stopped


def reason_of_stop(code: int, launch: Launch) -> tuple[str, int | None]:
    """Why a rank stops that was not asked itself, and the signal that another one heard."""
    if launch.is_orphaned:
        return "torchrun is gone", None
    number = code - 128 if code > 128 else None
    name = f"{signal.Signals(number).name}: " if number else ""
    return f"{name}another rank was asked to stop", number


def hear(store: Store, launch: Launch, run: Stoppable) -> Any:
    """Rank 0's word, waited for however long it reads text, and its leave to form the group.

    Returns:
        The word; the exit code, where there is nothing to form.

    Raises:
        LostRank: rank 0 or the launcher is gone.
    """
    with or_lost("rank 0 is gone"):
        while not store.check([_WORD]):
            if run.should_stop:
                store.set(_LEFT, str(run.exit_code))
                return run.exit_code
            _look_around(launch)
        word = pickle.loads(store.get(_WORD))  # noqa: S301 - rank 0 of this very run wrote it
        store.add(_HEARD, 1)
        if isinstance(word, int):
            return word
        return _leave_given(store, launch, run) or word


def _leave_given(store: Store, launch: Launch, run: Stoppable) -> int:
    """0 to form the group, else an exit code. Whoever is counted on leaves alone only when rank 0 answers no more."""
    asked_at: float | None = None
    while not store.check([_GO]):
        if run.should_stop and asked_at is None:
            asked_at = time.monotonic()
            store.set(_LEFT, str(run.exit_code))
        if asked_at is not None and time.monotonic() - asked_at > _ANSWER_S:
            return run.exit_code
        _look_around(launch)
    return int(store.get(_GO))


def _look_around(launch: Launch) -> None:
    if launch.is_orphaned:
        raise LostRank("torchrun is gone")
    time.sleep(_LOOK_S)


def send_home(launch: Launch, code: int) -> None:
    """Tell ranks that still wait for a word to exit with this code, and stay until they have heard it."""
    if dist.is_initialized() or launch.is_orphaned:
        return  # they have their word, or the store is gone with torchrun
    with contextlib.suppress(LostRank, dist.DistError, RuntimeError):
        store = meet(launch)
        if store.check([_WORD]):
            return
        say(store, code)
        deadline = time.monotonic() + _LEAVE_S
        while store.add(_HEARD, 0) < launch.world - 1 and time.monotonic() < deadline and not launch.is_orphaned:
            time.sleep(_LOOK_S)


@contextlib.contextmanager
def or_lost(what: str) -> Iterator[None]:
    """Failures of the connection as what they are: another rank died, and torchrun tells which."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, LostRank) or not is_connection(error):
            raise
        raise LostRank(f"{what} ({_line(error)})", "the launcher tells which one; start again to go on") from None


def is_connection(error: BaseException) -> bool:
    """Whether an error of torch says that another rank cannot be reached."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "Gloo", "NCCL", "Connection"))


def _line(error: BaseException) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return text.rpartition("] ")[2][:160] or text[:160]
