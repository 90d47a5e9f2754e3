"""What else trains on this machine, and what was orphaned, told from the process table. All pure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from solorun.frozen import dataclass
from solorun.owner import ProcessId
from solorun.process.table import Seen

HOG_BYTES = 1 << 30
HOG_CPU = 0.5
"""A process without a parent is worth a word from this much memory, or this share of a CPU over its life, on."""

_HOG_AGE_S = 60.0
_PYTHON = re.compile(r"(python|pypy)[\d.]*t?", re.ASCII | re.IGNORECASE)
_TAKES_VALUE = ("-X", "-W", "--check-hash-based-pycs")
_LAUNCHERS = frozenset({"torchrun", "accelerate", "deepspeed", "horovodrun"})
_LAUNCHER_MODULES = frozenset({"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"})
_TRAINS = re.compile(r"(pre|re)?train(er|ing)?|finetun(e|ing)", re.ASCII)
_ADOPTING = frozenset({"systemd", "init", "launchd", "tini", "docker-init", "dumb-init", "catatonit"})


@dataclass(frozen=True, slots=True)
class Training:
    """A training run with its helpers.

    Args:
        leader: the process that the others descend from.
        program: which program it is, the same for every run of it; empty when that cannot be told.
        members: all its processes, the leader among them.
    """

    leader: Seen
    program: str
    members: tuple[Seen, ...]

    @property
    def pids(self) -> frozenset[int]:
        """Every PID of it."""
        return frozenset(member.row.pid for member in self.members)

    @property
    def resident(self) -> int:
        """Bytes of memory, all members together; what they share is counted more than once."""
        return sum(member.row.resident for member in self.members)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that nobody watches over.

    Args:
        seen: it.
        proven: its run is over; otherwise it only looks so.
        why: one line.
    """

    seen: Seen
    proven: bool
    why: str


def program_of(argv: Sequence[str], cwd: str = "") -> str:
    """Which training program a command line runs, the same for every run of it; empty when it trains nothing.

    A script by its path, `-m module` by the module, and `kssm train v3` by those words, however it is called.
    """
    target, rest, is_module = _target(argv)
    name = os.path.basename(target)
    if (is_module and target in _LAUNCHER_MODULES) or name in _LAUNCHERS:
        at = next((at for at, word in enumerate(rest) if word in ("-m", "--module") or word.endswith(".py")), len(rest))
        if rest[at : at + 1] and rest[at].startswith("-"):
            return program_of(("python3", "-m", *rest[at + 1 :]), cwd)
        return _path("".join(rest[at : at + 1]), cwd)
    if name == "kssm" and rest[:1] == ["train"]:
        return " ".join(("kssm", *rest[:2]))
    if is_module:
        return f"-m {target}" if _says_training(target.rpartition(".")[2]) else ""
    if name.endswith(".py"):
        return _path(target, cwd) if _says_training(name[:-3]) else ""
    return ""


def _target(argv: Sequence[str]) -> tuple[str, list[str], bool]:
    """What an interpreter runs and with which arguments, and whether it is a module; the program itself otherwise."""
    words = list(argv)
    if not words or not _PYTHON.fullmatch(os.path.basename(words[0])):
        return words[0] if words else "", words[1:], False
    at = 1
    while at < len(words) and words[at].startswith("-"):
        if words[at] == "-m":
            return (words[at + 1] if at + 1 < len(words) else ""), words[at + 2 :], True
        if words[at] in ("-c", "-"):
            return "", [], False
        at += 2 if words[at] in _TAKES_VALUE else 1
    return (words[at] if at < len(words) else ""), words[at + 1 :], False


def _says_training(stem: str) -> bool:
    """Whether a word of a program's name says that it trains; test_train.py tests."""
    words = re.split(r"[^A-Za-z]+", stem.lower())
    return words[0] not in ("test", "conftest") and any(_TRAINS.fullmatch(word) for word in words)


def _path(script: str, cwd: str) -> str:
    return os.path.normpath(os.path.join(cwd, script)) if script else ""


