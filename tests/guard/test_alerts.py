"""What is warned of, when it is told again, and in which words: tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from solorun.alerts import Observation, alerts
from solorun.disk import Room
from solorun.hang import Busy, Certain, Strong, Working
from solorun.memory import Memory, Shortfall
from solorun.settings import Settings

GIB = 1 << 30
PLENTY = Memory(total=100 * GIB, available=50 * GIB, swap_total=0, swap_used=0, pressure=0.0, limit=None)
WIDE = Room(Path("/r"), free=100 * GIB, inodes=100_000, checkpoint=GIB)
WELL = Observation(
    pid=4242,
    verdict=Working(),
    quiet_s=5.0,
    phase="training",
    step=12,
    memory=PLENTY,
    shortfall=None,
    room=WIDE,
)
SHORT = Shortfall("saving", growth=6 * GIB, available=4 * GIB, resident=20 * GIB)
ROOMY = "room for 100.0 more checkpoints (100 GiB left; the newest has 1.0 GiB)"
NOTHING: frozenset[str] = frozenset()


def with_free(free: float, checkpoint: float = 1.0) -> dict[str, object]:
    return {"room": replace(WIDE, free=int(free * GIB), checkpoint=int(checkpoint * GIB))}


def with_memory(available: float, **more: object) -> dict[str, object]:
    return {"memory": replace(PLENTY, available=int(available * GIB), **more)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "occasions"),
    [
        ({}, []),
        ({"verdict": Certain("x")}, ["hang"]),
        ({"verdict": Strong("x")}, ["hang"]),
        ({"verdict": Busy("x")}, ["hang"]),
        (with_memory(5.0), []),
        (with_memory(4.99), ["memory"]),
        (with_memory(50.0, strained=True), ["memory"]),
        (with_memory(4.0, limit=50 * GIB), []),
        ({"shortfall": SHORT}, ["memory"]),
        ({"memory": None, "shortfall": SHORT}, []),
        (with_free(2.0), []),
        (with_free(1.99), ["disk"]),
        (with_free(0.4, 0.0), ["disk"]),
        ({"room": replace(WIDE, inodes=3)}, ["disk"]),
        ({"room": replace(WIDE, inodes=None)}, []),
        ({"room": None}, []),
        ({"verdict": Busy("x"), **with_free(0.0), **with_memory(0.0)}, ["hang", "memory", "disk"]),
    ],
)
def test_what_is_warned_of(changes: dict[str, object], occasions: list[str]) -> None:
    found = alerts(replace(WELL, **changes), NOTHING, Settings())  # type: ignore[arg-type]
    assert [alert.occasion for alert in found.new] == occasions
    assert found.over == NOTHING


@pytest.mark.parametrize(
    ("changes", "told", "over"),
    [
        ({"verdict": Busy("x")}, {"hang"}, set()),
        ({"verdict": Strong("x")}, {"hang"}, set()),
        ({}, {"hang"}, {"hang"}),
        (with_memory(4.0), {"memory"}, set()),
        (with_memory(7.4), {"memory"}, set()),
        (with_memory(7.6), {"memory"}, {"memory"}),
        ({"memory": None}, {"memory"}, {"memory"}),
        (with_free(1.0), {"disk"}, set()),
        (with_free(2.9), {"disk"}, set()),
        (with_free(3.0), {"disk"}, {"disk"}),
        ({}, {"disk", "memory", "hang"}, {"disk", "memory", "hang"}),
    ],
)
def test_a_warning_is_told_once_until_it_has_passed_by_a_margin(
    changes: dict[str, object], told: set[str], over: set[str]
) -> None:
    found = alerts(replace(WELL, **changes), frozenset(told), Settings())  # type: ignore[arg-type]
    assert found.new == ()
    assert found.over == over


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"verdict": Certain("PID 4242 is suspended")}, "hangs at step 12: PID 4242 is suspended"),
        ({"verdict": Strong("no progress for 3 min"), "step": None}, "hangs: no progress for 3 min"),
        ({"verdict": Busy("no progress, still using CPU")}, "may hang at step 12: no progress, still using CPU"),
        (with_memory(2.0), "memory low: 2.0 GiB of 100 GiB free, pressure 0 %"),
        (
            {"shortfall": SHORT},
            f"memory may not last: {SHORT.what}",
        ),
        (
            with_free(1.5),
            "disk low: room for 1.5 more checkpoints (1.5 GiB left; the newest has 1.0 GiB)",
        ),
        (
            with_free(0.25, 0.0),
            "disk low: room for 1.0 more checkpoints (256 MiB left; taken to need 256 MiB each)",
        ),
        (
            {"room": replace(WIDE, inodes=3)},
            "disk low: room for 100.0 more checkpoints (100 GiB left and 3 files; the newest has 1.0 GiB)",
        ),
        (
            {"phase": "paused:-disk-full"},  # by a quota: the disk itself has room
            f"the run pauses at step 12 until there is room: {ROOMY}",
        ),
    ],
)
def test_a_warning_says_what_was_seen(changes: dict[str, object], text: str) -> None:
    (alert,) = alerts(replace(WELL, **changes), NOTHING, Settings()).new  # type: ignore[arg-type]
    assert alert.text == text


def test_the_facts_of_each_warning() -> None:
    bad = replace(WELL, verdict=Busy("x"), shortfall=SHORT, room=replace(WIDE, free=0))
    facts = {alert.occasion: set(alert.facts) for alert in alerts(bad, NOTHING, Settings()).new}
    assert facts == {
        "hang": {"pid", "certainty", "quiet_s", "phase", "step"},
        "memory": {"available", "total", "growth", "resident", "phase"},
        "disk": {"free", "checkpoint", "inodes"},
    }
