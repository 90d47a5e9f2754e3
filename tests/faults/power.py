"""Power cuts: real runs recorded call by call, and every disk that a cut may leave looked at as the next start does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import solorun
from kssm import checkpoint
from kssm.corpus import prepare
from kssm.report import Report
from kssm.saves import Saves
from kssm.snapshot import Snapshot, SnapshotFacts, TrainState
from solorun import claim, closing, label, process
from solorun.frozen import replace as replaced
from solorun.record import read_events, read_record
from tests.faults.crashes import Files, states
from tests.faults.recorded import Put, Recording, Sync, SyncNames, Write, record
from tests.faults.tally import Tally

_OLD_S = 3600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that is recorded, and how its disks are judged.

    Args:
        name: of it.
        lay: puts into the empty directory what is there before.
        act: is recorded.
        judge: `judge(directory, promises)` tells what is wrong, in lines.
    """

    name: str
    lay: Callable[[Path], None]
    act: Callable[[Path], None]
    judge: Callable[[Path, Promises], list[str]]


@dataclass(frozen=True, slots=True)
class Promises:
    """What was told before the cut.

    Args:
        saved: the newest step that was told as saved; 0 for none.
        digests: of the checkpoint of each step, whether told or not.
        events: every whole line that the journal ever had.
        records: every whole run.json.
        live: PID of a process that began after the cut; a recycled one.
    """

    saved: int
    digests: dict[int, str]
    events: frozenset[str]
    records: frozenset[bytes]
    live: int


def snapshot(step: int, run_id: str, lineage: tuple[str, ...]) -> Snapshot:
    """A small state: three blocks of 512 bytes, other ones at each step."""
    tensors = {"model.w": torch.full((8, 32), float(step)), "optimizer.w.exp_avg": torch.arange(64.0) * step}
    return Snapshot(tensors, SnapshotFacts(TrainState(step, step), {}, {}, "c", "s", run_id, lineage, 8))


def _nothing(_directory: Path) -> None:
    return


def train(directory: Path, first: int = 1) -> None:
    """What the trainer does to its directory, without the training: lock, saves, retention, journal, end."""
    with solorun.hold(directory, settle_s=0, exit_on_stop=False) as run:
        now = {"step": first - 1}
        lineage = (run.run_id,) if first == 1 else ("before", run.run_id)
        run.describe(fingerprint="f", parent_run_id=None)
        saves = Saves(run, Report(run.log, terminal=False), 2, lambda _owes: snapshot(now["step"], run.run_id, lineage))
        with saves, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            for step in range(first, first + 4):
                now["step"] = step
                run.progress(step, first + 3, loss=0.5)
                saves.begin(snapshot(step, run.run_id, lineage), best=True)
                saves.begin(snapshot(step, run.run_id, lineage))
                saves.finish()


def restarted() -> None:
    """Be of an earlier boot: the power cut lies between this process and who looks at what it left."""
    process._place[:] = [replaced(process.here(), boot="an-earlier-boot")]


