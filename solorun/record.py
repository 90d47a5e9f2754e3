"""What a run leaves for later: the record of the run (`run.json`) and the journal of the directory (`events.jsonl`)."""

from __future__ import annotations

import contextlib
import os

from solorun.appending import open_to_append, require_plain
from solorun.frozen import dataclass, replace
from solorun.label import is_copy
from solorun.owner import PID_MAX
from solorun.readjson import is_moment, is_whole, read_json
from solorun.rundir import EVENTS, METRICS, PRIVATE, RUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from typing import IO, Any, Literal

    State = Literal["running", "completed", "interrupted", "crashed", "killed", "lost"]
else:
    State = str
"""`lost`: it was running when the machine, or every process of it, vanished without a word."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, as `run.json` tells it.

    Args:
        run_id: names the run everywhere.
        parent_run_id: the run that was in this directory before, which this one may continue.
        program: command line.
        user: login name.
        host: node name.
        pid: of the training process.
        fingerprint: of the trainer's configuration; empty when the trainer gives none.
        state: running, or how it ended.
        exit_code: exit status; None while running and when it is not known.
        signal: number of the signal that ended or stopped it.
        first_step: step at which it began; None until the first report.
        last_step: last step that it reported.
        total_steps: steps it wanted.
        started: seconds since the epoch.
        ended: likewise; None while running.
        why: one line on how it ended: the error, the signal, the kernel's evidence.
        boot: identity of the boot that it began in; empty in records of the first version.
        log_at: where its part of `training.log` begins, in bytes.
        directory: absolute path of its results directory; empty in records of the first version.
        directory_inode: its inode, 0 likewise; a copied directory brings a record that is not about it.
        cause: completed, interrupted, error, signal, out of memory, power loss, vanished; empty while running.
        stopped_by: who asked it to stop with `solorun stop`; empty when nobody did, or nobody wrote it down.
        last_words: the traceback, or the lines that tell of trouble, of a run that did not end well.
    """

    run_id: str
    parent_run_id: str | None
    program: tuple[str, ...]
    user: str
    host: str
    pid: int
    started: float
    fingerprint: str = ""
    state: State = "running"
    exit_code: int | None = None
    signal: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    total_steps: int | None = None
    ended: float | None = None
    why: str = ""
    boot: str = ""
    log_at: int = 0
    directory: str = ""
    directory_inode: int = 0
    cause: str = ""
    stopped_by: str = ""
    last_words: str = ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_pid(value: Any) -> bool:
    return is_whole(value) and 0 <= value <= PID_MAX


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("run_id", "user", "host", "fingerprint", "state", "why"), _is_text),
    **dict.fromkeys(("boot", "directory", "cause", "stopped_by", "last_words", "parent_run_id"), _is_text),
    "pid": _is_pid,
    **dict.fromkeys(("log_at", "directory_inode"), is_whole),
    **dict.fromkeys(("exit_code", "signal", "first_step", "last_step", "total_steps"), is_whole),
    **dict.fromkeys(("started", "ended"), is_moment),
    "program": _are_texts,
}
"""What each value of `run.json` is; every field of a record has its kind here."""

_MAY_BE_NULL = {"parent_run_id", "exit_code", "signal", "first_step", "last_step", "total_steps", "ended"}

_LONGEST_LINE = 1 << 20
_ENDLESS = float("inf")


def new_run_id(now: float) -> str:
    """A name for a run: sortable by start, unique by chance (1 in 4 billion within one second)."""
    import time

    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime(now)) + os.urandom(4).hex()


