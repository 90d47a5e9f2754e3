"""The puzzles have the answers that they say, nothing of a test is trained on, and finished jobs stay finished."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import solving, tracking
from benchmarks.puzzles import NO_ANSWER, PUZZLES, Recall, Sheet, Sum, drawn
from benchmarks.solvers import JOBS, LENGTHS, SEEDS, SOLVERS, Job, Solver
from benchmarks.tracking_page import AIMS, BEGIN, DOCUMENT, END, renewed, share, table, verdicts, write

QUICK = Solver("v4", "v4", 3, 5e-3, hidden=16, oscillators=16)


def rows(sheet: Sheet) -> list[tuple[list[int], list[int]]]:
    return list(zip(sheet.tokens_BS.tolist(), sheet.answers_BS.tolist(), strict=True))


def sheet(name: str, seed: int = 3, step: int = 4, length: int = 64) -> Sheet:
    return drawn(PUZZLES[name], "train", seed, step, 9, length)


@pytest.mark.parametrize("modulus", [2, 5])
def test_a_sum_answers_at_every_position_with_the_sum_of_all_symbols_so_far(modulus: int) -> None:
    for tokens, answers in rows(drawn(Sum(modulus), "test", 0, 0, 7, 300)):
        assert set(tokens) == set(range(modulus))
        for position, answer in enumerate(answers):
            assert answer == modulus + sum(tokens[: position + 1]) % modulus


def test_recall_answers_at_each_asked_key_with_the_value_that_followed_it_and_nowhere_else() -> None:
    counts = set()
    for tokens, answers in rows(drawn(Recall(), "test", 0, 0, 60, 64)):
        mark = tokens.index(32)
        book: dict[int, int] = {}
        for position, (token, answer) in enumerate(zip(tokens, answers, strict=True)):
            if position <= mark:
                assert answer == NO_ANSWER
                if position % 2 and position < mark:
                    assert tokens[position - 1] < 16 <= token < 32
                    assert tokens[position - 1] not in book, "a key of two values has no answer"
                    book[tokens[position - 1]] = token
            else:
                assert answer == book[token]
        counts.add(len(book))
    assert counts == {4, 5, 6, 7, 8}


def test_a_length_that_holds_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="17 positions hold no 8 pairs"):
        drawn(Recall(), "train", 0, 0, 1, 17)


@pytest.mark.parametrize("name", PUZZLES)
def test_a_sheet_follows_from_its_purpose_seed_and_step_alone(name: str) -> None:
    torch.manual_seed(1)
    one = sheet(name)
    torch.manual_seed(2)
    same = sheet(name)
    assert torch.equal(one.tokens_BS, same.tokens_BS)
    assert torch.equal(one.answers_BS, same.answers_BS)
    puzzle = PUZZLES[name]
    others = [drawn(puzzle, "test", 3, 4, 9, 64), sheet(name, seed=4), sheet(name, step=5)]
    for two in itertools.combinations([one, *others], 2):
        assert not torch.equal(two[0].tokens_BS, two[1].tokens_BS)


@pytest.mark.parametrize("name", PUZZLES)
def test_tokens_and_answers_are_of_the_vocabulary(name: str) -> None:
    puzzle, found = PUZZLES[name], sheet(name)
    asked = found.answers_BS[found.answers_BS != NO_ANSWER]
    for ids in (found.tokens_BS, asked):
        assert ids.min() >= 0
        assert ids.max() < puzzle.vocabulary


class Oracle(nn.Module):
    """Knows every sum mod 5 but, from a position on, is wrong by one; a model as `solving.test` calls it."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def forward(self, tokens_BS: Tensor) -> Tensor:
        answers = tokens_BS.cumsum(1) % 5
        answers[:, self.good :] = (answers[:, self.good :] + 1) % 5
        return nn.functional.one_hot(answers + 5, 10).float()


@pytest.mark.parametrize(("good", "everywhere", "late"), [(64, 1.0, 1.0), (60, 60 / 64, 0.5), (0, 0.0, 0.0)])
def test_the_share_of_right_answers_is_over_all_positions_that_ask(good: int, everywhere: float, late: float) -> None:
    job = Job("sum mod 5", QUICK, 0)
    assert solving.test(Oracle(good), job, 64, rows=20) == (pytest.approx(everywhere), pytest.approx(late))


