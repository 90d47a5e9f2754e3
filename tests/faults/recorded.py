"""What a program does to the files of one directory, recorded call by call with every byte (`strace`)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,"
    "unlinkat,ftruncate,fallocate,close,dup,dup2,dup3,fcntl"
)


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file, which is named by number."""

    file: int
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A file cut or grown."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """The bytes of a file are durable."""

    file: int


@dataclass(frozen=True, slots=True)
class Put:
    """A name for a file; what bore it before loses it. With `old` it is a rename, which is one step."""

    name: str
    file: int
    old: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """A name is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class SyncNames:
    """The names of the directory are durable."""


Operation = Write | Resize | Sync | Put | Take | SyncNames


@dataclass(slots=True)
class _Open:
    """A file that a descriptor stands for; None is the directory itself."""

    file: int | None
    appends: bool = False
    at: int = 0


@dataclass(slots=True)
class Recording:
    """A directory's names and files at the beginning, and what was done to them.

    Args:
        directory: where it was.
        names: number of the file that each name stood for.
        contents: bytes of each file.
        operations: in the order in which the calls returned.
    """

    directory: Path
    names: dict[str, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)


def can_record() -> str:
    """Why nothing can be recorded here; empty when it can."""
    if shutil.which("strace") is None:
        return "needs strace, which is Linux's"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "strace may not trace here"


def record(directory: Path, act: Callable[[], None], trace: Path) -> Recording:
    """Do something in a forked child, and record what it does to the files of a directory.

    Args:
        directory: without subdirectories that matter.
        act: what to do.
        trace: where strace may write.

    Raises:
        RuntimeError: it failed, or could not be recorded.
    """
    made = Recording(directory)
    for number, name in enumerate(sorted(path.name for path in directory.iterdir() if path.is_file())):
        made.names[name], made.contents[number] = number, (directory / name).read_bytes()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.kill(os.getpid(), signal.SIGSTOP)  # until strace is there
            act()
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, os.WUNTRACED)
    options = ["-f", "-y", "-xx", "-qq", "-s", str(1 << 24), "-o", str(trace), "-e", f"trace={CALLS}"]
    tracer = subprocess.Popen(["strace", *options, "-p", str(child)], stderr=subprocess.PIPE)
    _wait_for_tracer(child, tracer)
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    _, said = tracer.communicate(timeout=600)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"what was to be recorded ended with {os.waitstatus_to_exitcode(status)}: {said!r}")
    _Reader(made).read(trace.read_text())
    return made


