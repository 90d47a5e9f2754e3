"""The wish that a run ends: signals set a flag, and nothing more."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from solorun import stopping
from solorun.stopping import SAME_REQUEST_S, StopRequest

from .stage import Child, Spawner

LISTENING = """
    import os, sys, time
    from solorun.stopping import StopRequest
    stop = StopRequest()
    stop.listen()
    print("listening", flush=True)
    try:
        asked = False
        while not (stop.asked and os.path.exists(sys.argv[1])):
            if stop.asked and not asked:
                asked = True
                print("asked", stop.reason, stop.signal, flush=True)
            time.sleep(0.005)
    except KeyboardInterrupt:
        print("at once", flush=True)
        sys.exit(7)
    print("done", flush=True)
"""


@pytest.fixture
def finish(tmp_path: Path) -> Path:
    """The file that lets a listening child end."""
    return tmp_path / "finish"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_polite_signal_sets_the_flag_and_the_run_goes_on(
    spawn: Spawner, finish: Path, number: signal.Signals
) -> None:
    child = spawn.python(LISTENING, finish)
    child.wait_for("listening")
    child.signal(number)
    child.wait_for(f"asked {number.name} {int(number)}")
    finish.touch()
    assert child.wait() == 0
    assert "done" in child.text()


def ignoring(spawn: Spawner, number: signal.Signals, finish: Path) -> Child:
    starter = f"""
        import os, signal, sys
        signal.signal({int(number)}, signal.SIG_IGN)
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1]])
    """
    import textwrap

    child = spawn.python(starter, finish, textwrap.dedent(LISTENING))
    child.wait_for("listening")
    return child


def test_sigint_inherited_as_ignored_still_works(spawn: Spawner, finish: Path) -> None:
    child = ignoring(spawn, signal.SIGINT, finish)
    child.signal(signal.SIGINT)
    child.wait_for("asked SIGINT")
    finish.touch()
    assert child.wait() == 0


def test_sighup_inherited_as_ignored_stays_ignored_and_the_other_two_work(spawn: Spawner, finish: Path) -> None:
    child = ignoring(spawn, signal.SIGHUP, finish)
    child.signal(signal.SIGHUP)
    child.signal(signal.SIGTERM)
    child.wait_for("asked SIGTERM")
    finish.touch()
    assert child.wait() == 0


def test_under_nohup_a_closed_terminal_stops_nothing_and_sigint_does(spawn: Spawner, finish: Path) -> None:
    import sys
    import textwrap

    child = spawn("nohup", sys.executable, "-c", textwrap.dedent(LISTENING), str(finish))
    child.wait_for("listening")
    child.signal(signal.SIGHUP)
    child.signal(signal.SIGINT)
    child.wait_for("asked SIGINT")
    finish.touch()
    assert child.wait() == 0


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: found.now)
    return found


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    found = StopRequest()
    found.listen()
    yield found
    found.forget()


def test_a_second_sigint_after_a_moment_leaves_at_once(clock: Clock, stop: StopRequest) -> None:
    signal.raise_signal(signal.SIGINT)
    clock.now += SAME_REQUEST_S + 0.01
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stop.reason == "SIGINT"


def test_two_sigints_within_a_moment_are_one(clock: Clock, stop: StopRequest) -> None:
    signal.raise_signal(signal.SIGINT)
    clock.now += SAME_REQUEST_S - 0.01
    signal.raise_signal(signal.SIGINT)
    assert stop.asked


def test_a_second_sigint_in_a_real_process_leaves_at_once(spawn: Spawner, finish: Path) -> None:
    child = spawn.python(LISTENING, finish)
    child.wait_for("listening")
    child.signal(signal.SIGINT)
    child.wait_for("asked")
    threading.Event().wait(SAME_REQUEST_S + 0.1)  # the time itself is what is tested
    child.signal(signal.SIGINT)
    assert child.wait() == 7


def test_sigterm_however_often_never_leaves_at_once(clock: Clock, stop: StopRequest) -> None:
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
        clock.now += 5
    assert (stop.signal, stop.reason) == (signal.SIGTERM, "SIGTERM")


def test_one_sigint_after_a_sigterm_does_not_cut_the_saving_short_but_two_do(clock: Clock, stop: StopRequest) -> None:
    signal.raise_signal(signal.SIGTERM)
    clock.now += 5
    signal.raise_signal(signal.SIGINT)
    clock.now += 5
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGTERM


def test_one_sigint_after_a_lost_directory_does_not_cut_the_saving_short(clock: Clock, stop: StopRequest) -> None:
    stop.ask("the results directory was moved")
    clock.now += 5
    signal.raise_signal(signal.SIGINT)
    assert stop.reason == "the results directory was moved"


def test_while_leaving_a_signal_interrupts_nothing_any_more(clock: Clock, stop: StopRequest) -> None:
    signal.raise_signal(signal.SIGINT)
    stop.leaving = True
    for _ in range(3):
        clock.now += 5
        signal.raise_signal(signal.SIGINT)


def test_the_first_reason_counts() -> None:
    stop = StopRequest()
    assert not stop.asked
    stop.ask("the directory was moved")
    stop.ask("SIGINT", 2)
    assert (stop.asked, stop.reason, stop.signal) == (True, "the directory was moved", None)


def test_the_handlers_that_were_there_before_are_put_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    stop = StopRequest()
    stop.listen()
    assert signal.getsignal(signal.SIGINT) != before[0]
    stop.forget()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_outside_the_main_thread_listening_does_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopRequest()
    thread = threading.Thread(target=lambda: (stop.listen(), stop.forget()))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before


WORKERS = """
    import multiprocessing, signal, sys, time
    from solorun.stopping import StopRequest
    stop = StopRequest()
    stop.listen()
    context = multiprocessing.get_context("fork")
    working = context.Event()
    def work():
        working.set()
        time.sleep(600)
    worker = context.Process(target=work)
    worker.start()
    working.wait()
    {act}
    worker.join()
    print("worker ended", worker.exitcode, flush=True)
"""


def test_a_forked_worker_dies_of_terminate(spawn: Spawner) -> None:
    child = spawn.python(WORKERS.format(act="worker.terminate()"))
    child.wait_for(f"worker ended -{int(signal.SIGTERM)}")
    assert child.wait() == 0


def test_a_forked_worker_does_not_die_of_the_terminals_ctrl_c(spawn: Spawner) -> None:
    act = "import os; os.kill(worker.pid, signal.SIGINT); time.sleep(0.2); assert worker.is_alive(); worker.kill()"
    child = spawn.python(WORKERS.format(act=act))
    child.wait_for(f"worker ended -{int(signal.SIGKILL)}")
    assert child.wait() == 0
