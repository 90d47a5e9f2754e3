"""A write beside the training: a thread reads the living tensors while the next step computes.

Between two updates nothing changes what a checkpoint holds: the optimizer alone does. So nothing is copied; who is
about to change the tensors waits until they are read. What follows, fsync and rename, needs them no more.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")

_POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class GivenUp(Exception):
    """The write was given up; nothing of it stays."""


class Writing(Generic[T]):
    """One write on a thread of its own, begun at once.

    Args:
        work: `work(between, read)` does it: calls `between` before each piece, lets pass what that raises, and calls
            `read` once it needs the tensors no more.
        name: of the thread.
    """

    def __init__(self, work: Callable[[Callable[[], None], Callable[[], None]], T], name: str = "kssm-writer") -> None:
        self._work = work
        self._read, self._over, self._given_up = (threading.Event() for _ in range(3))
        self._made: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no more threads: then the training stands still for it
            self._do()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self._over.is_set()

    def wait_read(self) -> None:
        """Return once the tensors may change; a write that failed holds nothing up."""
        # Without a time limit: a trainer that waits for a dead disk must look as still as it is, or no watcher sees it.
        self._read.wait()

    def wait(self) -> None:
        """Return once it has ended, well or not."""
        self._over.wait()
        # A thread that still lets go of tensors while Python is torn down would abort a run that is complete.
        if self._thread.ident is not None:
            self._thread.join()

    def result(self) -> T:
        """What the work returned, once it has ended; raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._made  # type: ignore[return-value]  # there is one when there is no error

    def give_up(self) -> None:
        """Have it end before its next piece, and wait for that; what is only being made durable is still finished."""
        self._given_up.set()
        self.wait()

    def _run(self) -> None:
        # A signal must reach the thread that answers it, also where the system would hand it to any.
        signal.pthread_sigmask(signal.SIG_BLOCK, _POLITE)
        self._do()

    def _do(self) -> None:
        try:
            self._made = self._work(self._require_wanted, self._read.set)
        except BaseException as error:  # told to whoever waits, there is nobody else
            self._error = error
        finally:
            self._over.set()  # first: who waits only for the tensors must know of a failure before it changes them
            self._read.set()

    def _require_wanted(self) -> None:
        if self._given_up.is_set():
            raise GivenUp


def within_reach(tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], bool]:
    """The tensors as a thread can read them beside the training.

    Args:
        tensors: by name. On the CPU they are read where they lie. If any is on an accelerator, all are copied to the
            CPU here and now: another thread's copies would queue behind the step's own work, and Metal's queue is not
            made for two threads. That takes memory for one copy of them until they are written.

    Returns:
        Tensors on the CPU, and whether they are living ones, which nobody may change before they are read.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return tensors, True
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, False
