"""Runs the scenes of one part in a process that the shim was loaded into: `python3 -m tests.faults.engine`."""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.faults.shim import KILLS, RECORD, Call, Fault, Shim, faults_for
from tests.faults.tally import Tally
from tests.faults.victims import Scene, play

Case = tuple[Scene, Fault, Call]


def attack_scenes(name: str, scenes: tuple[Scene, ...], seed: int, share: float, shim: Shim, room: Path) -> Tally:
    """Strike every call of every scene in every way, or a seeded share of that.

    Args:
        name: of the attack.
        scenes: what is struck.
        seed: of the sample.
        share: 1.0 for all; less takes at least one of each kind of call and fault, and of each scene and fault.
        shim: of this process.
        room: an empty directory.
    """
    failures: list[str] = []
    cases: list[Case] = []
    for scene in scenes:
        calls, wrong = play(scene, Fault(RECORD, 0), shim, room)
        failures += [f"{scene.name}, undisturbed: {what}" for what in wrong]
        cases += [(scene, fault, calls[fault.at - 1]) for fault in faults_for(calls)]
    chosen = sample(cases, random.Random(seed), share)
    counts: Counter[str] = Counter()
    for scene, fault, call in chosen:
        calls, wrong = play(scene, fault, shim, room)
        hit = next((one for one in calls if one.struck), None)
        counts.update((str(fault), f"at {call.name}") if hit else ("not reached",))
        where = f"{hit.name} {hit.path}" if hit else f"nothing, meant {call.name} {call.path}"
        failures += [f"{scene.name} | {fault} {where} (call {fault.at}): {what}" for what in wrong]
    return Tally(name, len(chosen), tuple(failures), dict(sorted(counts.items())))


def sample(cases: list[Case], order: random.Random, share: float) -> list[Case]:
    """A share of the cases, in which each call meets a kill and each error, and each scene a kill and an error."""
    cases = _no_more_than_most(order.sample(cases, len(cases)))
    if share >= 1:
        return cases
    seen: set[tuple[str, str]] = set()
    first, rest = list[Case](), list[Case]()
    for case in sorted(cases, key=lambda case: case[0].most > 0):
        scene, fault, call = case
        what = "a kill" if fault.what in KILLS else "an error"
        marks = {(scene.name, what)} | (set() if scene.most else {(call.name, str(fault).split()[0])})
        (rest if marks <= seen else first).append(case)
        seen |= marks
    return first + order.sample(rest, max(0, round(share * len(cases)) - len(first)))


def _no_more_than_most(cases: list[Case]) -> list[Case]:
    taken: Counter[str] = Counter()
    kept = []
    for case in cases:
        taken[case[0].name] += 1
        if not case[0].most or taken[case[0].name] <= case[0].most:
            kept.append(case)
    return kept


def main(name: str, room_of_scenes: str, seed: str, share: str, place: str) -> None:
    """Attack the scenes of a module; the tally as JSON on the last line of the standard output."""
    module = importlib.import_module(room_of_scenes)
    room = Path(place) / room_of_scenes
    room.mkdir()
    shim = Shim(Path(place) / f"board-{room_of_scenes}")
    with contextlib.redirect_stdout(sys.stderr):
        module.warm_up(shim, room)  # once here, and not again in every victim
    tally = attack_scenes(name, module.SCENES, int(seed), float(share), shim, room)
    print(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main(*sys.argv[1:])
