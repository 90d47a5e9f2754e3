"""The verdicts and plans of a recovery, as tables; what is done is tested with real processes elsewhere."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from solorun import lock
from solorun.ending import Move, Patience, next_move
from solorun.grouping import Claimant
from solorun.owner import Foreign, Free, Held, Here, Owner, ProcessId, Stale, Unknown
from solorun.recover import Recovered, StillAlive, apply, look, spoiled
from solorun.remedy import Ask, Clear, Force, Policy, Prove, PutAside, Wait, mixed, plan
from solorun.runstate import Contested, Elsewhere, Hung, Idle, Left, Orphaned, Running, Silent, Unreadable
from solorun.scenario import (
    NAMES,
    AbandonedContainer,
    AbandonedHost,
    Facts,
    Fighting,
    Healthy,
    HungRun,
    NothingToDo,
    OrphanedWorkers,
    OutOfReach,
    Scenario,
    StaleLock,
    TornFiles,
    Unguarded,
    diagnose,
)
from solorun.settings import Settings
from solorun.torn import Damaged

from .stage import HOLDING, Spawner

HERE = Here("studio", "m", "boot", "here")
INSIDE = Here("studio", "m", "boot", "container")
TORN = (Damaged("checkpoint_3.pt", "it is empty"),)


def claimant(pid: int, born: float = 100.0, *files: str, tied: bool = True) -> Claimant:
    leader = ProcessId(HERE, pid, pid)
    ask = ((leader, int(signal.SIGINT)),)
    return Claimant(leader, (leader,), frozenset(), ask, "", "ada", ("train",), born, files, ("it trains",), tied)


ONE, TWO = claimant(1), claimant(2, 200.0)
OWNER = Owner("R", ONE.leader, None, True, "ada", ("train",), "/", 0.0, "/r", 1)
IN_CONTAINER = replace(OWNER, process=ProcessId(INSIDE, 1, 1))
FOREIGN = Foreign(IN_CONTAINER, "another PID namespace")
HELD = Held(1, OWNER, "alive")
STALE = Stale(None, "PID 1 is dead")


def facts(state: object, verdict: object, *claimants: Claimant, **more: object) -> Facts:
    usual = Facts(state, verdict, claimants, (), is_locked=False, disk="", untouchable=(), here=HERE)  # type: ignore[arg-type]
    return replace(usual, **more)


ABANDONED = facts(Elsewhere(IN_CONTAINER, None), FOREIGN)
TABLE: list[tuple[Facts, type[Scenario]]] = [
    (facts(Idle(None), Free()), NothingToDo),
    (facts(Idle(None), Free(), files=TORN), TornFiles),
    (facts(Left(None, "dead"), STALE), StaleLock),
    (facts(Left(None, "dead"), STALE, is_locked=True), OutOfReach),
    (facts(Idle(None), Free(), is_locked=True), OutOfReach),
    (facts(Running(OWNER, None), HELD, ONE), Healthy),
    (facts(Running(OWNER, None), HELD, ONE, TWO), Fighting),
    (facts(Contested((1, 2)), HELD, ONE, TWO), Fighting),
    (facts(Contested((1, 2)), HELD, ONE), OutOfReach),
    (facts(Left(None, "dead"), STALE, ONE, TWO), Fighting),
    (facts(Hung(OWNER, None, "state T"), HELD, ONE), HungRun),
    (facts(Silent(OWNER, None, 99.0, "quiet"), HELD, ONE), HungRun),
    (facts(Orphaned((ONE.leader,)), STALE, ONE), OrphanedWorkers),
    (facts(Idle(None), Free(), ONE), Unguarded),
    (facts(Left(None, "dead"), STALE, ONE), Unguarded),
    (facts(Left(None, "dead"), STALE, replace(ONE, left=True)), OrphanedWorkers),
    (facts(Running(OWNER, None), HELD), OutOfReach),
    (facts(Running(OWNER, None), HELD, claimant(1, tied=False)), OutOfReach),
    (facts(Running(OWNER, None), HELD, claimant(1, tied=False), TWO), OutOfReach),
    (facts(Hung(OWNER, None, "state T"), HELD, ONE, untouchable=("bob",)), OutOfReach),
    (facts(Unreadable("/r", "link"), Unknown("link")), OutOfReach),
    (facts(Unreadable("/r", "its owner vanished"), HELD), OutOfReach),
    (ABANDONED, AbandonedContainer),
    (replace(ABANDONED, is_locked=True), OutOfReach),
    (replace(ABANDONED, disk="nfs4"), OutOfReach),
    (replace(ABANDONED, claimants=(ONE,)), OutOfReach),
    (replace(ABANDONED, here=replace(HERE, boot="another")), OutOfReach),
    (replace(ABANDONED, here=replace(HERE, boot="")), OutOfReach),
]


ON_FAR = replace(OWNER, process=ProcessId(Here("far", "far/1", "another boot", "here"), 1, 1))
FAR = facts(Elsewhere(ON_FAR, 700.0), Foreign(ON_FAR, "on host far"))
SAID_GONE: list[tuple[Facts, str, type[Scenario]]] = [
    (FAR, "", OutOfReach),
    (FAR, "near", OutOfReach),
    (FAR, "far", AbandonedHost),
    (replace(FAR, state=Elsewhere(ON_FAR, None)), "far", AbandonedHost),
    (replace(FAR, disk="nfs4"), "far", AbandonedHost),
    (replace(FAR, here=replace(HERE, boot="")), "far", AbandonedHost),
    (replace(FAR, state=Elsewhere(ON_FAR, 599.0)), "far", OutOfReach),
    (replace(FAR, is_locked=True), "far", OutOfReach),
    (replace(FAR, claimants=(ONE,)), "far", OutOfReach),
    (ABANDONED, "studio", AbandonedContainer),
    (replace(ABANDONED, is_locked=True), "studio", OutOfReach),
    (replace(ABANDONED, disk="nfs4"), "studio", AbandonedHost),
    (facts(Hung(OWNER, None, "state T"), HELD, ONE), "studio", OutOfReach),
    (facts(Left(None, "dead"), STALE), "studio", OutOfReach),
]


@pytest.mark.parametrize(("seen", "gone", "named"), SAID_GONE)
def test_what_a_host_left_is_abandoned_where_it_is_said_to_be_gone_and_nothing_contradicts_that(
    seen: Facts, gone: str, named: type[Scenario]
) -> None:
    found = diagnose(seen, gone)
    assert type(found) is named
    if not gone and isinstance(found, OutOfReach):
        assert "if that host is gone for good, add --gone-host far" in found.next_step


@pytest.mark.parametrize(("seen", "named"), TABLE)
def test_the_scenario_of_each_set_of_facts(seen: Facts, named: type[Scenario]) -> None:
    assert type(diagnose(seen)) is named


def test_every_scenario_is_in_the_table_and_has_a_name() -> None:
    assert {named for _, named in TABLE} | {AbandonedHost} == set(NAMES)


def test_a_run_that_is_still_busy_is_not_called_certain() -> None:
    certain = diagnose(facts(Hung(OWNER, None, "state T"), HELD, ONE))
    doubtful = diagnose(facts(Silent(OWNER, None, 99.0, "quiet, still using CPU"), HELD, ONE))
    assert isinstance(certain, HungRun)
    assert certain.certain
    assert isinstance(doubtful, HungRun)
    assert not doubtful.certain
    assert doubtful.proof == "quiet, still using CPU"


ENDING = [Ask, Wait, Force, Clear]


@pytest.mark.parametrize(
    ("found", "steps"),
    [
        (NothingToDo(), []),
        (Healthy(OWNER), []),
        (OutOfReach("far", ""), []),
        (StaleLock("dead"), [Clear]),
        (AbandonedContainer(IN_CONTAINER, ()), [Clear]),
        (AbandonedHost(IN_CONTAINER, ()), [Clear]),
        (TornFiles(TORN), []),
        (HungRun(ONE, "T", certain=True), ENDING),
        (HungRun(ONE, "busy", certain=False), ENDING),
        (Fighting((ONE, TWO)), ENDING),
        (OrphanedWorkers(ONE), ENDING),
        (Unguarded(ONE), ENDING),
    ],
)
def test_the_plan_of_each_scenario(found: Scenario, steps: list[type]) -> None:
    kinds = [type(step) for step in plan(found, Policy(), ())]
    does_something = bool(steps) or isinstance(found, TornFiles)
    assert kinds == [*steps, *([Prove] if does_something else [])]
    with_files = [type(step) for step in plan(found, Policy(), TORN)]
    assert with_files == ([*steps, PutAside, Prove] if does_something else [])


@pytest.mark.parametrize("found", [HungRun(ONE, "T", certain=True), Fighting((ONE, TWO)), Unguarded(ONE)])
def test_nothing_is_forced_unless_told_to(found: Scenario) -> None:
    assert Force(kill=False, term=False) in plan(found, Policy(), ())
    assert Force(kill=True, term=True) in plan(found, Policy(kill=True), ())


def test_a_hung_run_gets_a_minute_a_fight_half_of_it_and_orphans_no_kill() -> None:
    assert Wait(60.0) in plan(HungRun(ONE, "T", certain=True), Policy(), ())
    assert Wait(30.0) in plan(Fighting((ONE, TWO)), Policy(), ())
    assert Force(kill=False, term=True) in plan(OrphanedWorkers(ONE), Policy(), ())


@pytest.mark.parametrize(
    ("patience", "since_s", "alive", "sent", "move"),
    [
        (Patience(30), 5, False, signal.SIGINT, Move.DONE),
        (Patience(30), 29, True, signal.SIGINT, Move.WAIT),
        (Patience(30), 31, True, signal.SIGINT, Move.GIVE_UP),
        (Patience(30, term=True), 31, True, signal.SIGINT, Move.TERM),
        (Patience(30, term=True), 5, True, signal.SIGTERM, Move.WAIT),
        (Patience(30, term=True), 11, True, signal.SIGTERM, Move.GIVE_UP),
        (Patience(30, kill=True), 31, True, signal.SIGINT, Move.TERM),
        (Patience(30, kill=True), 11, True, signal.SIGTERM, Move.KILL),
        (Patience(30, kill=True), 5, True, signal.SIGKILL, Move.WAIT),
        (Patience(30, kill=True), 11, True, signal.SIGKILL, Move.GIVE_UP),
    ],
)
def test_the_moves_of_an_ending(patience: Patience, since_s: float, alive: bool, sent: int, move: Move) -> None:
    assert next_move(patience, since_s, alive=alive, sent=sent) is move


def test_only_what_several_wrote_to_is_mixed() -> None:
    a, b = (
        claimant(1, 100.0, "training.log", "events.jsonl", "a.txt"),
        claimant(2, 200.0, "training.log", "events.jsonl"),
    )
    (found,) = mixed((a, b), {})
    assert (found.name, "1 and 2" in found.why) == ("training.log", True)


def test_a_log_that_nobody_keeps_open_is_mixed_when_it_was_written_while_they_fought() -> None:
    assert [file.name for file in mixed((ONE, TWO), {"training.log": 201.0, "metrics.jsonl": 199.0})] == [
        "training.log"
    ]
    one_writes = (claimant(1, 100.0, "training.log"), TWO)
    assert mixed(one_writes, {"training.log": 201.0}) == ()
    assert mixed((ONE,), {"training.log": 999.0}) == ()


def test_outside_of_a_fight_only_torn_files_are_spoiled(tmp_path: Path) -> None:
    (tmp_path / "training.log").touch()
    assert spoiled(tmp_path, StaleLock("dead"), TORN) == TORN
    assert [file.name for file in spoiled(tmp_path, Fighting((ONE, TWO)), TORN)] == ["training.log", TORN[0].name]


def test_a_run_that_came_in_through_the_lock_meanwhile_is_the_proof_and_an_older_one_still_lives(
    spawn: Spawner, results: Path
) -> None:
    child = spawn.python(HOLDING, results)
    child.wait_for("holding")
    came_later = apply(results, StaleLock("dead"), Policy(), clock=lambda: 0.0)
    assert came_later == Recovered(None, (), child.pid, "")
    assert apply(results, StaleLock("dead"), Policy(), clock=time.time) == StillAlive((child.pid,))
    assert child.popen.poll() is None


def test_a_lock_that_was_taken_a_moment_ago_is_looked_at_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = lock.seize(results)
    assert isinstance(taken, lock.DirectoryLock)
    waited: list[float] = []

    def let_go(seconds: float) -> None:
        waited.append(seconds)
        taken.close()

    monkeypatch.setattr("solorun.recover.time.sleep", let_go)
    assert isinstance(diagnose(look(results, time.time(), Settings())), NothingToDo)
    assert len(waited) == 1
