"""The states of a results directory, named from evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solorun.owner import Alive, Foreign, Free, Gone, Held, Here, Label, Owner, ProcessId, Stale, Unknown
from solorun.progress import Progress
from solorun.record import RunRecord
from solorun.runstate import (
    NAMES,
    PROBLEMS,
    Contested,
    Elsewhere,
    Evidence,
    Hung,
    Idle,
    Left,
    Orphaned,
    Running,
    RunState,
    Silent,
    Unreadable,
    classify,
    detail,
    quiet_for,
    silence_limit,
)
from solorun.settings import Settings

NOW = 1_800_000_000.0
RUN = "20260101-000000-aaaaaaaa"
HERE = Here("studio", "m", "b", "")
ME = ProcessId(HERE, 42, 7)
OWNER = Owner(RUN, ME, None, True, "ada", ("t",), "/", NOW - 5000, "/r", 9)
PROGRESS = Progress(RUN, "training", 10, 100, NOW - 1, NOW - 4000, 0.5, 0.5, 1)
RECORD = RunRecord(RUN, None, ("t",), "ada", "studio", 42, NOW - 5000)
SETTINGS = Settings()
HELD = Held(42, OWNER, "alive")
LABEL = Label(42, b"42\n", 5, NOW - 5000)
OTHER = Label(43, b"43\n", 6, NOW - 10)

RUNNING = Evidence(
    directory="/r", verdict=HELD, owner=OWNER, label=LABEL, label_alive=True, sighting=Alive(7, NOW - 5000, "R"),
    survivors=(), progress=PROGRESS, record=RECORD, log_age_s=3.0,
)  # fmt: skip
OVER = replace(RUNNING, verdict=Free(), owner=None, label=None, label_alive=False, sighting=Gone(), progress=None)
LATE = replace(PROGRESS, time=NOW - 400)

TABLE: list[tuple[str, Evidence, type[RunState], str]] = [
    ("nobody, never", replace(OVER, record=None), Idle, "no run yet"),
    ("nobody any more", replace(OVER, record=replace(RECORD, state="completed")), Idle, "last run completed"),
    ("nobody, and nobody wrote the end down", OVER, Idle, "last run lost"),
    ("moving", RUNNING, Running, "training"),
    ("alive, reports no steps, its log is fresh", replace(RUNNING, progress=None), Running, "reports no steps"),
    ("alive, with an old heartbeat", replace(RUNNING, progress=replace(LATE, run_id="old")), Running, "no steps"),
    ("sleeping on a device", replace(RUNNING, sighting=Alive(7, 0.0, "S")), Running, "training"),
    ("no step for long", replace(RUNNING, progress=LATE), Silent, "training for 6 min (usual: under 90 s)"),
    ("no step and no log for long", replace(RUNNING, progress=None, log_age_s=301), Silent, "the log has not grown"),
    ("suspended", replace(RUNNING, sighting=Alive(7, 0.0, "T")), Hung, "suspended"),
    ("traced", replace(RUNNING, sighting=Alive(7, 0.0, "t")), Hung, "suspended"),
    ("label of another live process", replace(RUNNING, label=OTHER), Contested, "PIDs 42 and 43"),
    ("label of another, dead process", replace(RUNNING, label=OTHER, label_alive=False), Running, "training"),
    ("no label", replace(RUNNING, label=None), Running, "training"),
    ("left behind", replace(OVER, verdict=Stale(LABEL, "PID 42 is dead")), Left, "PID 42 is dead"),
    ("left with survivors", replace(OVER, verdict=Stale(LABEL, "x"), survivors=(ME,)), Orphaned, "PID 42 of it"),
    ("survivors without a lock", replace(OVER, survivors=(ME,)), Orphaned, "PID 42 of it"),
    ("another host", replace(RUNNING, verdict=Foreign(OWNER, "far")), Elsewhere, "host studio, last step 1 s ago"),
    ("another host, silent", replace(RUNNING, verdict=Foreign(OWNER, "far"), progress=None), Elsewhere, "host studio;"),
    ("cannot be told", replace(RUNNING, verdict=Unknown("a link")), Unreadable, "a link"),
    ("ended while it was looked at", replace(RUNNING, owner=None), Unreadable, "vanished"),
]  # fmt: skip


@pytest.mark.parametrize(("evidence", "state", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_state(evidence: Evidence, state: type[RunState], words: str) -> None:
    found = classify(evidence, NOW, SETTINGS)
    assert type(found) is state
    assert words in detail(found)


def test_every_state_has_a_name_and_the_problems_are_states() -> None:
    assert set(NAMES) == {Idle, Running, Silent, Hung, Left, Orphaned, Contested, Elsewhere, Unreadable}
    assert set(NAMES.values()) >= PROBLEMS


@pytest.mark.parametrize(
    ("longest", "limit"),
    [(0.0, 300.0), (0.5, 90.0), (15.0, 90.0), (16.0, 96.0), (100.0, 600.0), (150.0, 900.0), (5000.0, 900.0)],
)
def test_the_limit_follows_the_slowest_recent_step_between_floor_and_ceiling(longest: float, limit: float) -> None:
    assert silence_limit(replace(PROGRESS, longest_s=longest), SETTINGS) == limit


def test_the_limit_of_a_run_that_reports_nothing_is_its_own_setting() -> None:
    assert silence_limit(None, Settings(silent_unknown_s=7)) == 7


@pytest.mark.parametrize(
    ("progress", "log_age", "since", "quiet"),
    [
        (PROGRESS, 999.0, 0.0, 1.0),
        (replace(PROGRESS, time=NOW + 60), None, 0.0, 0.0),
        (None, 30.0, NOW - 500, 30.0),
        (None, 5000.0, NOW - 20, 20.0),
        (None, None, NOW - 500, 500.0),
        (None, None, NOW + 500, 0.0),
    ],
    ids=[
        "by its heartbeat",
        "a beat from the future",
        "by its log",
        "an old log, a new run",
        "by its start",
        "not yet",
    ],
)
def test_how_long_a_run_has_been_quiet(
    progress: Progress | None, log_age: float | None, since: float, quiet: float
) -> None:
    assert quiet_for(progress, log_age, since, NOW) == quiet
