"""A write on a thread of its own: what it makes others wait for, and how it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kssm.writer import GivenUp, Writing, within_reach

Call = Callable[[], None]
SOON = 60.0


def test_tensors_may_change_once_they_are_read_though_the_disk_is_still_waited_for() -> None:
    disk = threading.Event()

    def work(_between: Call, read: Call) -> str:
        read()
        assert disk.wait(SOON)
        return "durable"

    writing = Writing(work)
    writing.wait_read()
    assert not writing.is_over
    disk.set()
    assert writing.result() == "durable"
    assert writing.is_over


def test_who_would_change_the_tensors_waits_until_they_are_read() -> None:
    slow, order = threading.Event(), list[str]()

    def work(_between: Call, read: Call) -> None:
        assert slow.wait(SOON)
        order.append("read")
        read()

    writing = Writing(work)
    changing = threading.Thread(target=lambda: (writing.wait_read(), order.append("changed")))
    changing.start()
    order.append("computed")
    slow.set()
    changing.join(SOON)
    assert order == ["computed", "read", "changed"]


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("any"), KeyboardInterrupt()])
def test_an_error_frees_the_tensors_and_is_raised_where_the_result_is_asked_for(error: BaseException) -> None:
    def work(_between: Call, _read: Call) -> None:
        raise error

    writing = Writing(work)
    writing.wait_read()
    with pytest.raises(type(error)):
        writing.result()


def test_what_is_given_up_ends_before_its_next_piece_and_is_waited_for() -> None:
    begun, tidied = threading.Event(), list[bool]()

    def work(between: Call, _read: Call) -> None:
        try:
            while True:
                between()
                begun.set()
        finally:
            tidied.append(True)

    writing = Writing(work)
    assert begun.wait(SOON)
    writing.give_up()
    assert tidied == [True]
    with pytest.raises(GivenUp):
        writing.result()


def test_without_another_thread_the_write_is_done_here_and_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writing = Writing(lambda _between, _read: threading.current_thread())
    assert writing.is_over
    assert writing.result() is threading.main_thread()


def test_signals_are_left_to_the_thread_that_answers_them() -> None:
    masks = Writing(lambda _between, _read: signal.pthread_sigmask(signal.SIG_BLOCK, [])).result()
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= masks
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class OnAccelerator:
    """Stands in for a tensor of a device that this machine has not."""

    device = torch.device("mps")

    def detach(self) -> OnAccelerator:
        return self

    def to(self, device: str, *, copy: bool) -> Any:
        assert (device, copy) == ("cpu", True)
        return torch.ones(2)


def test_tensors_on_the_cpu_are_read_where_they_lie() -> None:
    tensors = {"a": torch.ones(3), "b": torch.zeros(1)}
    near, living = within_reach(tensors)
    assert living
    assert all(near[name] is tensors[name] for name in tensors)


def test_with_an_accelerator_everything_is_copied_and_nobody_waits() -> None:
    count = torch.zeros(())
    near, living = within_reach({"a": OnAccelerator(), "optimizer.a.step": count})  # type: ignore[dict-item]
    assert not living
    count += 1
    assert torch.equal(near["a"], torch.ones(2))
    assert near["optimizer.a.step"].item() == 0
