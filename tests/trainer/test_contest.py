"""The comparison of models: tables of n-grams, rates that are searched, jobs done once, and a real one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.characters import characters
from benchmarks.contender import looks, trained
from benchmarks.contest import Job, Outcome, Results, rates_to_try, wanted
from benchmarks.contestants import GPT, SEEDS, TUNING_SEED, V4, Contestant, contestants, named, tuning
from benchmarks.ngrams import predicted
from benchmarks.summary import Pace
from benchmarks.validation import Read, carried, in_blocks
from benchmarks.workers import Crew, Task

A, B = 0, 1
DEADLINE_S = 60


def outcome(job: Job, loss: float | None) -> Outcome:
    return Outcome(job.contestant.facts(), job.rate, job.seed, 1, 1.0, loss, None, None, ())


def finish(folder: Path, job: Job, loss: float | None) -> None:
    (folder / f"{job.name}.json").write_text(outcome(job, loss).to_json())


def test_a_table_of_pairs_predicts_what_a_person_computes_by_hand() -> None:
    # Of "aabab": a 3, b 2; aa 1, ab 2, ba 1. Then "b" after the last b, which was followed by a alone.
    found = predicted(np.array([A, A, B, A, B]), np.array([B]), 2, (1, 2), "absolute")
    alone = (2 - 0.75) / 5 + 2 * 0.75 / 5 * 0.5
    after_b = 0 + 0.75 / 1 * alone
    assert [one.loss for one in found] == pytest.approx([-math.log(alone), -math.log(after_b)])
    assert [one.counts for one in found] == [2, 5]


def test_kneser_ney_counts_what_comes_before_a_token_and_not_how_often_it_comes() -> None:
    # "aaaabc" and then "b": a is common, but each of a, b, c comes after one... and a also begins the text.
    text = np.array([0, 0, 0, 0, 1, 2])
    (found,) = predicted(text, np.array([1]), 3, (2,), "kneser-ney")
    # Before a: a. Before b: a. Before c: b. So each has 1 of 3; discounts are a half where counts cannot tell.
    assert found.loss == pytest.approx(-math.log((1 - 0.5) / 3 + 3 * 0.5 / 3 / 3)), "c was never followed by anything"


@pytest.mark.parametrize("smoothing", ["absolute", "kneser-ney"])
def test_the_chances_of_all_tokens_add_up_to_one(smoothing: str) -> None:
    text = np.random.default_rng(0).integers(0, 4, 300)
    losses = (predicted(text, np.array([token]), 4, (3,), smoothing)[0].loss for token in range(4))  # type: ignore[arg-type]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1)


def test_a_grid_grows_while_the_best_rate_is_its_outermost_one_and_not_for_ever() -> None:
    start = (3e-3, 6e-3, 1.2e-2)
    assert rates_to_try(start, {3e-3: 1.7}) == [6e-3, 1.2e-2]
    assert rates_to_try(start, {3e-3: 1.7, 6e-3: 1.6, 1.2e-2: 1.8}) == []
    assert rates_to_try(start, {3e-3: 1.7, 6e-3: 1.6, 1.2e-2: 1.5}) == [2.4e-2]
    assert rates_to_try(start, {3e-3: 1.5, 6e-3: 1.6, 1.2e-2: math.inf}) == [1.5e-3]
    falling = {3e-3: 1.7, 6e-3: 1.6, 1.2e-2: 1.5, 2.4e-2: 1.4, 4.8e-2: 1.3}
    assert rates_to_try(start, falling) == []


def test_finished_jobs_are_not_wanted_again_and_seeds_come_once_the_rate_is_known(tmp_path: Path) -> None:
    results = Results(tmp_path)
    tried = [Job(tuning(V4), rate, TUNING_SEED) for rate in V4.rates]
    assert list(wanted([V4], results, [V4])) == tried
    for job, loss in zip(tried, (1.7, 1.6, None), strict=True):
        finish(tmp_path, job, loss)
    counted = [Job(V4, V4.rates[1], seed) for seed in SEEDS]
    assert list(wanted([V4], results, [V4])) == counted
    finish(tmp_path, counted[1], 1.61)
    assert list(wanted([V4], results, [V4])) == [counted[0], counted[2]]
    short = replace(V4, name="short", like="v4", rates=(), steps=7)
    assert [job.rate for job in wanted([short], results, [V4, short])] == [V4.rates[1]] * 3, "as tuned for v4"


def test_a_result_of_another_shape_is_no_result_of_this_one(tmp_path: Path) -> None:
    job = Job(GPT, GPT.rates[0], TUNING_SEED)
    finish(tmp_path, job, 1.8)
    changed = replace(job, contestant=replace(GPT, shape={**GPT.shape, "hidden": 64}))
    assert Results(tmp_path).of(job) is not None
    assert Results(tmp_path).of(changed) is None
    Results(tmp_path).path(job.name).write_text('{"facts": ')
    assert Results(tmp_path).of(job) is None, "torn"


def test_equal_seconds_are_as_many_steps_as_the_speed_allows() -> None:
    everyone = {one.name: one for one in contestants({"v3": 0.5, "v4": 1.01})}
    assert everyone["v3-seconds"].steps == 1_000
    assert "v4-seconds" not in everyone, "as fast as the GPT: its own runs are those"


def test_a_rate_is_found_in_shorter_runs_that_have_a_name_of_their_own() -> None:
    assert named("v4-tuning", 1.0, 2_000) == tuning(V4)
    assert named("v4", 1.0, 2_000) == V4
    assert tuning(V4).steps == 500


def test_looks_end_with_the_run_and_a_run_that_tunes_has_one() -> None:
    assert looks(2_000, tuning=False) == {100, *range(200, 2_001, 200)}
    assert looks(2_000, tuning=True) == {2_000}
    assert looks(1, tuning=False) == {1}


def test_blocks_cover_the_whole_text_once_and_the_state_goes_through_it() -> None:
    import torch

    seen: list[int] = []

    def read(rows: torch.Tensor, state: object) -> Read:
        seen.extend(rows[:, 1:].flatten().tolist())
        before = 0 if state is None else state[0][0].item()  # type: ignore[index]
        return Read(torch.tensor(float(before)), torch.zeros(0), torch.zeros(0), ((torch.tensor(before + 1),),))

    text = np.arange(1_000)
    assert in_blocks(read, text, 64).tokens == 999
    assert seen == list(range(1, 1_000))
    assert carried(read, text, 500).loss == pytest.approx((0 * 500 + 1 * 499) / 999)


@pytest.mark.parametrize("contestant", [GPT, V4, replace(V4, carried=True)])
def test_a_job_trains_and_its_result_file_gives_it_back(contestant: Contestant) -> None:
    text = characters("A plague o' both your houses! They have made worms' meat of me. " * 80)
    shape = {**contestant.shape, "hidden": 32, "layers": 2, **({"oscillators": 16} if contestant.model == "v4" else {})}
    small = replace(contestant, shape=shape, steps=12, rows=4)
    found = trained(small, 1e-2, SEEDS[0], text)
    assert found.validation is not None
    assert found.validation < math.log(text.alphabet) - 0.3
    assert (found.long is None) == (contestant.model == "gpt")
    assert found.points[-1].tokens == 12 * 4 * 64
    assert Outcome.from_json(json.loads(found.to_json())) == found
    assert trained(small, 1e-2, SEEDS[0], text).validation == found.validation, "seed and rate determine the result"


def test_a_crew_does_each_task_once_goes_on_past_failures_and_ends_its_workers_when_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "writes.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).touch()")
    (tmp_path / "fails.py").write_text("raise SystemExit('no luck')")
    (tmp_path / "waits.py").write_text("import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)")

    def task(kind: str) -> Task:
        return Task(kind, (kind, str(tmp_path / f"{kind}.made")))

    def missing(*kinds: str) -> Iterator[Task]:
        return (task(kind) for kind in kinds if not (tmp_path / f"{kind}.made").exists() or kind == "waits")

    said: list[str] = []
    first = Crew(lambda: missing("writes", "fails"), 2, tmp_path, lambda: False, lambda: None, said.append)
    assert first.work() == ["fails"]
    assert any("no luck" in line for line in said)
    begun, made = time.monotonic(), tmp_path / "waits.made"
    second = Crew(
        lambda: missing("writes", "waits"), 2, tmp_path,
        lambda: made.exists() or time.monotonic() - begun > DEADLINE_S, lambda: None, said.append,
    )  # fmt: skip
    assert second.work() == []
    assert said[-1] == "waits: left unfinished", "and what was there was not made again"


def test_cpu_seconds_are_those_of_one_machine_wherever_a_run_was_trained() -> None:
    pace = Pace({"v4": {"ratio": 1.25, "gpt": 8_000}, "v3": {"ratio": 0.5, "gpt": 10_000}})
    assert pace.seconds(GPT, 90_000, 3.0) == 10.0
    assert pace.seconds(V4, 90_000, 3.0) == 8.0
    short = replace(V4, name="v4-short", like="v4")
    assert pace.seconds(short, 90_000, 3.0) == 8.0
    assert pace.seconds(replace(V4, name="unknown"), 90_000, 3.0) == 3.0
