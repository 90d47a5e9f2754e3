"""Memory: what the system tells on Linux, in a limited group and on macOS, and whether the next phase still fits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from solorun import memory
from solorun.memory import Memory, Shortfall, describe, forecast, growth_by_phase, is_low
from solorun.settings import Settings
from solorun.wording import size

GIB = 1 << 30
MEMINFO = """\
MemTotal:       16777216 kB
MemFree:          524288 kB
MemAvailable:    8388608 kB
Cached:          1048576 kB
SwapTotal:       2097152 kB
SwapFree:        1572864 kB
"""
PSI = "some avg10=3.50 avg60=1.00 avg300=0.20 total=1\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=1\n"
PLENTY = Memory(16 * GIB, 8 * GIB, 2 * GIB, GIB // 2, 3.5, None)


def linux(**files: str) -> Memory | None:
    """What is read where these files are all there is; `/` is written `__`."""
    given = {name.replace("__", "/").replace("_dot_", "."): text for name, text in files.items()}
    return memory.read("linux", lambda path: given.get(path.removeprefix("/"), ""))


def test_linux_tells_total_available_swap_and_pressure() -> None:
    assert linux(proc__meminfo=MEMINFO, proc__pressure__memory=PSI) == PLENTY


def test_a_kernel_without_pressure_and_available_is_still_read() -> None:
    found = linux(proc__meminfo=MEMINFO.replace("MemAvailable", "Other"))
    assert found is not None
    assert (found.pressure, found.strained, found.available) == (None, False, GIB // 2 + GIB)


V2 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "0::/user.slice/job\n",
    "sys/fs/cgroup/user.slice/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/job/memory.max": str(2 * GIB),
    "sys/fs/cgroup/user.slice/job/memory.current": str(GIB),
    "sys/fs/cgroup/user.slice/job/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
}
V1 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/docker/b\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
}


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1 within a container"])
def test_a_limit_of_the_group_counts_and_cached_files_count_as_available(files: dict[str, str]) -> None:
    found = memory.read("linux", lambda path: files.get(path.removeprefix("/"), ""))
    assert found is not None
    assert (found.limit, found.available) == (2 * GIB, GIB + GIB // 2)


def test_a_limit_on_a_group_above_counts_too() -> None:
    files = {**V2, "sys/fs/cgroup/user.slice/memory.max": str(GIB), "sys/fs/cgroup/user.slice/memory.current": "0"}
    found = memory.read("linux", lambda path: files.get(path.removeprefix("/"), ""))
    assert found is not None
    assert (found.limit, found.available) == (GIB, GIB)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", str(64 * GIB)])
def test_a_limit_that_limits_nothing_is_none(limit: str) -> None:
    files = {**V2, "sys/fs/cgroup/user.slice/job/memory.max": limit}
    found = memory.read("linux", lambda path: files.get(path.removeprefix("/"), ""))
    assert found is not None
    assert (found.limit, found.available) == (None, 8 * GIB)


SYSCTL = """\
hw.memsize: 38654705664
vm.swapusage: total = 2048.00M  used = 512.50M  free = 1535.50M  (encrypted)
kern.memorystatus_vm_pressure_level: {}
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               65536.
Pages active:                            900000.
Pages inactive:                           65536.
Pages speculative:                            0.
"Translation faults":                 123456789.
"""


def a_mac(level: int = 1, percent: str = "43") -> Callable[[tuple[str, ...]], str]:
    answers = {
        "sysctl": SYSCTL.format(level),
        "vm_stat": VM_STAT,
        "memory_pressure": f"The system has 38654705664\nSystem-wide memory free percentage: {percent}%\n",
    }
    return lambda command: answers[command[0]]


def test_macos_is_read_from_sysctl_vm_stat_and_memory_pressure() -> None:
    found = memory.read("darwin", ask=a_mac())
    assert found == Memory(36 * GIB, 2 * GIB, 2 * GIB, 512 * 1024**2 + 512 * 1024, 57.0, None, False)


def test_macos_says_itself_when_it_is_short_of_memory() -> None:
    found = memory.read("darwin", ask=a_mac(level=2))
    assert found is not None
    assert found.strained


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_where_the_system_does_not_tell_psutil_does(platform: str) -> None:
    found = memory.read(platform, lambda _path: "", lambda _command: "")
    assert found is not None
    assert 0 < found.available <= found.total


def test_without_psutil_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert memory.read("linux", lambda _path: "") is None


def test_this_machine_can_be_read() -> None:
    found = memory.read()
    assert found is not None
    assert 0 < found.available <= found.total
    assert not is_low(replace(found, available=found.total, strained=False), Settings())


@pytest.mark.parametrize(
    ("seen", "low"),
    [
        (PLENTY, False),
        (replace(PLENTY, available=GIB // 2), True),
        (replace(PLENTY, strained=True), True),
        (replace(PLENTY, available=GIB // 2, limit=GIB), False),
    ],
    ids=["plenty", "little", "the system says so", "little of the machine, much of the limit"],
)
def test_memory_is_low_when_little_is_left_or_the_system_says_so(seen: Memory, low: bool) -> None:
    assert is_low(seen, Settings(memory_low=0.05)) is low


def test_it_is_told_in_one_line_that_fits() -> None:
    assert describe(PLENTY) == "8.0 GiB of 16 GiB free, swap 512 MiB of 2.0 GiB, pressure 4 %"
    limited = replace(PLENTY, available=GIB, limit=2 * GIB, swap_total=0, pressure=None)
    assert describe(limited) == "1.0 GiB of the limit of 2.0 GiB free"


def test_sizes_are_said_as_people_do() -> None:
    assert [size(n) for n in (0, 1023, 2048, 5 * 1024**2, 300 * 1024**2, 36 * GIB)] == [
        "0 B", "1023 B", "2 KiB", "5.0 MiB", "300 MiB", "36 GiB",
    ]  # fmt: skip


def test_growth_of_a_phase_is_its_largest_look_above_the_last_one_before_it() -> None:
    samples = [
        ("training", 100), ("training", 110), ("saving", 190), ("saving", 150), ("training", 112),
        ("evaluating", 130), ("training", 111), ("saving", 180),
    ]  # fmt: skip
    assert growth_by_phase(samples) == {"saving": 80, "evaluating": 18}
    assert growth_by_phase([("training", 100), ("training", 500)]) == {}
    assert growth_by_phase([]) == {}


@pytest.mark.parametrize(
    ("available", "grown", "expected"),
    [
        (100, {"saving": 80, "evaluating": 10}, None),
        (85, {"saving": 80, "evaluating": 10}, "saving"),
        (5, {"saving": 80, "evaluating": 90}, "evaluating"),
        (0, {}, None),
    ],
)
def test_the_forecast_names_the_phase_that_will_not_fit(
    available: int, grown: dict[str, int], expected: str | None
) -> None:
    found = forecast(available, 1000, grown)
    assert (found and found.phase) == expected


def test_a_shortfall_is_told_in_one_line() -> None:
    assert Shortfall("saving", 3 * GIB, GIB, 2 * GIB).what == (
        "saving took 3.0 GiB on top of the 2.0 GiB that the run holds, and 1.0 GiB are available"
    )
