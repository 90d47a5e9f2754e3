"""The guard's files damaged in every way: read by its own readers, and through its commands, in this process.

A file is right again (or was never needed), told as damaged, or taken for nothing; there is no exception, no endless
reading, no answer that is no JSON, and never a number that is none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solorun import process, record, registry, settingsfile, waiting
from solorun.cli import main as command
from solorun.errors import BadUsage
from solorun.hosts import recall
from solorun.label import read_label, read_owner
from solorun.owner import Here, Label, Owner, ProcessId, Unknown, encode_owner
from solorun.progress import Heartbeat, read_progress
from solorun.settings import HostEntry
from tests.faults.mutations import GARBAGE, bytewise, cuts, flips, misfits

RUN_ID = "20260101-000000-aaaaaaaa"
FAR = HostEntry("far", "far", "", ("solorun",))
_CODES = {
    "status": {0, 1, 2},
    "history": {0, 1, 2},
    "check": {0, 2, 3, 4, 7},
    "recover": {0, 2, 3, 4, 7},
    "logs": {0, 1, 2},
}


@dataclass(frozen=True, slots=True)
class Victim:
    """A file to be damaged.

    Args:
        name: for people.
        path: where it lies.
        sound: what is in it when all is well.
        read: its own reader, through the file; fails by an exception.
        document: its JSON, where it is such.
        dumps: how that becomes the file.
    """

    name: str
    path: Path
    sound: bytes
    read: Callable[[], object]
    document: Any = None
    dumps: Callable[[Any], bytes] | None = None


class Scene:
    """A results directory, a state directory and a settings file, as a run that died has left them.

    Args:
        place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.results = place / "results" / "mine"
        self.state = place / "state"
        self.results.mkdir(parents=True)
        self.fd = os.open(self.results, os.O_RDONLY | os.O_DIRECTORY)
        self._leave_a_dead_run()
        self._leave_a_state()
        self.settings = place / "solorun.toml"
        self.settings.write_text(_SETTINGS)
        self.victims = tuple(self._victims())

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.fd)

    def restore(self) -> None:
        """Put every file back as it was, also one that a command took away."""
        for victim in self.victims:
            victim.path.parent.mkdir(exist_ok=True)
            if not victim.path.exists() or victim.path.read_bytes() != victim.sound:
                victim.path.write_bytes(victim.sound)
                victim.path.chmod(0o600)

    def _leave_a_dead_run(self) -> None:
        here = process.here()
        dead = ProcessId(here, 4_194_000, 12_345)
        inode = os.fstat(self.fd).st_ino
        owner = Owner(
            RUN_ID, dead, dead, True, "ada", ("python3", "train.py"), "/home/ada", 1_790_000_000.5, str(self.results),
            inode, dead,
        )  # fmt: skip
        (self.results / "training.owner.json").write_bytes(encode_owner(owner))
        (self.results / "training.lock").write_bytes(b"4194000\n")
        (self.results / "training.pid").write_bytes(b"4194000\n")
        (self.results / "training.log").write_bytes(b"step 1\nstep 2\n")
        record.write_record(self.fd, _record(self.results, inode))
        for event, facts in _EVENTS:
            record.journal(self.fd, RUN_ID, event, 1_790_000_000.5, **facts)
        record.append_metrics(self.fd, RUN_ID, {"step": 1, "ce": 1.5})
        record.append_metrics(self.fd, RUN_ID, {"step": 2, "ce": 1.25})
        heart = Heartbeat(self.fd, RUN_ID)
        heart.claim()
        heart.advance(1, 100)
        heart.close()
        (self.results / "waiting").mkdir()
        self.ticket = self.results / "waiting" / "01790000000000000000-4194000-abcd.json"
        self.ticket.write_bytes(waiting.encode(waiting.Waiter(self.ticket.name, dead, "ada", ("train",), 1.5)))

    def _leave_a_state(self) -> None:
        entry = registry.Entry(
            RUN_ID, self.results, process.here().machine, "studio", "ada", 1_790_000_000.5, 4_194_000
        )
        registry.note(self.state, entry)
        aged = time.time() - 60
        os.utime(self.state / registry.FILE, (aged, aged))
        (self.state / "hosts").mkdir(mode=0o700)
        said = {"schema": 1, "runs": [dict.fromkeys(_ROW, None) | {"directory": "results", "state": "idle"}]}
        kept = {"schema": 1, "ssh": "far", "directory": "", "seen": 1.79e9, "version": "0.1.0", "said": said}
        (self.state / "hosts" / "far.json").write_text(json.dumps(kept))

    def _read_settings(self) -> None:
        with contextlib.suppress(BadUsage):
            settingsfile.load(self.place, {})

    def _victims(self) -> Iterator[Victim]:
        fd, results = self.fd, self.results

        def of(name: str, read: Callable[[], object], path: Path | None = None, *, is_json: bool = True) -> Victim:
            path = path or results / name
            sound = path.read_bytes()
            return Victim(name, path, sound, read, json.loads(sound) if is_json else None)

        yield of("training.owner.json", lambda: _owner_is_sound(read_owner(fd)))
        yield of("run.json", lambda: _record_is_sound(record.read_record(fd)))
        yield of("training.lock", lambda: _label_is_sound(read_label(fd)), is_json=False)
        yield of("training.pid", lambda: None, is_json=False)
        yield of("progress", lambda: _progress_is_sound(read_progress(fd)), is_json=False)
        yield of("events.jsonl", lambda: list(record.read_events(fd)), is_json=False)
        yield of("metrics.jsonl", lambda: None, is_json=False)
        yield of("training.log", lambda: None, is_json=False)
        yield of("waiting", lambda: waiting.read_queue(results), self.ticket)
        yield of("hosts/far.json", lambda: recall(self.state, FAR), self.state / "hosts" / "far.json")
        yield of("runs.db", lambda: registry.read(self.state), self.state / registry.FILE, is_json=False)
        yield of("solorun.toml", self._read_settings, self.settings, is_json=False)


