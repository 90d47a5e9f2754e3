"""Something else in the place of every file of a results directory, and then every verb, as a person would type it.

Whatever stands there: one clear answer with a documented exit code, in time, without a traceback, and without a control
character; what a link leads to is kept; and once the odd thing is gone, a start needs no hand.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from solorun.cli import main as command
from tests.faults.tally import Tally

NAMES = (
    "training.lock", "training.log", "training.owner.json", "run.json", "events.jsonl", "metrics.jsonl", "progress",
    "checkpoint_5.safetensors", "best_model.safetensors", "nohup.out", "training.pid", "waiting", "archive",
    ".solorun-guard",
)  # fmt: skip
VERBS = (
    "status", "status --json", "check", "history", "logs", "attach", "stop", "recover --dry-run", "recover --yes",
    "start", "start --background", "start --wait",
)  # fmt: skip
DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 7}
_PRECIOUS = b"precious\n"
_IN_TIME_S = 30.0


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


def _device(minor: int) -> Callable[[Path], None]:
    return lambda path: os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))


KINDS: dict[str, Callable[[Path], None]] = {
    "link": lambda path: path.symlink_to(path.parent.parent / "outside"),
    "another user's link": lambda path: _theirs(path),
    "dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a directory": lambda path: path.symlink_to(path.parent.parent),
    "fifo": lambda path: os.mkfifo(path),
    "directory": _directory,
    "socket": _socket,
    "empty file": lambda path: path.touch(),
    "device that is empty": _device(3),
    "device that is full": _device(7),
    "device without an end": _device(5),
}
_AS_ROOT = {"another user's link", "device that is empty", "device that is full", "device without an end"}


def _theirs(path: Path) -> None:
    path.symlink_to(path.parent.parent / "outside")
    os.lchown(path, 65534, 65534)


@dataclass(frozen=True, slots=True)
class Said:
    """What a verb answered; `code` is None when it did not come back in time."""

    code: int | None
    text: bytes


def ask(words: list[str], cwd: Path) -> Said:
    """Run a verb in a process of its own, which has what it needs imported already."""
    with tempfile.TemporaryFile() as out:
        pid = os.fork()
        if pid == 0:
            _be_the_verb(words, cwd, out.fileno())
        code = _awaited(pid)
        out.seek(0)
        return Said(code, out.read())


def _be_the_verb(words: list[str], cwd: Path, out: int) -> None:
    code = 99
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, fd in enumerate((nothing, out, out)):
            os.dup2(fd, number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - to the end of this process
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(cwd)
        code = command.main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _awaited(pid: int) -> int | None:
    end = time.monotonic() + _IN_TIME_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.003)


def controls(text: bytes) -> bytes:
    """The control characters that a terminal would obey."""
    shown = text.decode("utf-8", "replace")
    return "".join(c for c in shown if c not in "\n\t" and (c < " " or "\x7f" <= c <= "\x9f")).encode()


def _try(name: str, kind: str, verb: str, top: Path) -> Iterator[str]:
    """One case; what is wrong with it."""
    directory, outside = top / "mine", top / "outside"
    directory.mkdir()
    outside.write_bytes(_PRECIOUS)
    try:
        (directory / "training.log").write_text("hello\n")
        with_odd = directory / name
        with_odd.unlink(missing_ok=True)
        KINDS[kind](with_odd)
        started = verb.startswith("start")
        said = ask([*verb.split(), "mine", *(("--", "true") if started else ())], top)
        if said.code not in DOCUMENTED:
            yield f"ended with {said.code}: {said.text[-300:]!r}"
        elif b"Traceback" in said.text or controls(said.text):
            yield f"said {said.text[-300:]!r}"
        elif said.code and not said.text.strip():
            yield f"ended with {said.code} and not a word"
        kept = outside.read_bytes()
        if not kept.startswith(_PRECIOUS) or (kept != _PRECIOUS and kind == "another user's link"):
            yield f"what the link leads to became {kept[:200]!r}"
        if started:
            _clear(directory)
            again = ask(["start", "mine", "--", "true"], top)
            if again.code != 0:
                yield f"the next start ended with {again.code}: {again.text[-300:]!r}"
    finally:
        shutil.rmtree(directory)


def _clear(directory: Path) -> None:
    """By hand: what is no plain file goes, but for the label, which nobody must need to remove."""
    for path in directory.iterdir():
        if path.name.startswith("training.lock") or (path.is_file() and not path.is_symlink()):
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _chosen(seed: int, share: float) -> list[tuple[str, str, str]]:
    """A sample that has every name, every kind and every verb."""
    kinds = [kind for kind in KINDS if os.getuid() == 0 or kind not in _AS_ROOT]
    cases = list(itertools.product(NAMES, kinds, VERBS))
    random.Random(seed).shuffle(cases)
    wanted = round(len(cases) * share)
    seen: set[str] = set()
    first, rest = [], []
    for case in cases:
        (rest if seen.issuperset(case) else first).append(case)
        seen.update(case)
    return first + rest[: max(0, wanted - len(first))]


def attack(seed: int, share: float = 1.0) -> Tally:
    """Every file, every kind of other thing in its place, every verb.

    Args:
        seed: of the sample.
        share: of all cases.
    """
    for room in ("cli.check", "cli.history", "cli.logs", "cli.attach", "cli.stop", "cli.recover", "cli.start"):
        importlib.import_module(f"solorun.{room}")
    failures = []
    cases = _chosen(seed, share)
    before = {name: os.environ.get(name) for name in ("SOLORUN_STATE", "SOLORUN_SHARE_ACCELERATOR")}
    with tempfile.TemporaryDirectory(prefix="solorun-odd-") as place:
        os.environ.update(SOLORUN_STATE=f"{place}/state", SOLORUN_SHARE_ACCELERATOR="1")
        try:
            for name, kind, verb in cases:
                failures += [f"{kind} as {name}, {verb}: {wrong}" for wrong in _try(name, kind, verb, Path(place))]
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    return Tally("something else in the place of a file", len(cases), tuple(failures))