def lay_a_dead_run(directory: Path) -> None:
    """A run that a kill ended within a save, a torn checkpoint where the next one will write, and its reserve."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            restarted()
            with solorun.hold(directory, settle_s=0) as run:
                checkpoint.save(directory, snapshot(3, "before", ("before",)))
                run.event("saved", step=3, path="checkpoint_3.safetensors", digest="")
                (directory / "checkpoint_4.safetensors").write_bytes(b"torn")
                (directory / ".checkpoint_5.safetensors.1-00000000.tmp").write_bytes(b"half")
                (directory / "checkpoint.reserve").write_bytes(bytes(5000))
                os._exit(0)
        os._exit(70)
    os.waitpid(child, 0)


def judge_run(directory: Path, promises: Promises, *, files: bool = True) -> list[str]:
    """What the next start would find wrong.

    Args:
        directory: as the cut has left it.
        promises: that were made before.
        files: whether all that the journal and run.json ever held is known.
    """
    wrong = _judge_files(directory, promises) if files else []
    best = directory / checkpoint.BEST
    if best.exists() and not checkpoint.load(best).snapshot.tensors:
        wrong.append("an empty best model")
    for when in ("", " after the start"):
        lines: list[str] = []
        found = checkpoint.newest_valid(directory, lines.append)
        if found is None:
            if promises.saved:
                wrong.append(f"no valid checkpoint{when}, though step {promises.saved} was told as saved: {lines}")
        else:
            step = found.snapshot.facts.state.step
            if step < promises.saved:
                wrong.append(f"step {step}{when}, though {promises.saved} was told as saved: {lines}")
            if promises.digests.get(step) not in (None, found.digest):
                wrong.append(f"other bytes than were saved at step {step}{when}")
        if not when:
            with solorun.hold(directory, settle_s=0, exit_on_stop=False):
                pass
    left = [name for name in ("training.lock", "training.owner.json") if (directory / name).exists()]
    return wrong + [f"{name} is left after a run" for name in left]


def _judge_files(directory: Path, promises: Promises) -> list[str]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        strange = [event for event in read_events(fd) if json.dumps(event) not in promises.events]
        wrong = [f"an event that was never written: {event}" for event in strange]
        with contextlib.suppress(FileNotFoundError):
            data = (directory / "run.json").read_bytes()
            if data not in promises.records or read_record(fd) is None:
                wrong.append(f"a run.json that was never written: {data[:80]!r}")
    finally:
        os.close(fd)
    return wrong


TEXT = "\n\n".join(f"Act {n}. The sea is {n % 7} fathoms deep, and the ship goes down." for n in range(60))


def lay_text(directory: Path) -> None:
    """A short text beside the directory of the token files."""
    (directory.parent / "text.txt").write_text(TEXT)


def tokenize(directory: Path) -> None:
    """Make a token file and its tokenizer."""
    prepare(directory.parent / "text.txt", directory, "bpe:300")


def judge_tokens(directory: Path, _promises: Promises) -> list[str]:
    """Whether the tokens are those of the text: found whole, or made again."""
    found = prepare(directory.parent / "text.txt", directory, "bpe:300")
    digest = hashlib.sha256(np.asarray(found.train).tobytes() + np.asarray(found.validation).tobytes()).hexdigest()
    return [] if digest == found.facts.sha256 else ["tokens that are not those of the text"]


SCENARIOS = (
    Scenario("a run", _nothing, train, judge_run),
    Scenario("a run after a killed one", lay_a_dead_run, lambda place: train(place, 4), judge_run),
    Scenario("a token file", lay_text, tokenize, judge_tokens),
)


@dataclass(slots=True)
class Bench:
    """Recordings, and the disks that were looked at."""

    place: Path
    chance: random.Random
    live: int
    failures: list[str] = field(default_factory=list)
    cuts: int = 0
    disks: int = 0
    different: int = 0

    def recorded(self, scenario: Scenario) -> Recording:
        """Carry a scenario out once."""
        directory = self.place / scenario.name / "results"
        directory.mkdir(parents=True)
        scenario.lay(directory)

        def act() -> None:
            restarted()
            scenario.act(directory)

        return record(directory, act, self.place / "trace")

    def cut_everywhere(
        self, scenario: Scenario, recording: Recording, most: int, every: int = 1, enough: int = 1000
    ) -> None:
        """Cut the power after each call, and look at what may be left.

        Args:
            scenario: that was recorded.
            recording: of it.
            most: disks that are looked at for each cut.
            every: of so many calls one is cut after; those that make durable, and renames, always are.
            enough: failures after which nobody looks further.
        """
        seen: set[tuple[int, str]] = set()
        promises = _promised(recording, self.live)
        for until in range(len(recording.operations) + 1):
            last = recording.operations[until - 1] if until else None
            if not isinstance(last, Sync | SyncNames | Put) and until % every and until < len(recording.operations):
                continue
            self.cuts += 1
            told = replace(promises, saved=_told(recording, until))
            for files in states(recording, until, self.chance, most):
                self.disks += 1
                key = (told.saved, _signature(files))
                if key not in seen and len(self.failures) < enough:
                    seen.add(key)
                    self._look(scenario, recording, files, told, until)
        self.different += len(seen)

    def _look(self, scenario: Scenario, recording: Recording, files: Files, promises: Promises, until: int) -> None:
        directory = recording.directory
        for path in directory.iterdir():
            path.unlink() if not path.is_dir() else shutil.rmtree(path)
        self._lay(directory, files)
        try:
            wrong = scenario.judge(directory, promises)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong = [f"{type(error).__name__}: {error}"]
        names = {name: len(data) for name, data in sorted(files.items())}
        self.failures += [f"{scenario.name}, cut after call {until}: {line}; {names}" for line in wrong]

    def _lay(self, directory: Path, files: Files) -> None:
        recycled = self.chance.random() < 0.5
        then = time.time() - _OLD_S
        for name, data in files.items():
            if recycled and name == "training.lock" and data.strip(b"\0\n").isdigit():
                data = b"%d\n" % self.live  # the number is another process' now
            (directory / name).write_bytes(data)
            os.utime(directory / name, (then, then))


def _signature(files: Files) -> str:
    hasher = hashlib.sha256()
    for name in sorted(files):
        hasher.update(f"{name} {len(files[name])} ".encode() + files[name])
    return hasher.hexdigest()


def _lines(recording: Recording, until: int | None = None) -> Iterator[bytes]:
    """Every line of JSON that was written."""
    yield from (line for data in recording.contents.values() for line in data.split(b"\n"))
    for operation in recording.operations[:until]:
        if isinstance(operation, Write) and operation.data.lstrip(b"\n").startswith(b"{"):
            yield from operation.data.split(b"\n")


def _events(recording: Recording, until: int | None = None) -> Iterator[dict[str, object]]:
    for line in _lines(recording, until):
        if line.startswith(b'{"schema": 1, "time"'):
            yield json.loads(line)


def _told(recording: Recording, until: int) -> int:
    steps = [event["step"] for event in _events(recording, until) if event["event"] == "saved"]
    return max((step for step in steps if isinstance(step, int)), default=0)


def _promised(recording: Recording, live: int) -> Promises:
    saved = [event for event in _events(recording) if event["event"] == "saved" and event.get("digest")]
    written = [operation.data for operation in recording.operations if isinstance(operation, Write)]
    return Promises(
        0,
        {int(str(event["step"])): str(event["digest"]) for event in saved},
        frozenset(json.dumps(event) for event in _events(recording)),
        frozenset(data for data in (*written, *recording.contents.values()) if data.startswith(b'{\n "schema": 1')),
        live,
    )


@contextlib.contextmanager
def looking() -> Iterator[Bench]:
    """A bench; the user's registry is left alone, and nobody waits for the writer of a garbled label, dead for sure."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="power-", dir=_memory())))
        sleeper = stack.enter_context(subprocess.Popen(["sleep", "3600"]))
        stack.callback(sleeper.kill)
        for room, name, value in (
            (claim, "register", lambda *_words: None), (closing, "register", lambda *_words: None),
            (label, "EMPTY_GRACE_S", 0.0),
        ):  # fmt: skip
            stack.callback(setattr, room, name, getattr(room, name))
            setattr(room, name, value)
        yield Bench(place, random.Random(), sleeper.pid)


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def attack(seed: int, share: float = 1.0) -> Tally:
    """Record each scenario, cut the power everywhere, and look at what may be left.

    Args:
        seed: of the choice among too many disks.
        share: of 256 disks for each cut.
    """
    with looking() as bench:
        bench.chance.seed(seed)
        calls = 0
        for scenario in SCENARIOS:
            recording = bench.recorded(scenario)
            calls += len(recording.operations)
            bench.cut_everywhere(scenario, recording, max(2, int(256 * share)), 1 if share == 1.0 else 4)
        facts = {"calls recorded": calls, "cuts": bench.cuts, "different disks": bench.different}
        return Tally("power", bench.disks, tuple(bench.failures), facts)