class Parrot(nn.Module):
    """Answers everything with one value."""

    def forward(self, tokens_BS: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full_like(tokens_BS, 20), 33).float()


def test_positions_that_ask_nothing_count_neither_as_right_nor_as_wrong() -> None:
    found, _ = solving.test(Parrot(), Job("recall", QUICK, 0), 64)
    assert found == pytest.approx(1 / 16, abs=0.03)


def test_a_job_is_the_same_when_it_is_done_again_and_learns() -> None:
    job = Job("parity", replace(QUICK, steps=30), 1)
    once, again = solving.solved(job), solving.solved(job)
    assert {**once, "cpu_s": 0} == {**again, "cpu_s": 0}
    model = solving.made(job.solver, PUZZLES["parity"], 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    solving.train(model, job)
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_answered_in_recall_before_a_question_is_not_trained() -> None:
    model, one = solving.made(QUICK, PUZZLES["recall"], 0), sheet("recall")
    asked = one.answers_BS != NO_ANSWER
    found = solving.logits(model, one.tokens_BS)
    found.retain_grad()
    nn.functional.cross_entropy(found[asked], one.answers_BS[asked]).backward()
    assert found.grad is not None
    assert torch.equal(found.grad.abs().sum(-1) != 0, asked)


@pytest.mark.parametrize("job", [job for job in JOBS if job.seed == 0], ids=lambda job: job.name)
def test_every_solver_can_be_made_and_answers_at_every_length(job: Job) -> None:
    model = solving.made(job.solver, PUZZLES[job.puzzle], job.seed)
    count = sum(value.numel() for name, value in model.named_parameters() if "positions" not in name)
    assert 48_000 < count / job.solver.layers < 55_000
    with torch.no_grad():
        assert solving.logits(model, sheet(job.puzzle, length=128).tokens_BS).shape[:2] == (9, 128)


def test_sheets_grow_to_the_full_length_in_the_first_half_and_hold_as_many_tokens_at_any() -> None:
    lengths = [solving.length_at(step, replace(QUICK, steps=100)) for step in range(100)]
    assert lengths[0] == 8
    assert lengths == sorted(lengths)
    assert set(lengths[50:]) == {64}
    assert set(lengths) == set(range(8, 65, 8))


def test_faithful_oscillators_and_a_weak_coupling_are_asked_for_by_name_and_change_nothing_else() -> None:
    shape = {"keeps": 0.999999, "coupling_bias": -6.0}
    plain, other = (solving.made(replace(QUICK, shape=asked), PUZZLES["parity"], 0) for asked in ({}, shape))
    for (name, before), (_, after) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(before, after) != name.endswith("beta")
    keeps = other.blocks[0].mix.beta.sigmoid()
    assert (keeps.min().item(), keeps.max().item()) == (pytest.approx(0.3), pytest.approx(0.999999))
    tokens = sheet("parity").tokens_BS
    for model, k in ((plain, -2.0), (other, -8.0)):
        assert model(tokens).coupling_L.item() == pytest.approx(torch.tensor(k).sigmoid().item(), rel=0.5)


def test_a_convolution_without_earlier_taps_begins_as_the_identity() -> None:
    plain, bare, half = (
        solving.made(replace(QUICK, taps=factor), PUZZLES["parity"], 0).blocks[0].mix.taps for factor in (1.0, 0.0, 0.5)
    )
    identity = torch.eye(4)[-1][:, None].expand_as(bare)
    assert torch.equal(bare, identity)
    torch.testing.assert_close(half, (plain + identity) / 2)


def test_what_writes_into_the_residual_stream_begins_at_0_or_as_asked() -> None:
    for joins in (0.0, 0.05):
        block = solving.made(replace(QUICK, joins=joins), PUZZLES["parity"], 0).blocks[0]
        for weight in (block.mix.out.weight, block.ffn.contract.weight):
            assert weight.std().item() == pytest.approx(joins, rel=0.2)


def test_the_summary_comes_back_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SUMMARY", tmp_path / "tracking.json")
    for kept in (summary(1.0), {**summary(1.0), "outcomes": []}):
        tracking.keep(kept)
        assert json.loads(tracking.SUMMARY.read_text()) == kept


def test_jobs_have_names_of_their_own_and_three_seeds() -> None:
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert len(SEEDS) == 3
    assert {job.seed for job in JOBS} == set(SEEDS)


def outcome(job: Job, share: float = 1.0) -> dict[str, object]:
    shares = {str(length): share for length in LENGTHS}
    told = {"parameters": 50_000, "all": shares, "late": shares, "coupling": 0.1, "losses": [1.0], "cpu_s": 30.0}
    return {"facts": job.facts(), **told}


def test_a_finished_job_is_not_done_again_but_one_with_other_settings_or_a_torn_file_is(tmp_path: Path) -> None:
    first, second, third = JOBS[:3]
    (tmp_path / f"{first.name}.json").write_text(json.dumps(outcome(first)))
    slower = Job(second.puzzle, replace(second.solver, rate=1e-5), second.seed)
    (tmp_path / f"{second.name}.json").write_text(json.dumps(outcome(slower)))
    (tmp_path / f"{third.name}.json").write_text(json.dumps(outcome(third))[:-9])
    assert [task.name for task in tracking.wanted(tmp_path, JOBS[:3])] == [second.name, third.name]


def test_a_job_as_a_process_leaves_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("parity", QUICK, 0)
    monkeypatch.setattr(solving, "JOBS", [job])
    monkeypatch.setattr("sys.argv", ["solving", job.name, "--into", str(tmp_path / f"{job.name}.json")])
    try:
        solving.main()
    finally:
        torch.set_flush_denormal(False)
    assert list(tracking.wanted(tmp_path, [job])) == []
    found = json.loads((tmp_path / f"{job.name}.json").read_text())
    assert set(found["all"]) == {"64", "256", "1024"}


def summary(share: float) -> dict[str, object]:
    return {"date": "2026-01-31", "machine": "a machine", "outcomes": [outcome(job, share) for job in JOBS]}


def test_the_page_tells_each_seed_and_each_missed_aim() -> None:
    told = table(summary(0.98))
    for puzzle, solvers in SOLVERS.items():
        assert f"### {puzzle[0].upper()}{puzzle[1:]}" in told
        assert all(f"| {solver.title} | 50,000 |" in told for solver in solvers)
    assert "0.980 (0.980, 0.980, 0.980)" in told
    assert "| sum mod 5 | v4 | 64 | 0.99 | 0.980 | **aim missed** |" in verdicts(summary(0.98))
    assert "| sum mod 5 | v4 | 256 | 0.97 | 0.980 | aim met |" in verdicts(summary(0.98))


def test_an_aim_is_missed_while_a_seed_is_missing() -> None:
    whole = summary(1.0)
    assert "missed" not in verdicts(whole)
    puzzle, name, *_ = AIMS[0]
    last = next(job for job in reversed(JOBS) if (job.puzzle, job.solver.name) == (puzzle, name))
    part = {**whole, "outcomes": [one for one in whole["outcomes"] if one["facts"] != last.facts()]}  # type: ignore[attr-defined]
    assert f"| {puzzle} | {name} | 64 | 0.99 | 1.000 | **aim missed** |" in verdicts(part)


def test_one_wrong_answer_among_many_is_not_rounded_away() -> None:
    assert share(1 - 1 / 131_072) == "0.999"
    assert (share(1.0), share(0.57)) == ("1.000", "0.570")


def test_what_a_person_wrote_on_the_page_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "tracking.md"
    page.write_text(f"before\n{BEGIN}old{END}after\n")
    monkeypatch.setattr("benchmarks.tracking_page.DOCUMENT", page)
    write(summary(1.0))
    assert page.read_text().startswith(f"before\n{BEGIN}\n2026-01-31, on a machine; ")
    assert page.read_text().endswith(f"{END}after\n")


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks its marks"):
        renewed(f"{END}{BEGIN}", "figures")


def test_the_page_in_the_repository_is_made_from_the_kept_figures() -> None:
    kept = json.loads(tracking.SUMMARY.read_text())
    assert table(kept) in DOCUMENT.read_text()
    assert verdicts(kept) in DOCUMENT.read_text()
