"""Whatever happens to a results directory and to its processes, in whatever order: the promises hold.

A Hypothesis state machine over real directories and real processes. After each step: at most one writer, no lock that
nobody holds and no start can pass, each run's parent is the run before it, each run that is over has one end, and
status says what is true.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
from collections import Counter

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from solorun import process
from tests.faults.actor import forked_server
from tests.faults.tally import Tally
from tests.faults.world import NOBODY, Orphan, Place, Player, World, until

STEPS = 30
LONG_EXAMPLES = 400
"""Of the long form; some 30 steps each."""

PHASES = (Phase.generate, Phase.shrink)

_ANY = st.integers(0, 5)
_MOST_PLAYERS = 5
_MOST_PLACES = 3

counted: Counter[str] = Counter()


@functools.cache
def _server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """One for all examples: it costs half a second."""
    return forked_server()


class Lifecycles(RuleBasedStateMachine):
    """What people, machines and accidents do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(_server()[1])

    def teardown(self) -> None:
        """At the end every directory can be started in again, and then every run has exactly one end."""
        try:
            self.every_directory_can_be_used_again()
        finally:
            self.world.close()

    # --- who and where -------------------------------------------------------------------------------------------

    def _place(self, number: int) -> Place:
        return self.world.places[number % len(self.world.places)]

    def _plain(self) -> list[Player]:
        return [p for p in self.world.players if p.holds and not p.command and not p.suspended]

    def _supervisors(self) -> list[Player]:
        return [p for p in self.world.players if p.command]

    def _awake(self) -> list[Player]:
        return [p for p in self.world.players if not p.suspended and not p.command]

    def _suspended(self) -> list[Player]:
        return [p for p in self.world.players if p.suspended]

    def _old(self) -> list[Player]:
        there = [p for p in self.world.players if p.old and not p.suspended]
        return [p for p in there if p.old is not None and p.old.path == p.old_path]

    def _free(self, host: str, user: int) -> Player | None:
        found = (p for p in self.world.players if p.is_free() and (p.host, p.user) == (host, user))
        player = next(found, None)
        if player is None and len(self.world.players) < _MOST_PLAYERS:
            player = self.world.enter(host, user)
        return player

    # --- starts and ends -----------------------------------------------------------------------------------------

    @rule(where=_ANY, host=st.sampled_from(["here", "here", "here", "container", "far"]), other=st.booleans())
    def start(self, where: int, host: str, other: bool) -> None:
        """A trainer starts by hand, as root or as another user, here or on another host that sees the directory."""
        player = self._free(host, NOBODY if other and os.getuid() == 0 else 0)
        if player is not None:
            counted["starts"] += 1
            place = self._place(where)
            self._judge(player, place, self.world.ask(player, "hold", directory=str(place.path)))

    @rule(where=_ANY)
    def start_under_a_supervisor(self, where: int) -> None:
        """`solorun start DIR -- sleep`."""
        player = self._free("here", 0)
        if player is not None:
            counted["supervised starts"] += 1
            place = self._place(where)
            answer = self.world.ask(player, "supervise", directory=str(place.path))
            player.command = answer.get("pid", 0)
            self._judge(player, place, answer)

    def _judge(self, player: Player, place: Place, answer: dict[str, object]) -> None:
        """Whether a start was answered as it had to be."""
        expected = self._expected(player, place)
        code = answer.get("refused", 0)
        assert code in expected, f"a start was answered with {code}, not {expected}: {answer}"
        if code:
            counted["refusals"] += 1
            return
        run_id = str(answer["run"])
        parent = place.runs[-1][0] if place.runs else None
        place.over |= {run for run, _ in place.runs}
        place.runs.append((run_id, parent))
        place.live, place.label, place.copied_from, place.born = run_id, True, None, place.path
        place.record, place.robbed = json.dumps(self.world.hosts[player.host]), False
        player.holds, player.run_id = place, run_id

    def _expected(self, player: Player, place: Place) -> set[int]:
        world = self.world
        if world.holder(place) or world.lock_keepers(place):
            return {3, 7}
        if world.old_holder(place):
            return {3, 7} if world.is_foreign(place, player.host) else {3}
        if world.is_claimed_by_its_origin(place) and (place.label or place.record):
            return {0, 3, 7}
        if world.bare_orphans(place, player):
            return {3}
        return {7} if world.is_foreign(place, player.host) else {0}

    @precondition(lambda self: self._plain())
    @rule(who=_ANY)
    def leave(self, who: int) -> None:
        """A run ends well."""
        player = self._plain()[who % len(self._plain())]
        self.world.ask(player, "leave")
        self.world.ended(player)

    @precondition(lambda self: self._plain())
    @rule(who=_ANY)
    def crash(self, who: int) -> None:
        """A run ends with an error."""
        player = self._plain()[who % len(self._plain())]
        self.world.ask(player, "crash")
        self.world.ended(player)

    @precondition(lambda self: self._supervisors())
    @rule(who=_ANY)
    def command_ends(self, who: int) -> None:
        """The command of a supervisor is killed: the supervisor writes that down and lets go."""
        player = self._supervisors()[who % len(self._supervisors())]
        os.kill(player.command, signal.SIGKILL)
        self.world.leaves(player)

    @precondition(lambda self: self.world.players)
    @rule(who=_ANY)
    def kill(self, who: int) -> None:
        """SIGKILL."""
        counted["kills"] += 1
        self.world.kill(self.world.players[who % len(self.world.players)])

    @rule(where=_ANY)
    def stop(self, where: int) -> None:
        """`solorun stop`: what it says has ended has ended, suspended or not."""
        place = self._place(where)
        player = self.world.holder(place)
        foreign = self.world.is_foreign(place, "here")
        if player is None or foreign or player.host != "here" or not place.label or self.world.orphans:
            return
        counted["stops"] += 1
        answer = self.world.ask(self.world.observer, "stop", directory=str(place.path))
        assert answer == "Stopped", answer
        self.world.leaves(player)

    # --- suspended, forked ---------------------------------------------------------------------------------------

    @precondition(lambda self: self._awake())
    @rule(who=_ANY)
    def suspend(self, who: int) -> None:
        """SIGSTOP."""
        player = self._awake()[who % len(self._awake())]
        os.kill(player.pid, signal.SIGSTOP)
        until("a process that stands still", lambda: getattr(process.probe(player.pid), "state", "") == "T")
        player.suspended = True

    @precondition(lambda self: self._suspended())
    @rule(who=_ANY)
    def go_on(self, who: int) -> None:
        """SIGCONT."""
        player = self._suspended()[who % len(self._suspended())]
        os.kill(player.pid, signal.SIGCONT)
        player.suspended = False
        self._notices(player)

    def _notices(self, player: Player) -> None:
        """What a run finds when it looks around: a directory that was moved away, a label that is gone."""
        place = player.holds
        if place is not None and place.path != place.born:
            self.world.leaves(player)
            return
        if not player.command:
            self.world.ask(player, "clock", offset=self.world.offset)
            self.world.ask(player, "beat")
        if place is not None:
            label = place.path / "training.lock"
            named = player.command or player.pid
            until("a label put back", lambda: _text(label) == str(named))
            place.label = True
            if place.robbed:
                until("a record put back", (place.path / "training.owner.json").exists)
                place.record, place.robbed = json.dumps(self.world.hosts[player.host]), False

    @precondition(lambda self: self._plain())
    @rule(who=_ANY, descriptor=st.booleans())
    def fork(self, who: int, descriptor: bool) -> None:
        """A worker that will outlive its trainer, with or without the directory's descriptor."""
        player = self._plain()[who % len(self._plain())]
        if player.holds is not None and len(self.world.orphans) < 3:
            pid = self.world.ask(player, "fork" if descriptor else "spawn")
            self.world.orphans.append(Orphan(pid, player.holds, player.run_id, player.user, descriptor))

    @precondition(lambda self: self.world.orphans)
    @rule(who=_ANY)
    def worker_ends(self, who: int) -> None:
        """A worker is killed."""
        self.world.end_orphan(self.world.orphans[who % len(self.world.orphans)])

    @rule(where=_ANY, descriptor=st.booleans())
    def die_and_leave_a_worker(self, where: int, descriptor: bool) -> None:
        """A trainer that is killed while a worker of it lives on: what is left of its lock tells of that one."""
        if (player := self._started(where)) is not None:
            self.fork(self._plain().index(player), descriptor)
            self.kill(self.world.players.index(player))
            self.start(where, "here", other=False)

    @rule(where=_ANY, garbage=st.booleans())
    def rob_a_run_that_stands_still(self, where: int, garbage: bool) -> None:
        """A suspended run loses label and record, and puts nothing back: only the kernel's lock is left."""
        if (player := self._started(where)) is not None:
            self.suspend(self._awake().index(player))
            self.remove_the_label(where, garbage)
            self.remove_the_record(where)
            self.start(where, "here", other=False)

    @rule(where=_ANY, host=st.sampled_from(["here", "container", "far"]))
    def start_and_die(self, where: int, host: str) -> None:
        """What a killed trainer leaves, wherever it ran."""
        if (player := self._started(where, host)) is not None:
            self.kill(self.world.players.index(player))

    def _started(self, where: int, host: str = "here") -> Player | None:
        self.start(where, host, other=False)
        player = self.world.holder(self._place(where))
        alone = player is not None and player.host == host and not player.command and not player.suspended
        return player if alone else None

    # --- by hand -------------------------------------------------------------------------------------------------

    @rule(where=_ANY, garbage=st.booleans())
    def remove_the_label(self, where: int, garbage: bool) -> None:
        """`rm training.lock`, or something else in its place."""
        place = self._place(where)
        if self.world.old_holder(place):  # nothing but that file tells of it: not promised
            return
        label = place.path / "training.lock"
        label.unlink(missing_ok=True)
        place.label = garbage
        if garbage:
            label.write_text("it was me\n")
        player = self.world.holder(place)
        place.robbed = player is not None
        if player is not None and not player.suspended:
            self._notices(player)

    @rule(where=_ANY)
    def remove_the_record(self, where: int) -> None:
        """`rm training.owner.json`."""
        place = self._place(where)
        if place.live and self.world.offset > 0:  # a live process with nothing but a label, as an old-style one: below
            return
        (place.path / "training.owner.json").unlink(missing_ok=True)
        place.record = ""

    @rule(where=_ANY)
    def move(self, where: int) -> None:
        """`mv DIR ELSEWHERE`: a run that looks stops with a checkpoint, and what it wrote went along."""
        place = self._place(where)
        target = self.world.new_name()
        place.path.rename(target)
        place.path = target
        player = self.world.holder(place)
        if player is not None and not player.suspended:
            self.world.leaves(player)

    @rule(where=_ANY)
    def move_back(self, where: int) -> None:
        """`mv ELSEWHERE DIR`, to where its record says that it is."""
        place = self._place(where)
        if place.born.name and place.born != place.path and not place.born.exists() and place.copied_from is None:
            place.path.rename(place.born)
            place.path = place.born
            player = self.world.holder(place)
            if player is not None and not player.suspended:
                self.world.leaves(player)

    @rule(where=_ANY)
    def copy(self, where: int) -> None:
        """`cp -r DIR OTHER`, while a run is in it or not."""
        place = self._place(where)
        if len(self.world.places) >= _MOST_PLACES or self.world.old_holder(place):
            return
        copied = Place(
            self.world.new_name(), list(place.runs), set(place.over), "", place.label, place.record,
            place.copied_from or place, place.born,
        )  # fmt: skip
        shutil.copytree(place.path, copied.path, copy_function=shutil.copy)
        for path in (copied.path, *copied.path.rglob("*")):
            path.chmod(0o777)
        if not place.runs:
            copied.copied_from = None
        self.world.places.append(copied)

    @rule()
    def another_directory(self) -> None:
        """`mkdir`."""
        if len(self.world.places) < _MOST_PLACES:
            self.world.new_place()

    # --- old-style, other accidents ------------------------------------------------------------------------------

    @rule(where=_ANY)
    def start_old_style(self, where: int) -> None:
        """A trainer of the first kind starts: refused by every label that names a live process."""
        place = self._place(where)
        player = self._free("here", 0)
        guarded = self.world.holder(place) or self.world.lock_keepers(place)
        if player is None or (guarded and not self._is_told_in_the_label(place)):
            return  # it knows of nothing but the label
        if place.label and self.world.is_claimed_by_its_origin(place):
            return
        counted["old-style starts"] += 1
        expected = not (guarded or self.world.old_holder(place)) and not self._names_somebody(place)
        won = self.world.ask(player, "old_style", directory=str(place.path))
        assert won == expected, f"an old-style trainer was {'let in' if won else 'kept out'}"
        if won:
            player.old, player.old_path = place, place.path
            place.label = True

    def _is_told_in_the_label(self, place: Place) -> bool:
        holder = self.world.holder(place)
        return place.label and bool(
            (holder and (not holder.suspended or _text(place.path / "training.lock") == str(holder.pid)))
            or any(self._is_in_the_label(one) for one in self.world.lock_keepers(place))
        )

    @staticmethod
    def _is_in_the_label(one: Orphan) -> bool:
        """Whether a command without its supervisor is still told: nobody puts its label back."""
        return one.in_label and _text(one.place.path / "training.lock") == str(one.pid)

    def _names_somebody(self, place: Place) -> bool:
        text = _text(place.path / "training.lock")
        return text.isdigit() and os.path.exists(f"/proc/{text}")

    @precondition(lambda self: self._old())
    @rule(who=_ANY)
    def leave_old_style(self, who: int) -> None:
        """It removes its PID file."""
        player = self._old()[who % len(self._old())]
        self.world.ask(player, "old_leave")
        if player.old is not None:
            player.old.label = False
        player.old = None

    @precondition(lambda self: self.world.players)
    @rule(where=_ANY, who=_ANY)
    def recycle_the_pid(self, where: int, who: int) -> None:
        """The PID that a dead run left belongs to another process by now."""
        place, stranger = self._place(where), self.world.players[who % len(self.world.players)]
        unheld = not (self.world.holder(place) or self.world.lock_keepers(place) or self.world.old_holder(place))
        if not unheld or not (place.label or place.record) or self._names_somebody(place):
            return
        counted["recycled PIDs"] += 1
        owner = place.path / "training.owner.json"
        if place.record:
            told = json.loads(owner.read_text())
            told["process"]["pid"] = stranger.pid
            owner.write_text(json.dumps(told))
        label = place.path / "training.lock"
        label.write_text(f"{stranger.pid}\n")
        os.utime(label, (1, 1))
        place.label = True

    @rule(hours=st.sampled_from([-5.0, -0.5, 0.5, 5.0]))
    def step_the_clock(self, hours: float) -> None:
        """Somebody sets the wall clock."""
        world = self.world
        bare = [place for place in world.places if world.old_holder(place) or (place.live and not place.record)]
        if hours > 0 and bare:  # docs/lock.md: it then looks recycled
            return
        world.offset += hours * 3600
        for player in [*world.players, world.observer]:
            if not player.suspended and not player.command:
                world.ask(player, "clock", offset=world.offset)
                world.ask(player, "beat")

    @rule(far=st.booleans())
    def restart_the_machine(self, far: bool) -> None:
        """Power loss: every process of it is gone, and the boot has another id."""
        world = self.world
        counted["restarts"] += 1
        for player in [p for p in world.players if (p.host == "far") == far]:
            world.kill(player)
        for orphan in list(world.orphans):
            world.end_orphan(orphan)
        for name in ("far",) if far else ("here", "container"):
            world.hosts[name] = {**world.hosts[name], "boot": f"boot-{world.names}-{counted['restarts']}"}
        if not far:
            world._reap(world.observer)
            world.observer = world.enter("here", 0)
            world.players.remove(world.observer)

    @rule(where=_ANY)
    def check(self, where: int) -> None:
        """`solorun check` clears what is proven stale, and nothing else."""
        place = self._place(where)
        cleared = self.world.ask(self.world.observer, "check", directory=str(place.path))
        held = self.world.holder(place) or self.world.lock_keepers(place) or self.world.old_holder(place)
        if cleared:
            assert not held, "check cleared a lock that is held"
            place.label, place.record = False, ""
            if place.copied_from is None or not self.world.is_known_copy(place):
                place.over |= {run for run, _ in place.runs}

    # --- what must always be true --------------------------------------------------------------------------------

    @invariant()
    def what_is_told_is_true(self) -> None:
        """Journal, history and status say what really was and is."""
        for place in self.world.places:
            counted["looks"] += 1
            seen = self.world.looked(place)
            self._lineage_is_true(place, seen["journal"])
            self._history_is_true(place, dict(seen["history"]))
            expected = self._states(place)
            assert seen["state"] in expected, f"status says {seen['state']} ({seen['detail']}), not {expected}"

    def _lineage_is_true(self, place: Place, journal: list[list[str]]) -> None:
        """The runs that really ran, each with the one before it, and one end of each."""
        started = [(run, parent) for event, run, parent in journal if event == "started"]
        assert started == place.runs, f"{place.path}: journal {started}, really {place.runs}"
        ends = Counter(run for event, run, _ in journal if event != "started")
        assert not [run for run, number in ends.items() if number > 1], f"two ends: {journal}"
        assert place.over <= set(ends), f"no end of {place.over - set(ends)}"
        assert not place.live or place.live not in ends, "a live run has an end"

    def _history_is_true(self, place: Place, told: dict[str, str]) -> None:
        assert set(told) == {run for run, _ in place.runs}, "history tells of other runs"
        for run in place.over:
            assert told[run] != "running", f"history calls {run} running, which is over"
        if place.live and place.record:
            assert told[place.live] == "running", f"history calls {place.live} {told[place.live]}, which runs"

    def _states(self, place: Place) -> set[str]:
        world = self.world
        holder = world.holder(place) or world.old_holder(place)
        if world.is_claimed_by_its_origin(place) and (place.label or place.record):
            return {"running", "silent", "hung", "stale", "orphaned", "foreign", "contested"}
        if world.is_foreign(place, "here"):
            return {"foreign"} if not world.old_holder(place) else {"contested"}
        if holder is not None:
            if holder.suspended and not place.record:  # robbed of its record, and perhaps of a label that says so
                return {"idle", "stale", "hung"}
            if holder.suspended:
                return {"hung"}
            return {"running", "silent", "hung"} if holder.command or holder.old else {"running", "silent"}
        keepers = world.lock_keepers(place)
        if any(self._is_in_the_label(one) or (one.in_label and place.record) for one in keepers):
            return {"running", "silent", "hung"}
        if keepers or world.bare_orphans(place, world.observer):
            return {"orphaned"}
        return {"stale"} if place.label or place.record else {"idle"}

    def every_directory_can_be_used_again(self) -> None:
        """When nothing lives any more, a start needs no hand; it is refused only where a foreign record stands."""
        world = self.world
        for player in list(world.players):
            command = player.command
            world.kill(player)
            assert not command or world.orphans
        for orphan in list(world.orphans):
            world.end_orphan(orphan)
        for place in world.places:
            player = world.enter("here", 0)
            self._judge(player, place, world.ask(player, "hold", directory=str(place.path)))
            if player.holds:
                world.ask(player, "leave")
                world.ended(player)
        self.what_is_told_is_true()


def _text(path: os.PathLike[str]) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def attack(seed_number: int, share: float = 1.0) -> Tally:
    """Random lives of results directories.

    Args:
        seed_number: of the choice of steps.
        share: of the examples of the long form.
    """
    counted.clear()
    failures: tuple[str, ...] = ()
    machine = seed(seed_number)(type("SeededLifecycles", (Lifecycles,), {}))
    chosen = settings(
        max_examples=max(5, round(LONG_EXAMPLES * share)), stateful_step_count=STEPS, deadline=None, database=None,
        print_blob=True, suppress_health_check=list(HealthCheck), phases=PHASES,
    )  # fmt: skip
    try:
        run_state_machine_as_test(machine, settings=chosen)
    except AssertionError as error:
        failures = (" | ".join([f"seed {seed_number}: {error}", *getattr(error, "__notes__", ())]),)
    finally:
        process, line = _server()
        line.close()
        process.wait(10)
        _server.cache_clear()
    facts = dict(counted)
    return Tally("lives of a results directory", facts.pop("looks", 0), failures, facts)
