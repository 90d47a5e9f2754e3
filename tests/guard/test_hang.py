"""Hung or working: the verdict over two looks at the processes of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from solorun.hang import Busy, Certain, Looks, Strong, Working, judge_hang
from solorun.owner import Activity

from .test_runstate import LATE, NOW, RUNNING, SETTINGS
from .test_runstate import PROGRESS as RECENT

IDLE = Activity("S", 10.0, 500)
COMPUTED = Activity("R", 10.5, 510)
SCHEDULED = Activity("S", 10.0, 502)
NOTHING = Activity("S", 0.0, 0)
LATE_S, LIMIT_S = 400.0, 90.0


def state(letter: str, activity: Activity = IDLE) -> Activity:
    return replace(activity, state=letter)


def looks(
    before: Activity | None, after: Activity | None, *others: tuple[int, Activity | None, Activity | None]
) -> Looks:
    first, second = {42: before}, {42: after}
    for pid, earlier, later in others:
        first[pid], second[pid] = earlier, later
    return Looks(42, first, second, 0.5, NOTHING)


def worker(before: Activity | None, after: Activity | None) -> tuple[int, Activity | None, Activity | None]:
    return 43, before, after


TABLE = [
    ("suspended", looks(state("T"), state("T")), 1.0, Certain, "PID 42 is suspended (state T); SIGCONT"),
    ("suspended and late", looks(state("T"), state("T")), LATE_S, Certain, "suspended (state T)"),
    ("woken between the looks", looks(state("T"), SCHEDULED), 1.0, Working, ""),
    ("held by a debugger", looks(state("t"), state("t")), 1.0, Certain, "by a debugger"),
    ("under strace", looks(state("t"), state("t", SCHEDULED)), 1.0, Working, ""),
    ("half dead", looks(state("Z"), state("Z")), 1.0, Certain, "state Z"),
    ("its first thread ended, others work", looks(state("Z"), state("Z", COMPUTED)), 1.0, Working, ""),
    ("disk wait beyond the limit", looks(state("D"), state("D")), LATE_S, Certain, "state D"),
    ("disk wait within the limit: it saves", looks(state("D"), state("D")), 1.0, Working, ""),
    ("much disk work beyond the limit", looks(state("D"), state("D", SCHEDULED)), LATE_S, Busy, "being scheduled"),
    ("dead still", looks(IDLE, IDLE), LATE_S, Strong, "no CPU time and no context switch in 0.5 s"),
    ("dead still within its limit: on a device", looks(IDLE, IDLE), 1.0, Working, ""),
    ("endless loop", looks(IDLE, COMPUTED), LATE_S, Busy, "still using CPU"),
    ("a long step within its limit", looks(IDLE, COMPUTED), 1.0, Working, ""),
    ("retries", looks(IDLE, SCHEDULED), LATE_S, Busy, "still being scheduled"),
    ("only a worker computes", looks(IDLE, IDLE, worker(IDLE, COMPUTED)), LATE_S, Busy, "still using CPU"),
    ("trainer and worker still", looks(IDLE, IDLE, worker(IDLE, IDLE)), LATE_S, Strong, "no CPU time"),
    ("a worker ended", looks(IDLE, IDLE, worker(IDLE, None)), LATE_S, Busy, "not all"),
    ("a thread ended", looks(SCHEDULED, IDLE), LATE_S, Busy, "still being scheduled"),
    ("nothing can be seen", looks(None, None), LATE_S, Busy, "cannot be looked at"),
    ("nothing can be seen, in time", looks(None, None), 1.0, Working, ""),
]


@pytest.mark.parametrize(
    ("seen", "quiet_s", "kind", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_verdict(seen: Looks, quiet_s: float, kind: type, words: str) -> None:
    found = judge_hang(seen, quiet_s, LIMIT_S, "no progress for 400 s")
    assert type(found) is kind
    assert words in str(found)


def test_processes_that_come_and_go_are_not_hung() -> None:
    seen = looks(IDLE, IDLE)
    new = replace(seen, second={**seen.second, 44: IDLE})
    assert judge_hang(new, LATE_S, LIMIT_S, "quiet") == Busy("quiet, but processes of it come and go")


def test_where_the_keepers_waking_shows_it_is_allowed_for() -> None:
    woken = Activity("S", 10.003, 506)
    seen = replace(looks(IDLE, woken), background=Activity("S", 0.004, 8))
    assert isinstance(judge_hang(seen, LATE_S, LIMIT_S, "quiet"), Strong)
    assert isinstance(judge_hang(replace(seen, background=NOTHING), LATE_S, LIMIT_S, "quiet"), Busy)


# What the verdict makes of the state of a directory.


def test_a_log_that_grows_does_not_count_for_a_run_that_reports_steps() -> None:
    from solorun.runstate import Silent, classify

    retrying = replace(RUNNING, progress=LATE, log_age_s=0.0, looks=looks(IDLE, SCHEDULED))
    found = classify(retrying, NOW, SETTINGS)
    assert isinstance(found, Silent)
    assert (found.for_s, "still being scheduled" in found.evidence) == (400.0, True)


def test_certain_and_strong_are_hung_and_what_went_on_meanwhile_is_running() -> None:
    from solorun.runstate import Hung, Running, classify, needs_second_look

    late = replace(RUNNING, progress=LATE)
    assert needs_second_look(late, NOW, SETTINGS)
    assert not needs_second_look(RUNNING, NOW, SETTINGS)
    assert isinstance(classify(replace(late, looks=looks(IDLE, IDLE)), NOW, SETTINGS), Hung)
    assert isinstance(classify(replace(RUNNING, looks=looks(state("T"), state("T"))), NOW, SETTINGS), Hung)
    assert isinstance(classify(replace(late, progress=RECENT, looks=looks(IDLE, IDLE)), NOW, SETTINGS), Running)
