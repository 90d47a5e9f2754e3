"""What the guard does with files, as scenes: lock, label, records, journal, archive, queue, and whole commands."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import solorun
from solorun.claim import claim
from solorun.cli.main import main
from solorun.closing import OVER, End
from solorun.owner import Gone
from solorun.process import identify, identify_self, probe
from solorun.rundir import EVENTS, LABEL, LOG, METRICS, OWNER, PRIVATE, RUN
from tests.faults.shim import FIRST_THREAD, OPEN, OTHER_THREADS, READ, WITHOUT_LINKS, WITHOUT_UNNAMED, Shim
from tests.faults.victims import Outcome, Scene, Stage, apart, contents

CHECKPOINTS = {f"checkpoint_{step}.state": b"state of step %d" % step for step in (5, 10, 15)}
_HELD = solorun.Held.exit_code
_GROWING = (LOG, EVENTS, METRICS)


def a_run(stage: Stage) -> int:
    """A short trainer from the first call to the last."""
    with solorun.hold(stage.results, settle_s=0) as run:
        run.log("a line")
        run.describe(fingerprint="abc", parent_run_id=run.previous_run_id)
        run.event("begun", step=0)
        for step in (1, 2):
            run.progress(step, 2, ce=1.5)
        with run.phase("saving"):
            run.event("saved", step=2)
    return run.exit_code


def nothing(stage: Stage) -> None:
    """No results directory yet."""


def a_run_before(stage: Stage) -> None:
    """A run that has ended well, with its checkpoints."""
    a_run(stage)
    for name, data in CHECKPOINTS.items():
        (stage.results / name).write_bytes(data)


def a_killed_run(stage: Stage) -> None:
    """A run that was killed while it trained: label, record, and private files of its."""
    a_run_before(stage)

    def killed() -> None:
        with solorun.hold(stage.results, settle_s=0) as run:
            run.progress(1, 2)
            (stage.results / f"{PRIVATE}1.1.tmp").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    apart(killed, stage.said)


def _a_label(data: bytes) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        stage.results.mkdir()
        (stage.results / LABEL).write_bytes(data or b"%d\n" % _a_dead_pid())

    return prepare


def _a_fifo(stage: Stage) -> None:
    stage.results.mkdir()
    os.mkfifo(stage.results / LABEL)


def _a_dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def relabels(stage: Stage) -> int:
    """Another process of the run is put into the label, and taken out again; the end is written."""
    with stage.shim.resting():
        other, alive = _a_companion()
        stage.tell(str(other))
        there = identify(other)
        assert there is not None
    made = claim(stage.results, time.time, 0)
    try:
        made.publish(identify_self(), ("train",), supervisor=None, adopted=False)
        for one in (there, identify_self()):
            with contextlib.suppress(OSError):  # as the supervisor does: the old label is no worse
                made.relabel(one)
    except BaseException:
        made.abandon()
        raise
    os.close(alive)
    made.end(End("completed", 0, None, ""))
    return 0


def _a_companion() -> tuple[int, int]:
    """A process that ends when this one does, or when the descriptor is closed; its PID and that."""
    ends, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        os.read(ends, 1)
        os._exit(0)
    os.close(ends)
    return pid, alive


def _judge_without_companion(stage: Stage, outcome: Outcome) -> Iterator[str]:
    (pid,) = stage.told()
    deadline = time.monotonic() + 5
    while not isinstance(probe(int(pid)), Gone) and time.monotonic() < deadline:
        time.sleep(0.001)
    yield from judge(stage, outcome)


def restores(stage: Stage) -> int:
    """The label is deleted by hand while the run lives: the keeper's thread puts it back."""
    with solorun.hold(stage.results, settle_s=0) as run, stage.shim.resting():
        (stage.results / LABEL).unlink()
        deadline = time.monotonic() + 3
        while not (stage.results / LABEL).exists() and not run.should_stop and time.monotonic() < deadline:
            time.sleep(0.001)
    return run.exit_code


def archives(stage: Stage) -> int:
    """What `--fresh` does."""
    with solorun.hold(stage.results, settle_s=0) as run:
        run.archive(("checkpoint_*", "best_model.*", "metrics.jsonl"))
    return run.exit_code


def _command(*words: str) -> Callable[[Stage], int]:
    def act(stage: Stage) -> int:
        return main([word.replace("DIR", str(stage.results)) for word in words])

    return act


