"""The comparison of language models: trains everyone, keeps what came of it, writes docs/models.md.

    python3 -m benchmarks.models --text FILE [--jobs 2]      an hour or two; goes on where it was left
    python3 -m benchmarks.models --text FILE --add --only v4-1024      one more, beside what models.json has
    python3 -m benchmarks.models --page-only                 trains nothing, writes the page from what there is
    python3 -m benchmarks.models --text FILE --steps 20      all runs a hundredth as long, to try it out; no page
    python3 -m benchmarks.models --plays --cpu-seconds 3600  v4 and a GPT on the embedded plays, an hour each

Each training is a process of its own and a file in `results/models/jobs`; what is there is not trained again, so a kill
loses at most what is running. A model's code is no part of its file: after changing it delete the files of its name.
Who takes part, at which rates: `benchmarks/contestants.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import solorun
from benchmarks import characters, plays
from benchmarks.characters import Characters
from benchmarks.contest import Results, wanted
from benchmarks.contestants import STEPS, contestants
from benchmarks.models_page import DOCUMENT, table, write
from benchmarks.summary import SUMMARY, Summary, counted, gathered, measured_speeds
from benchmarks.workers import Crew, Task

RESULTS = Path(__file__).resolve().parents[1] / "results"
PLAYS = RESULTS / "models-plays"


def tasks(
    folder: Path, text: Path, steps: int, only: list[str], kept: Summary | None = None
) -> Callable[[], Iterator[Task]]:
    """What can be done now, the most wanted first: speeds, which tell some lengths, and trainings."""
    results = Results(folder, kept.grids() if kept else None)

    def now() -> Iterator[Task]:
        measured = {name: told["ratio"] for name, told in measured_speeds(folder).items()}
        known = {**(kept.ratios() if kept else {}), **measured}
        everyone = contestants(known, steps)
        chosen = [one for one in everyone if not only or one.name in only or one.like in only]
        for one in chosen:
            if one.kind in ("main", "long") and one.name not in known and one.name != "gpt":
                rounds = () if steps == STEPS else ("--rounds", "1")
                yield _task("speed", f"speed-{one.name}", (one.name, *rounds), text, folder)
        for job in wanted(chosen, results, everyone):
            one = job.contestant
            words = (one.name, repr(job.rate), str(job.seed), "--steps", str(steps))
            words += ("--speed", str(known.get(one.like, 1.0))) if one.kind == "seconds" else ()
            yield _task("contender", job.name, words, text, folder)

    return now


def _task(module: str, name: str, words: tuple[str, ...], text: Path, folder: Path) -> Task:
    into = ("--text", str(text), "--into", str(folder / f"{name}.json"))
    return Task(name, (f"benchmarks.{module}", *words, *into))


def train(said: argparse.Namespace) -> int:
    """Train all that is wanted, tell and keep what there is; the exit status."""
    text, folder = characters.read(said.text), _folder(said)
    kept = Summary.read(SUMMARY) if said.add else None
    code = _work(folder, tasks(folder / "jobs", said.text.resolve(), said.steps, said.only, kept), said.jobs)
    played = plays.told(PLAYS / "jobs") or (kept.plays if kept else ())
    ngrams = kept.ngrams if kept else counted(text)
    summary = gathered(folder / "jobs", _about(text), ngrams, played, said.steps, kept)
    print(table(summary))
    if said.steps == STEPS:
        _keep(summary)
    return code


def play(said: argparse.Namespace) -> int:
    """Train on the embedded plays, and keep what came of it; the exit status."""
    code = _work(PLAYS, lambda: plays.tasks(PLAYS / "jobs", said.cpu_seconds), said.jobs)
    if SUMMARY.exists():
        _keep(replace(Summary.read(SUMMARY), plays=tuple(plays.told(PLAYS / "jobs"))))
    return code


def page_only(said: argparse.Namespace) -> int:
    """Write the page from the finished jobs, or, where there are none, from the summary that is kept."""
    kept = Summary.read(SUMMARY) if SUMMARY.exists() else None
    jobs = _folder(said) / "jobs"
    if any(jobs.glob("*-seed*.json")) or (kept is None and said.text):
        text = characters.read(said.text) if said.text or kept is None else None
        about, ngrams = (_about(text), counted(text)) if text else (kept.text, kept.ngrams)
        kept = gathered(jobs, about, ngrams, plays.told(PLAYS / "jobs") or (kept.plays if kept else ()), said.steps)
    if kept is None:
        sys.exit(f"there is neither {SUMMARY} nor a finished job in {jobs}; leave --page-only out to train")
    _keep(kept)
    return 0


def _folder(said: argparse.Namespace) -> Path:
    """Of a trial another one than of the whole comparison."""
    return said.results or RESULTS / ("models" if said.steps == STEPS else f"models-{said.steps}-steps")


def _about(text: Characters) -> dict[str, int | str]:
    sizes = {"train": len(text.train), "validation": len(text.validation), "alphabet": text.alphabet}
    return {"digest": text.digest, **sizes}


def _work(folder: Path, wanted_now: Callable[[], Iterator[Task]], count: int) -> int:
    """Work in a folder that nobody else works in; the exit status: 1 where a job failed, 128 + signal after a stop."""
    with solorun.hold(folder, exit_on_stop=False) as run:
        (folder / "jobs").mkdir(exist_ok=True)

        def say(line: str) -> None:
            print(line, flush=True)
            run.log(line)

        crew = Crew(wanted_now, count, folder / "jobs", lambda: run.should_stop, run.beat, say)
        say(f"{sum(1 for _ in wanted_now())} jobs can begin; more follow as rates and speeds become known")
        failed = crew.work()
        if run.should_stop:
            say("stopped; the same command goes on from here")
    return run.exit_code or int(bool(failed))


def _keep(summary: Summary) -> None:
    summary.write(SUMMARY)
    write(summary)
    print(f"{SUMMARY} and {DOCUMENT} are written")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the language models, and write docs/models.md.")
    parser.add_argument("--text", type=Path, help="TinyShakespeare, the public file of char-rnn")
    parser.add_argument("--results", type=Path, help="where finished jobs are kept; default results/models")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a whole run; fewer to try it out")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these contestants alone")
    parser.add_argument("--add", action="store_true", help="keep what models.json has of those who have no job here")
    parser.add_argument("--page-only", action="store_true", help="train nothing, write the page")
    parser.add_argument("--plays", action="store_true", help="v4 and a GPT on the embedded plays")
    parser.add_argument("--cpu-seconds", type=float, default=3600, help="of each of the plays' two models")
    said = parser.parse_args()
    ratios = Summary.read(SUMMARY).ratios() if said.add else {}
    if unknown := set(said.only) - {one.name for one in contestants(ratios)}:
        parser.error(f"nobody is called {', '.join(sorted(unknown))}; see benchmarks/contestants.py")
    return said


def main() -> int:
    """See above; the exit status."""
    said = arguments()
    if said.page_only:
        return page_only(said)
    return play(said) if said.plays else train(said)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except solorun.SolorunError as error:
        sys.exit(solorun.explain(error))