def is_python(argv: Sequence[str]) -> bool:
    """Whether a command line is a Python interpreter's."""
    return bool(argv) and _PYTHON.fullmatch(os.path.basename(argv[0])) is not None


def says_cpu(argv: Sequence[str]) -> bool:
    """Whether a command line chooses the CPU by a flag `--device cpu`."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return any(word == "--device=cpu" or (word == "--device" and following == "cpu") for word, following in pairs)


def family(seen: Iterable[Seen], pid: int, run_id: str = "") -> frozenset[int]:
    """A process, its ancestors, its descendants, and everything of its own run: none of them is a neighbour."""
    everyone = tuple(seen)
    parents = {one.row.pid: one.row.parent for one in everyone}
    own = {pid, *_ancestors(pid, parents)}
    own |= {one.row.pid for one in everyone if pid in _ancestors(one.row.pid, parents)}
    return frozenset(own | {one.row.pid for one in everyone if run_id and one.run_id == run_id})


def trainings(seen: Iterable[Seen], mine: frozenset[int] = frozenset()) -> tuple[Training, ...]:
    """Every training run, by its leader: guarded runs of whatever command, and command lines that train.

    Args:
        seen: the process table.
        mine: PIDs that are not looked at.
    """
    by_pid = {one.row.pid: one for one in seen if one.row.pid not in mine}
    parents = {pid: one.row.parent for pid, one in by_pid.items()}
    marked = {pid for pid, one in by_pid.items() if one.run_id or program_of(one.row.argv, one.cwd)}
    groups: dict[int, list[Seen]] = {}
    for pid in marked:
        leader = next((above for above in reversed(_ancestors(pid, parents)) if above in marked), pid)
        groups.setdefault(leader, []).append(by_pid[pid])
    return tuple(_training(by_pid[leader], members) for leader, members in sorted(groups.items()))


def _training(leader: Seen, members: list[Seen]) -> Training:
    names = (program_of(member.row.argv, member.cwd) for member in (leader, *members))
    return Training(leader, next(filter(None, names), ""), tuple(members))


def orphans(
    seen: Iterable[Seen], mine: frozenset[int], live: frozenset[str], holds: Callable[[int], bool]
) -> tuple[Orphan, ...]:
    """Processes of runs that are over, and large or busy Python processes that have neither parent nor terminal.

    Args:
        seen: the process table.
        mine: PIDs that are not looked at.
        live: ids of runs that are known to go on.
        holds: whether a PID still holds its results directory, and so is the run itself.
    """
    by_pid = {one.row.pid: one for one in seen}
    found = []
    for pid, one in sorted(by_pid.items()):
        if pid in mine or not _is_adopted(one, by_pid):
            continue
        if one.run_id:
            if one.run_id not in live and not _lives(one.supervisor, by_pid) and not holds(pid):
                found.append(Orphan(one, True, f"its run {one.run_id} is over"))
        elif is_python(one.row.argv) and not one.row.has_terminal and not program_of(one.row.argv):
            busy = one.row.age_s >= _HOG_AGE_S and one.row.cpu_s >= HOG_CPU * one.row.age_s
            if busy or one.row.resident >= HOG_BYTES:
                found.append(Orphan(one, False, "Python with neither parent nor terminal"))
    return tuple(found)


def _is_adopted(one: Seen, by_pid: Mapping[int, Seen]) -> bool:
    """Whether its parent died and init, or what stands for it, took it in."""
    parent = by_pid.get(one.row.parent)
    if parent is None:  # outside of what can be seen, as for `docker exec`
        return one.row.parent == 1
    name = os.path.basename(parent.row.argv[0])
    is_init = parent.row.pid == 1 and not is_python(parent.row.argv)
    return is_init or name in _ADOPTING


def _lives(process: ProcessId | None, by_pid: Mapping[int, Seen]) -> bool:
    found = by_pid.get(process.pid) if process else None
    return found is not None and found.process == process


def _ancestors(pid: int, parents: Mapping[int, int]) -> list[int]:
    """From the parent up."""
    above: list[int] = []
    at = parents.get(pid, 0)
    while at and at not in above and at != pid:
        above.append(at)
        at = parents.get(at, 0)
    return above