def judge(stage: Stage, outcome: Outcome, patience_s: float = 0.0) -> Iterator[str]:
    """What must be true of a results directory after anything.

    Args:
        stage: where.
        outcome: of the victim.
        patience_s: how long a command may live on when its supervisor was killed; so long it holds the directory.
    """
    if not outcome.was_killed and not outcome.removals_failed and not _unseen(outcome):
        yield from left_behind(stage, "the failed run", outcome.before)
    yield from lost(stage, outcome)
    deadline = time.monotonic() + patience_s
    while (code := apart(lambda: a_run(stage), stage.said)) == _HELD and time.monotonic() < deadline:
        time.sleep(0.005)
    if code:
        yield f"the next start failed ({code}): {stage.said.read_text()}"
        return
    yield from left_behind(stage, "the next start", {})
    yield from lost(stage, outcome)
    yield from journal_faults(stage.results / EVENTS)
    record = json.loads((stage.results / RUN).read_text())
    if record["state"] != "completed":
        yield f"run.json tells of a run that is {record['state']}"


def _unseen(outcome: Outcome) -> bool:
    """Whether the label could not be looked at, so that nobody could know whose it is."""
    struck = outcome.struck
    return struck is not None and struck.kind in (OPEN, READ) and struck.path.endswith((LABEL, OWNER))


def left_behind(stage: Stage, whose: str, before: Mapping[str, bytes]) -> Iterator[str]:
    for path, data in contents(stage.results).items():
        name = os.path.basename(path)
        is_private = name.startswith(PRIVATE) and name.endswith(".tmp")
        if (name in (LABEL, OWNER) or is_private) and before.get(f"results/{path}") != data:
            yield f"{whose} left {path} ({data[:60].decode(errors='replace').strip()!r})"


def lost(stage: Stage, outcome: Outcome) -> Iterator[str]:
    """Whether something of what was there before is gone; archives count."""
    now = contents(stage.place)
    for path, data in outcome.before.items():
        name = os.path.basename(path)
        found = [found for where, found in now.items() if os.path.basename(where).startswith(name)]
        if name in _GROWING and not any(one.startswith(data) for one in found):
            yield f"{path} lost lines"
        if name in CHECKPOINTS and data not in found:
            yield f"{path} is lost"


def journal_faults(journal: Path) -> Iterator[str]:
    events = []
    for line in journal.read_bytes().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            if line.startswith(b"{") and line.count(b'"schema"') == 1:
                continue  # half a line, of a writer that was struck
            yield f"the journal has the line {line[:80]!r}"
    begun = {event["run_id"] for event in events if event["event"] == "started"}
    ends = Counter(event["run_id"] for event in events if event["event"] in OVER)
    for run_id in begun | set(ends):
        if ends[run_id] != 1:
            yield f"run {run_id} has {ends[run_id]} ends in the journal"


_LATE = (
    "argparse", "csv", "gettext", "json", "platform", "pwd", "shlex", "sqlite3", "zipfile", "solorun.supervisor",
    "solorun.cli.check", "solorun.cli.recover", "solorun.cli.start", "solorun.cli.stop",
)  # fmt: skip


def warm_up(shim: Shim, room: Path) -> None:  # noqa: ARG001 - as the trainers' room has it
    """Import what is imported late."""
    for name in _LATE:
        importlib.import_module(name)


FIRST, MAC, FAT = FIRST_THREAD, FIRST_THREAD | WITHOUT_UNNAMED, FIRST_THREAD | WITHOUT_UNNAMED | WITHOUT_LINKS
_HELLO = ("DIR", "--", "sh", "-c", "echo hello")
_CHECKED = frozenset((0, 1, 4, 7))
_STOPPED = frozenset((0, 1, 5, 7))

_JUDGE_LATER = functools.partial(judge, patience_s=10.0)

SCENES = (
    Scene("a first start", nothing, a_run, judge, flags=FIRST),
    Scene("a start after another", a_run_before, a_run, judge, flags=FIRST),
    Scene("without unnamed files", nothing, a_run, judge, flags=MAC),
    Scene("without hard links", nothing, a_run, judge, flags=FAT),
    Scene("take-over of a killed run", a_killed_run, a_run, judge, flags=FIRST),
    Scene("take-over of an old label", _a_label(b""), a_run, judge, flags=FIRST),
    Scene("a FIFO for a label", _a_fifo, a_run, judge, flags=FIRST),
    Scene("relabel", a_run_before, relabels, _judge_without_companion, flags=FIRST),
    Scene("a label put back", nothing, restores, judge, flags=OTHER_THREADS),
    Scene("archive", a_run_before, archives, judge, flags=FIRST),
    Scene("registry", nothing, a_run, judge, flags=FIRST, registry=True),
    Scene("solorun check", a_killed_run, _command("check", "DIR"), judge, _CHECKED, most=1000),
    Scene("solorun stop", a_killed_run, _command("stop", "DIR"), judge, _STOPPED, most=1000),
    Scene("solorun recover", a_killed_run, _command("recover", "--yes", "DIR"), judge, _CHECKED | _STOPPED, most=1000),
    Scene("solorun start", a_run_before, _command("start", *_HELLO), _JUDGE_LATER, most=1000),
    Scene("solorun start --wait", a_run_before, _command("start", "--wait", *_HELLO), _JUDGE_LATER, most=1000),
)