def read_record(directory: int) -> RunRecord | None:
    """The record of the last run; None when there is none that can be read. Unknown keys are tolerated.

    Args:
        directory: descriptor of the results directory.
    """
    try:
        fd = os.open(RUN, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        raw = read_json(os.read(fd, min(os.fstat(fd).st_size, 1 << 20)))  # a large buffer is slow to get
        known = {key: value for key, value in raw.items() if key in _KINDS}
        return RunRecord(**{**known, "program": tuple(known["program"])}) if _is_sound(known) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    finally:
        os.close(fd)


def last_run(directory: int) -> RunRecord | None:
    """The record of the last run that was really this directory's; None also for one that was copied here.

    What is left of a copied run lives elsewhere: it holds up nobody here, and nobody may end it from here.
    """
    record = read_record(directory)
    return None if record is None or is_copy(directory, record) else record


def last_run_id(directory: int) -> str | None:
    """Its id; from the journal where the record is there and cannot be read, or what is left of the run went unseen."""
    record = read_record(directory)
    if record is not None:
        return None if is_copy(directory, record) else record.run_id
    try:
        os.stat(RUN, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    began = [event.get("run_id") for event in read_events(directory, {"started"}, last_bytes=1 << 20)]
    return began[-1] if began and isinstance(began[-1], str) else None


def _is_sound(known: dict[str, Any]) -> bool:
    """Whether every value is of its kind: a damaged file must not surprise whoever shows it."""
    return all((value is None and key in _MAY_BE_NULL) or _KINDS[key](value) for key, value in known.items())


def write_record(directory: int, record: RunRecord) -> None:
    """Replace the record whole and durably.

    Raises:
        OSError: the directory cannot be written; the old record stands.
    """
    import json

    facts = {"schema": 1, **{name: getattr(record, name) for name in RunRecord.__slots__}}
    data = json.dumps(facts, indent=1).encode() + b"\n"
    private = f"{PRIVATE}{os.getpid()}.run.tmp"
    fd = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666, dir_fd=directory)
    try:
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(private, RUN, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to tell; the next start clears what is left
            os.unlink(private, dir_fd=directory)
        raise


def ended(
    record: RunRecord,
    state: State,
    now: float,
    *,
    exit_code: int | None,
    signal: int | None,
    why: str,
    cause: str = "",
    stopped_by: str = "",
    last_words: str = "",
) -> RunRecord:
    """The record of a run that is over."""
    return replace(
        record, state=state, ended=now, exit_code=exit_code, signal=signal, why=why, cause=cause,
        stopped_by=stopped_by, last_words=last_words,
    )  # fmt: skip


def append_line(directory: int, name: str, facts: dict[str, Any]) -> None:
    """Append one JSON line in one write, so that lines of several processes never mix.

    Raises:
        OSError: the file cannot be written.
    """
    import json

    fd = open_to_append(directory, name, os.O_RDWR)
    try:
        line = json.dumps(facts).encode() + b"\n"
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a writer was killed in mid-line: do not join onto its half
            line = b"\n" + line
        write_all(fd, line)
    finally:
        os.close(fd)


def journal(directory: int, run_id: str, event: str, now: float, **facts: Any) -> None:
    """Append an event to the directory's journal.

    Raises:
        OSError: the journal cannot be written.
    """
    append_line(directory, EVENTS, {"schema": 1, "time": round(now, 3), "run_id": run_id, "event": event, **facts})


def append_metrics(directory: int, run_id: str, values: dict[str, Any]) -> None:
    """Append a line to `metrics.jsonl`.

    Raises:
        OSError: the file cannot be written.
    """
    append_line(directory, METRICS, {"run_id": run_id, **{key: _plain(value) for key, value in values.items()}})


def _plain(value: Any) -> Any:
    """A value as strict JSON knows it: scalars of any library as numbers, no NaN and no infinity."""
    if value is None or isinstance(value, str | bool | int | list | tuple | dict):
        return value
    number = float(value)
    return number if abs(number) < _ENDLESS else None  # no number at all is not less either


def read_events(
    directory: int, names: Collection[str] = (), last_bytes: int | None = None, *, strict: bool = False
) -> Iterator[dict[str, Any]]:
    """The events of a directory, oldest first; torn lines are passed over. Flat in memory however long the journal is.

    Args:
        directory: descriptor of the results directory.
        names: only these events; empty for all. Other lines are not even parsed.
        last_bytes: only what stands in the last so many bytes of the journal; None for all of it.
        strict: for who concludes something from an event that is missing.

    Raises:
        OSError: the journal is there and cannot be read; only where that is asked for by `strict`.
    """
    try:
        fd = os.open(EVENTS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError:
        if strict:
            raise
        return
    wanted = [name.encode() for name in names]
    try:
        require_plain(fd, EVENTS)
    except OSError:
        os.close(fd)
        return
    with os.fdopen(fd, "rb") as file:
        if last_bytes is not None and (size := os.fstat(fd).st_size) > last_bytes:
            file.seek(size - last_bytes - 1)
            file.readline(_LONGEST_LINE)  # the rest of a line whose beginning was left out
        for line in _short_lines(file, strict=strict):
            if wanted and not any(name in line for name in wanted):
                continue
            try:
                event = read_json(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(name := event.get("event"), str) and (not names or name in names):
                yield event


def happened(event: Mapping[str, Any]) -> float:
    """When an event happened, seconds since the epoch; 0 where its line does not tell."""
    moment: Any = event.get("time")
    return float(moment) if is_moment(moment) else 0.0


def _short_lines(file: IO[bytes], *, strict: bool) -> Iterator[bytes]:
    """The lines of a file, without those that no event is as long as: a crash may leave a gigabyte without an end."""
    try:
        while line := file.readline(_LONGEST_LINE):
            if line.endswith(b"\n") or len(line) < _LONGEST_LINE:
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(_LONGEST_LINE)
    except OSError:  # a directory, a disk with a bad sector: what was read so far is told
        if strict:
            raise


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, however short the single writes are."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
