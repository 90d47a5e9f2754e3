"""Memory of this machine: total, available, swap, pressure, the limit of this process; and whether a run still fits.

Everything that differs between systems is in `read`; the rest is pure.
"""

from __future__ import annotations

import sys

from solorun.frozen import dataclass
from solorun.settings import Settings
from solorun.wording import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

STRAINED_PERCENT = 10.0
"""Linux: above this share of time spent waiting for memory, the machine is short of it, whatever is available."""

_WAITED = "some avg10="
_NO_LIMIT = 1 << 60
_MARGIN = 1.1
_ASK_S = 2.0
_PRESSURE_LEVEL_WARN = 2


@dataclass(frozen=True, slots=True)
class Memory:
    """What was seen.

    Args:
        total: bytes of the machine.
        available: bytes that a new process can have without swapping, within the limit if there is one.
        swap_total: bytes.
        swap_used: bytes.
        pressure: percent; Linux: of the last 10 s in which some process waited for memory; macOS: what is not free,
            as `memory_pressure` says it; None where the system does not tell.
        limit: bytes that this process and its siblings may have together (cgroup); None for no limit.
        strained: the system itself says that it is short of memory.
    """

    total: int
    available: int
    swap_total: int
    swap_used: int
    pressure: float | None
    limit: int | None
    strained: bool = False


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A phase that will probably not fit.

    Args:
        phase: evaluating, saving, ...
        growth: bytes that the run grew by in that phase before.
        available: bytes that there are now.
        resident: bytes that the run holds now.
    """

    phase: str
    growth: int
    available: int
    resident: int

    @property
    def what(self) -> str:
        """One line for people."""
        return (
            f"{self.phase} took {size(self.growth)} on top of the {size(self.resident)} that the run holds, "
            f"and {size(self.available)} are available"
        )


def is_low(memory: Memory, settings: Settings) -> bool:
    """Whether a person should be warned: little is available, or the system says that it is short."""
    ceiling = min(memory.total, memory.limit or memory.total)
    return memory.strained or memory.available < settings.memory_low * ceiling


def describe(memory: Memory) -> str:
    """One line for people, under 72 columns."""
    limited = "" if memory.limit is None else "the limit of "
    parts = [f"{size(memory.available)} of {limited}{size(memory.limit or memory.total)} free"]
    if memory.swap_total:
        parts.append(f"swap {size(memory.swap_used)} of {size(memory.swap_total)}")
    if memory.pressure is not None:
        parts.append(f"pressure {memory.pressure:.0f} %")
    return ", ".join(parts)


def growth_by_phase(samples: Iterable[tuple[str, int]]) -> dict[str, int]:
    """How much a run grew in each phase, from looks at it in the order of time.

    Args:
        samples: (phase, resident bytes). A phase's growth is its largest sample above the last one before the phase.

    Returns:
        The largest growth of each phase that was entered; the very first phase has nothing to be compared with.
    """
    grown: dict[str, int] = {}
    before = current = ""
    base = last = 0
    for phase, resident in samples:
        if phase != current:
            before, current, base = current, phase, last
        if before:
            grown[phase] = max(grown.get(phase, 0), resident - base)
        last = resident
    return {phase: growth for phase, growth in grown.items() if growth > 0}


def forecast(available: int, resident: int, growth_by_phase: Mapping[str, int]) -> Shortfall | None:
    """Whether the next checkpoint or evaluation will fit, given how the run grew in those phases before.

    A watcher looks at its run now and then, keeps (phase, resident bytes), and asks outside of the phase in question:

        shortfall = forecast(memory.available, resident, growth_by_phase(samples))

    Args:
        available: bytes that there are now (`Memory.available`).
        resident: bytes that the run holds now, all its processes together.
        growth_by_phase: bytes by phase; phases that are not known are not forecast.

    Returns:
        The phase that lacks most; None when all known ones fit, with a tenth to spare.
    """
    worst = max(growth_by_phase.items(), key=lambda item: item[1], default=None)
    if worst is None or worst[1] * _MARGIN <= available:
        return None
    return Shortfall(worst[0], worst[1], available, resident)


def read(
    platform: str = sys.platform,
    read_text: Callable[[str], str] | None = None,
    ask: Callable[[tuple[str, ...]], str] | None = None,
) -> Memory | None:
    """Look at this machine's memory; None where nothing tells.

    Args:
        platform: `sys.platform`.
        read_text: the content of a file, empty when it cannot be read.
        ask: what a command prints, empty when it cannot be run.
    """
    if platform == "darwin":
        return _read_darwin(ask or _ask) or _read_psutil()
    return _read_linux(read_text or _read_text) or _read_psutil()


def _read_linux(read_text: Callable[[str], str]) -> Memory | None:
    facts = dict(_sizes(read_text("/proc/meminfo")))
    if not facts.get("MemTotal"):
        return None
    available = facts.get("MemAvailable", facts.get("MemFree", 0) + facts.get("Cached", 0))
    pressure = _pressure(read_text("/proc/pressure/memory"))
    limit, left = _cgroup(read_text)
    if limit is not None and limit < facts["MemTotal"]:
        available = min(available, left)
    else:
        limit = None
    return Memory(
        total=facts["MemTotal"],
        available=available,
        swap_total=facts.get("SwapTotal", 0),
        swap_used=facts.get("SwapTotal", 0) - facts.get("SwapFree", 0),
        pressure=pressure,
        limit=limit,
        strained=pressure is not None and pressure >= STRAINED_PERCENT,
    )


def _sizes(text: str) -> Iterator[tuple[str, int]]:
    """The lines `Name:  1234 kB`, in bytes."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            yield name, int(number) * 1024