def _wait_for_tracer(child: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while "TracerPid:\t0\n" in Path(f"/proc/{child}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError("strace cannot be attached")
        time.sleep(0.005)


_LINE = re.compile(
    r"^(\d+) +(?:(\w+)\((.*)\) += (-?\d+)(?:<.*>\S*)?.*"
    r"|(\w+)\((.*) <unfinished \.\.\.>"
    r"|<\.\.\. (\w+) resumed>(.*)\) += (-?\d+).*)$"
)
_TEXT = re.compile(r'^"((?:\\x[0-9a-f]{2})*)"$')
_DESCRIPTOR = re.compile(r"^(AT_FDCWD|\d+)(?:<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?)?$")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class _Reader:
    """Makes operations of strace's lines, and keeps the names and sizes as they are at each moment."""

    def __init__(self, recording: Recording) -> None:
        self._made = recording
        self._root = os.path.realpath(recording.directory)
        self._names = dict(recording.names)
        self._sizes = {number: len(data) for number, data in recording.contents.items()}
        self._open: dict[int, _Open] = {}
        self._unfinished: dict[str, str] = {}

    def read(self, text: str) -> None:
        """Read a whole trace."""
        for call, words, answer in self._calls(text):
            self._close_reused(call, answer)
            read = getattr(self, f"_{call}", None)
            if answer >= 0 and read is not None:
                read(words, answer)

    def _calls(self, text: str) -> Iterator[tuple[str, list[str], int]]:
        for line in text.splitlines():
            found = _LINE.match(line)
            if found is None:
                continue
            thread, call, words, answer, begun, begun_words, ended, rest, ended_answer = found.groups()
            if begun == "close":  # the number is free, and may be another thread's, before this call is told to be over
                yield begun, _split(begun_words), 0
            elif begun:
                self._unfinished[thread] = begun_words
            elif ended:
                yield ended, _split(self._unfinished.pop(thread, "") + rest), int(ended_answer)
            else:
                yield call, _split(words), int(answer)

    def _close_reused(self, call: str, answer: int) -> None:
        if call in ("openat", "open", "creat", "dup", "dup2", "dup3"):
            self._open.pop(answer, None)

    def _name(self, place: str, path: str) -> str | None:
        """The name in the directory that a path means; None when it is elsewhere, "" for the directory itself."""
        text = _TEXT.match(path)
        if text is None:
            return None
        found = os.fsdecode(_bytes(text[1]))
        if not found.startswith("/"):
            under = _DESCRIPTOR.match(place)
            found = os.path.join(os.fsdecode(_bytes(under[2] or "")) if under else "/", found)
        found = os.path.normpath(found)
        if found == self._root:
            return ""
        return os.path.basename(found) if os.path.dirname(found) == self._root else None

    def _add(self, operation: Operation) -> None:
        self._made.operations.append(operation)

    def _new(self) -> int:
        number = len(self._sizes)
        self._sizes[number] = 0
        return number

    def _openat(self, words: list[str], answer: int) -> None:
        name, flags = self._name(words[0], words[1]), words[2]
        if name is None:
            return
        if "O_TMPFILE" in flags:
            self._open[answer] = _Open(self._new())
        elif not name:
            self._open[answer] = _Open(None)
        else:
            if name not in self._names:
                if "O_CREAT" not in flags:  # made by somebody else, such as a subdirectory
                    return
                self._names[name] = self._new()
                self._add(Put(name, self._names[name]))
            file = self._names[name]
            if "O_TRUNC" in flags and self._sizes[file]:
                self._resize(file, 0)
            self._open[answer] = _Open(file, "O_APPEND" in flags)

    def _opened(self, word: str) -> _Open | None:
        found = _DESCRIPTOR.match(word)
        if found is None or found[1] == "AT_FDCWD":
            return None
        return self._open.get(int(found[1]))

    def _write(self, words: list[str], answer: int) -> None:
        opened, data = self._opened(words[0]), _TEXT.match(words[1])
        if opened is None or opened.file is None or data is None:
            return
        at = self._sizes[opened.file] if opened.appends else opened.at
        self._written(opened.file, at, _bytes(data[1])[:answer])
        opened.at = at + answer

    def _pwrite64(self, words: list[str], answer: int) -> None:
        opened, data = self._opened(words[0]), _TEXT.match(words[1])
        if opened is not None and opened.file is not None and data is not None:
            self._written(opened.file, int(words[3]), _bytes(data[1])[:answer])

    def _written(self, file: int, at: int, data: bytes) -> None:
        self._sizes[file] = max(self._sizes[file], at + len(data))
        self._add(Write(file, at, data))

    def _resize(self, file: int, size: int) -> None:
        self._sizes[file] = size
        self._add(Resize(file, size))

    def _ftruncate(self, words: list[str], _answer: int) -> None:
        opened = self._opened(words[0])
        if opened is not None and opened.file is not None:
            self._resize(opened.file, int(words[1]))

    def _fallocate(self, words: list[str], _answer: int) -> None:
        opened = self._opened(words[0])
        if opened is not None and opened.file is not None:
            self._resize(opened.file, max(self._sizes[opened.file], int(words[2]) + int(words[3])))

    def _fsync(self, words: list[str], _answer: int) -> None:
        opened = self._opened(words[0])
        if opened is not None:
            self._add(SyncNames() if opened.file is None else Sync(opened.file))

    _fdatasync = _fsync

    def _close(self, words: list[str], _answer: int) -> None:
        found = _DESCRIPTOR.match(words[0])
        if found is not None:
            self._open.pop(int(found[1]), None)

    def _move(self, before: str | None, after: str | None) -> None:
        if before is None or after is None or before not in self._names:
            return
        self._names[after] = self._names.pop(before)
        self._add(Put(after, self._names[after], before))

    def _rename(self, words: list[str], _answer: int) -> None:
        self._move(self._name("", words[0]), self._name("", words[1]))

    def _renameat(self, words: list[str], _answer: int) -> None:
        self._move(self._name(words[0], words[1]), self._name(words[2], words[3]))

    _renameat2 = _renameat

    def _linkat(self, words: list[str], _answer: int) -> None:
        name, source = self._name(words[2], words[3]), _TEXT.match(words[1])
        if name is None or source is None:
            return
        path = os.fsdecode(_bytes(source[1]))
        if path.startswith("/proc/self/fd/"):
            opened = self._open.get(int(path.rpartition("/")[2]))
            file = opened.file if opened else None
        else:
            file = self._names.get(self._name(words[0], words[1]) or "")
        if file is not None:
            self._names[name] = file
            self._add(Put(name, file))

    def _unlinked(self, name: str | None) -> None:
        if name and self._names.pop(name, None) is not None:
            self._add(Take(name))

    def _unlink(self, words: list[str], _answer: int) -> None:
        self._unlinked(self._name("", words[0]))

    def _unlinkat(self, words: list[str], _answer: int) -> None:
        self._unlinked(self._name(words[0], words[1]))


def _split(words: str) -> list[str]:
    return words.split(", ")  # every text is written as hexadecimal digits: no comma is in one