_ROW = (
    "directory", "state", "run_id", "pid", "user", "host", "step", "total", "rate", "eta_s", "phase", "log_age_s",
    "step_age_s", "checkpoint", "checkpoint_age_s", "memory_bytes", "detail", "ended", "waiting",
)  # fmt: skip
_EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("started", {"pid": 4_194_000, "user": "ada", "argv": ["train"], "host": "studio", "boot": "b"}),
    ("stop requested", {"by": "bob", "pid": 4_194_000, "how": "solorun stop"}),
    ("saved", {"step": 1, "path": "checkpoint_1.safetensors", "digest": "0" * 64}),
    ("ended", {"state": "crashed", "cause": "error", "exit_code": 1, "signal": None, "why": "x", "last_step": 2,
               "last_words": "Traceback\nValueError: x", "ended": 1_790_000_009.5, "started": 1_790_000_000.5}),
)  # fmt: skip
_SETTINGS = """\
roots = ["results"]
silent_floor_s = 90.0
share_accelerator = false
host_deadline_s = 1.0

[runs."results/mine"]
command = ["python3", "train.py"]
cwd = "."
environment = { OMP_NUM_THREADS = "4" }

[hosts.far]
ssh = "far"
directory = "~/project"
command = "solorun"

[[notify]]
on = ["end", "crash"]
webhook = "https://example.org/hook"
"""


def _record(results: Path, inode: int) -> record.RunRecord:
    return record.RunRecord(
        RUN_ID, "20251231-000000-bbbbbbbb", ("python3", "train.py"), "ada", "studio", 4_194_000, 1_790_000_000.5,
        fingerprint="abc", state="crashed", exit_code=1, signal=11, first_step=0, last_step=2, total_steps=100,
        ended=1_790_000_009.5, why="ValueError: x", boot="b", log_at=0, directory=str(results), directory_inode=inode,
        cause="error", stopped_by="bob", last_words="Traceback (most recent call last):\nValueError: x",
    )  # fmt: skip


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**64


