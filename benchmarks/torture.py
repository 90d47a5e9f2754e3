"""All attacks in their long form: prints the seed and what was counted, writes the counts into docs/guarantees.md.

    python3 -m benchmarks.torture                      every attack, one after the other: some hours
    python3 -m benchmarks.torture saving --seed 7      one of them, as it was seen to fail
    python3 -m benchmarks.torture --share 0.01         a hundredth of each, to try it out; --keep writes that down too
    python3 -m benchmarks.torture --page-only          attacks nothing, writes the page from the counts there are

An attack is a module of `tests/faults`; what it does and what must be true afterwards stands there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import marked
from benchmarks.machine import described
from tests.faults.tally import Tally

ATTACKS = (
    "fighting", "starting", "saving", "power", "powercut", "endurance", "corrupt", "exactness", "syscalls",
    "lifecycles", "surroundings",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
COUNTS, DOCUMENT = ROOT / "benchmarks/results/torture.json", ROOT / "docs/guarantees.md"
BEGIN, END = "<!-- counted: begin -->\n", "<!-- counted: end -->\n"


@dataclass(frozen=True, slots=True)
class Counted:
    """One attack: what it counted, with which seed, when, for how many seconds, at which commit, on what.

    `share` is of the long form, 1.0 for all of it.
    """

    tally: Tally
    seed: int
    date: str
    seconds: int
    commit: str
    machine: str
    share: float = 1.0


def attacked(name: str, seed: int, share: float) -> Counted:
    """Carry one attack out."""
    began = time.monotonic()
    tally: Tally = importlib.import_module(f"tests.faults.{name}").attack(seed, share)
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return Counted(tally, seed, today, round(time.monotonic() - began), _commit(), described(), share)


def _commit() -> str:
    """The commit whose code was attacked; `-changed` where that code stands in no commit."""
    done = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    code = ["git", "diff", "--quiet", "HEAD", "--", "solorun", "kssm", "tests", "benchmarks/*.py"]
    changed = subprocess.run(code, cwd=ROOT, capture_output=True, check=False).returncode
    return (done.stdout.strip() or "no commit") + ("-changed" if changed else "")


def kept() -> dict[str, Counted]:
    """The counts of the last long form of each attack."""
    if not COUNTS.exists():
        return {}
    facts = json.loads(COUNTS.read_text())
    return {name: Counted(**{**one, "tally": Tally(**one["tally"])}) for name, one in facts.items()}


def counted(everything: Mapping[str, Counted]) -> str:
    """All counts as Markdown."""
    lines = ["", "| attack | cases | counted beside | failures | seed, commit, day, time |", "|---|---|---|---|---|"]
    for name in sorted(everything, key=_place):
        one = everything[name]
        facts = ", ".join(f"{number:,} {what}" for what, number in one.tally.facts.items())
        part = "" if one.share >= 1 else f"; {one.share:.0%} of the long form"
        where = f"{one.seed}, {one.commit}, {one.date}, {one.seconds / 60:.0f} min{part}"
        lines.append(f"| `{name}` | {one.tally.cases:,} | {facts} | {len(one.tally.failures)} | {where} |")
    machines = sorted({one.machine for one in everything.values()})
    return "\n".join([*lines, "", *(f"Machine: {machine}." for machine in machines), "", ""])


def _place(name: str) -> tuple[int, str]:
    return (ATTACKS.index(name) if name in ATTACKS else len(ATTACKS), name)


def renewed(document: str, counts: str) -> str:
    """The document with what is between the marks replaced; raises ValueError where a mark is missing."""
    return marked.renewed(document, counts, (BEGIN, END), DOCUMENT)


def main() -> int:
    """Attack; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description="Attack every promise.")
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"of {', '.join(ATTACKS)}; default: all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--share", type=float, default=1.0, help="of the long form; less than 1 is only printed")
    parser.add_argument("--keep", action="store_true", help="write the counts down, however small the share")
    parser.add_argument("--page-only", action="store_true")
    said = parser.parse_args()
    if unknown := set(said.attacks) - set(ATTACKS):
        parser.error(f"no attack has the name {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    broken = False
    for name in () if said.page_only else said.attacks or ATTACKS:
        print(f"{name}: seed {said.seed}", flush=True)
        one = attacked(name, said.seed, said.share)
        print(f"{one.tally} ({one.seconds} s)", flush=True)
        broken |= bool(one.tally.failures)
        if said.share >= 1 or said.keep:
            COUNTS.write_text(json.dumps({n: asdict(c) for n, c in (kept() | {name: one}).items()}, indent=1) + "\n")
    if said.page_only or said.share >= 1 or said.keep:
        DOCUMENT.write_text(renewed(DOCUMENT.read_text(), counted(kept())))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