def blind(seed: int, most: int = 4) -> dict[str, bool]:
    """Whether the attack sees that one kind of fsync is left out: by what is not made durable any more.

    Args:
        seed: of the choice among too many disks.
        most: disks for each cut.
    """
    found: dict[str, bool] = {}
    with looking() as bench:
        bench.chance.seed(seed)
        for scenario in SCENARIOS:
            whole = bench.recorded(scenario)
            for without in _sync_kinds(whole):
                bench.failures.clear()
                kept = [one for one, kind in zip(whole.operations, _kinds(whole), strict=True) if kind != without]
                bench.cut_everywhere(scenario, replace(whole, operations=kept), most, 4, enough=1)
                found[f"{scenario.name}: {without}"] = bool(bench.failures)
    return found


def _sync_kinds(recording: Recording) -> list[str]:
    return sorted({kind for kind in _kinds(recording) if kind})


def _kinds(recording: Recording) -> list[str]:
    """For each operation "" or what it makes durable: names, or the bytes of a kind of file, by its later name."""
    final: dict[int, str] = {}
    for operation in recording.operations:
        if isinstance(operation, Put):
            final[operation.file] = operation.name
    kinds: list[str] = []
    for operation in recording.operations:
        if isinstance(operation, SyncNames):
            kinds.append("names")
        elif isinstance(operation, Sync):
            name = final.get(operation.file, "?")
            kinds.append(
                "checkpoint" if name.startswith("checkpoint_") else name.partition(".")[2] if "-" in name else name
            )
        else:
            kinds.append("")
    return kinds