def _owner_is_sound(owner: Owner | None) -> None:
    if owner is None:
        return
    texts = (owner.run_id, owner.user, owner.cwd, owner.directory, *owner.argv)
    _require(all(isinstance(text, str) for text in texts), f"owner: {owner}")
    _require(isinstance(owner.adopted, bool) and _is_number(owner.since), f"owner: {owner}")
    for one in filter(None, (owner.process, owner.supervisor, owner.launcher)):
        _require(isinstance(one.here, Here) and 1 <= one.pid <= 2**22, f"owner: {one}")


def _record_is_sound(found: record.RunRecord | None) -> None:
    if found is None:
        return
    numbers = (found.pid, found.started, found.log_at, found.directory_inode)
    maybe = (found.exit_code, found.signal, found.first_step, found.last_step, found.total_steps, found.ended)
    _require(all(map(_is_number, numbers)) and 0 <= found.pid <= 2**22, f"run.json: {numbers}")
    _require(all(value is None or _is_number(value) for value in maybe), f"run.json: {maybe}")


def _label_is_sound(label: Label | Unknown | None) -> None:
    if isinstance(label, Label) and label.pid is not None:
        _require(1 <= label.pid <= 2**22 and int(label.text) == label.pid, f"label: {label}")


def _progress_is_sound(found: object) -> None:
    if found is not None:
        _require(getattr(found, "run_id") == RUN_ID and getattr(found, "total") == 100, f"progress: {found}")  # noqa: B009


def _strict(text: str) -> Any:
    def no_number(word: str) -> Any:
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=no_number)


def ask(*words: str) -> int:
    """One command of the guard, in this process; its exit code.

    Raises:
        AssertionError: an exit code that no page knows, or JSON that is none.
    """
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = command.main(list(words))
    _require(code in _CODES[words[0]], f"{words} ended with {code}: {complained.getvalue()[-300:]}")
    if "--json" in words and code != 2:
        _strict(said.getvalue())
    said.getvalue().encode("utf-8")  # half a character would end a real command
    return code


def commands(scene: Scene) -> Iterator[tuple[str, ...]]:
    """Every command that reads these files without changing them for good."""
    here = str(scene.results)
    for words in (("status",), ("history",), ("check",), ("recover", "--dry-run")):
        yield (*words, here)
        yield (*words, "--json", here)
    yield ("status",)
    yield ("history", "--json")
    yield ("history", here, "--run", RUN_ID)


@contextlib.contextmanager
def at(scene: Scene) -> Iterator[None]:
    """Within the scene: its settings, its registry; nobody else's processes."""
    before, cwd, census = dict(os.environ), os.getcwd(), process.census
    os.environ.update(SOLORUN_STATE=str(scene.state), SOLORUN_SHARE_ACCELERATOR="1")
    os.environ.pop("SOLORUN_ROOTS", None)
    os.chdir(scene.place)
    process.census = tuple  # type: ignore[assignment]
    try:
        yield
    finally:
        process.census = census
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)


def damage(victim: Victim, chance: random.Random, count: int, everywhere: bool) -> Iterator[tuple[str, bytes]]:
    """What becomes of a victim."""
    others = (victim.sound.replace(b"a", b"b"), victim.sound[len(victim.sound) // 2 :])
    yield from (("garbage", data) for data in GARBAGE)
    if victim.document is not None:
        found = list(misfits(victim.document, victim.dumps))
        yield from found if everywhere else chance.sample(found, min(len(found), count))
    elif victim.name == "events.jsonl":
        yield from _journal_misfits(victim.sound, chance, None if everywhere else count)
    if everywhere:
        yield from cuts(victim.sound[:4096])
        yield from flips(victim.sound[:4096])
    yield from bytewise(victim.sound, chance, count, others)


def _journal_misfits(sound: bytes, chance: random.Random, count: int | None) -> Iterator[tuple[str, bytes]]:
    lines = sound.splitlines(keepends=True)
    for number, line in enumerate(lines):
        found = list(misfits(json.loads(line)))
        for what, changed in found if count is None else chance.sample(found, min(len(found), count // 4)):
            yield f"line {number}: {what}", b"".join((*lines[:number], changed, *lines[number + 1 :]))