def _pressure(text: str) -> float | None:
    """The first number of the line `some avg10=0.12 avg60=...`, percent."""
    for line in text.splitlines():
        if line.startswith(_WAITED):
            return _float(line[len(_WAITED) :].partition(" ")[0])
    return None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cgroup(read_text: Callable[[str], str]) -> tuple[int | None, int]:
    """The tightest limit over this process and what is left under it; of the two versions, whichever limits."""
    found: list[tuple[int, int]] = []
    for line in read_text("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found += _limits(read_text, "/sys/fs/cgroup", path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _limits(read_text, "/sys/fs/cgroup/memory", path, names)
    if not found:
        return None, 0
    return min(limit for limit, _ in found), min(left for _, left in found)


def _limits(
    read_text: Callable[[str], str], root: str, path: str, names: tuple[str, str, str]
) -> Iterable[tuple[int, int]]:
    """Limit and what is left of it in a group and every group above: each of them counts."""
    parts = [part for part in path.split("/") if part]
    for deep in range(len(parts), -1, -1):  # a container sees its own group as the root: those above are then missing
        group = "/".join([root, *parts[:deep]])
        limit = _number(read_text(f"{group}/{names[0]}"))
        if limit is None or limit >= _NO_LIMIT:
            continue
        used = _number(read_text(f"{group}/{names[1]}")) or 0
        counts = dict(line.partition(" ")[::2] for line in read_text(f"{group}/memory.stat").splitlines())
        # The kernel drops what it only cached of files before it kills anybody.
        yield limit, max(0, limit - used + (_number(counts.get(names[2], "")) or 0))


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _read_darwin(ask: Callable[[tuple[str, ...]], str]) -> Memory | None:
    import re

    told = ask(("sysctl", "hw.memsize", "vm.swapusage", "kern.memorystatus_vm_pressure_level"))
    pages = ask(("vm_stat",))
    total = re.search(r"hw\.memsize: (\d+)", told)
    page = re.search(r"page size of (\d+) bytes", pages)
    if total is None or page is None:
        return None
    counts = {name: int(number) for name, number in re.findall(r"^Pages (\w+):\s+(\d+)\.", pages, re.MULTILINE)}
    free = sum(counts.get(name, 0) for name in ("free", "inactive", "speculative"))
    swap = {name: _megabytes(number) for name, number in re.findall(r"(total|used) = ([\d.,]+)M", told)}
    percent = re.search(r"free percentage: (\d+)%", ask(("memory_pressure", "-Q")))
    level = re.search(r"vm_pressure_level: (\d+)", told)
    return Memory(
        total=int(total[1]),
        available=free * int(page[1]),
        swap_total=swap.get("total", 0),
        swap_used=swap.get("used", 0),
        pressure=100.0 - int(percent[1]) if percent else None,
        limit=None,
        strained=bool(level and int(level[1]) >= _PRESSURE_LEVEL_WARN),
    )


def _megabytes(text: str) -> int:
    return int(float(text.replace(",", ".")) * 1024 * 1024)


def _read_psutil() -> Memory | None:
    try:
        import psutil

        machine, swap = psutil.virtual_memory(), psutil.swap_memory()
    except (ImportError, OSError, RuntimeError):
        return None
    return Memory(machine.total, machine.available, swap.total, swap.used, None, None)


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _ask(command: tuple[str, ...]) -> str:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ASK_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
